"""The reader over the in-memory twins, and once over a real Redis with an index from disk."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

import freshet
from freshet.errors import FreshetError
from freshet.reader import NotServing, PopularCorrupt, Reader, UnknownProduct, VersionMismatch
from freshet.store.faiss_index import FaissFlatIndex
from freshet.store.index import IndexCorrupt, ItemIndex, MemoryItemIndex
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.store.ranker import Ranker, RankerCorrupt, RankerWeights, dump_ranker
from freshet.store.value import Seq, ValueCorrupt, encode_value
from freshet.stream.embedded import EmbeddedRedis

DIM = 4
WRITTEN_MS = 1_700_000_000_000
Recent = list[tuple[str, str, int]]
Bought = list[tuple[str, int, int, float]]


@dataclass
class Followed:
    """An index that knows its version, as a LiveIndex does."""

    index: ItemIndex
    model_version: str
    moves: bool = False

    def pair(self, served: str) -> tuple[ItemIndex, str]:
        return self.index, self.model_version

    def reread(self, served: str) -> None: ...


class Shop:
    """Two stores and an index with the products p0 (like nothing else), p1, p2, p3, one axis each."""

    def __init__(self, index: ItemIndex | None = None) -> None:
        self.store, self.serving = MemoryEmbeddingStore(), MemoryServingState()
        self.index = MemoryItemIndex(DIM) if index is None else index
        self.index.upsert([f"p{i}" for i in range(DIM)], np.eye(DIM, dtype=np.float32))
        self.step = 0

    def seq(self) -> Seq:
        self.step += 1
        return Seq(1, self.step)

    def user(
        self, user: str, vector: list[float], recent: Recent = [], version: str = "v1", says: str = "",  # noqa: B006
        bought: Bought = [], event_ts: int = 123,  # noqa: B006
    ) -> None:  # fmt: skip
        v = np.array(vector, dtype="<f4").tobytes()
        value = encode_value(v, DIM, says or version, self.seq(), event_ts, WRITTEN_MS, None, recent, bought)
        self.store.upsert(version, [user], [value])

    def popular(self, listed: list[tuple[str, float]], version: str = "v1") -> None:
        self.serving.put_blob(f"{version}:popular", self.seq(), msgspec.msgpack.encode(listed))

    def reader(self, clock: Callable[[], float] = lambda: WRITTEN_MS / 1e3 + 2.5) -> Reader:
        return Reader.over(self.store, self.serving, Followed(self.index, "v1"), clock=clock)


@pytest.fixture
def shop() -> Shop:
    made = Shop()
    made.serving.set_current("v1")
    made.user("ann", [0.1, 0.9, 0.5, 0.2], [("p1", "purchase", 7), ("p2", "view", 5)])
    made.popular([("p3", 9.5), ("p0", 4.0), ("gone", 3.0), ("p1", 1.0)])
    return made


# --- embedding ----------------------------------------------------------------------------------


def test_an_embedding_with_its_age(shop: Shop) -> None:
    found = shop.reader().embedding("ann")
    assert found is not None
    np.testing.assert_allclose(found.vector, [0.1, 0.9, 0.5, 0.2])
    assert (found.model_version, found.event_ts, found.written_ts, found.age_ms) == ("v1", 123, WRITTEN_MS, 2500)
    assert found.recent == [("p1", "purchase", 7), ("p2", "view", 5)]
    assert shop.reader(clock=lambda: 0.0).embedding("ann").age_ms == 0  # type: ignore[union-attr]
    assert shop.reader().embedding("nobody") is None


def test_an_embedding_needs_no_index_of_its_version(shop: Shop) -> None:
    shop.serving.set_current("v2")
    shop.user("ann", [1, 0, 0, 0], version="v2")
    found = shop.reader().embedding("ann")
    assert found is not None
    assert found.model_version == "v2"


# --- recommend ----------------------------------------------------------------------------------


def test_recommendations_with_and_without_what_was_seen(shop: Shop) -> None:
    reader = shop.reader()
    everything = reader.recommend("ann", 4, exclude_seen=False)
    assert [name for name, _, _ in everything.items] == ["p2", "p1", "p3", "p0"]
    chances = [chance for _, chance, _ in everything.items]
    assert chances == sorted(chances, reverse=True)
    assert all(0 < chance < 1 for chance in chances)
    assert [reason for _, _, reason in everything.items] == ["viewed lately", "for you", "popular", "for you"]
    assert (everything.source, everything.user_known, everything.model_version) == ("personal", True, "v1")
    assert [name for name, _, _ in reader.recommend("ann", 1).items] == ["p3"]
    assert [name for name, _, _ in reader.recommend("ann", 10).items] == ["p3", "p0"]
    allowed = reader.recommend("ann", 10, exclude_seen=False, allowed=["p0", "p2", "nothing"])
    assert [name for name, _, _ in allowed.items] == ["p2", "p0"]


def test_an_unknown_user_gets_what_is_popular_and_in_the_index(shop: Shop) -> None:
    reader = shop.reader()
    found = reader.recommend("nobody", 10)
    assert found.items == [("p3", 9.5, "popular"), ("p0", 4.0, "popular"), ("p1", 1.0, "popular")]
    assert (found.source, found.user_known, found.model_version) == ("popular", False, "v1")
    assert [name for name, _, _ in reader.recommend("nobody", 1).items] == ["p3"]
    assert [name for name, _, _ in reader.recommend("nobody", 9, allowed=["p1", "gone"]).items] == ["p1"]


def test_nothing_popular_is_no_error(shop: Shop) -> None:
    shop.serving = MemoryServingState()
    shop.serving.set_current("v1")
    assert shop.reader().recommend("nobody").items == []


def test_popular_products_fill_up_what_the_search_leaves() -> None:
    class Short(MemoryItemIndex):
        """Finds one product at most, as an approximate index might."""

        def search(self, vectors, k, allowed=None, excluded=None):  # type: ignore[no-untyped-def]
            return super().search(vectors, 1, allowed, excluded)

    shop = Shop(Short(DIM))
    shop.serving.set_current("v1")
    shop.user("ann", [0.1, 0.9, 0.5, 0.2], [("p0", "view", 1)])
    shop.popular([("p1", 8.0), ("p0", 7.0), ("p3", 6.0), ("p2", 5.0)])
    found = shop.reader().recommend("ann", 3)
    assert [(name, reason) for name, _, reason in found.items] == [
        ("p1", "for you"), ("p2", "for you"), ("p3", "popular"),
    ]  # fmt: skip
    assert found.source == "personal"


def test_what_is_bought_again_is_ranked_by_the_weights_of_the_version(shop: Shop) -> None:
    day = 86_400_000
    bought = [("p3", 4, 60 * day, 2.5), ("p0", 1, 30 * day, 1.0), ("gone", 9, 60 * day, 9.0)]
    shop.user("bob", [0.2, 0.6, 0.3, 0.5], [("p3", "purchase", 60 * day)], bought=bought, event_ts=60 * day)
    weights = RankerWeights(-1.0, 2.0, 0.0, 0.5, 1.0, -0.5, 0.25, 0.125, 0.75)
    shop.serving.put_blob("v1:ranker", shop.seq(), dump_ranker(Ranker(weights, {"p0": 0.25, "p1": 9.0})))
    found = {name: (chance, reason) for name, chance, reason in shop.reader().recommend("bob", 4, False).items}
    reference = 0.2  # of four products the least stands for the tenth

    def chance(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    # bias + score (s - r) + own + log_count log n + log_age log(1 + months) + own_score s + own_level l
    #     + log_lately log(1 + decayed / 2^months) + again, which counts for nothing where it was not bought
    p3 = -1 + 2 * (0.5 - reference) + 0.5 + math.log(4) + 0.25 * 0.5 + 0.125 * 0.5 + 0.75 * math.log(3.5)
    p0 = -1 + 2 * (0.2 - reference) + 0.5 - 0.5 * math.log(2) + 0.25 * 0.2 + 0.75 * math.log(1.5) + 0.25
    assert found["p3"] == (pytest.approx(chance(p3)), "bought again")
    assert found["p0"] == (pytest.approx(chance(p0)), "bought again")
    assert found["p1"] == (pytest.approx(chance(-1 + 2 * (0.6 - reference))), "for you")
    assert list(found) == ["p3", "p1", "p0", "p2"]
    new = shop.reader().recommend("bob", 4)
    assert [name for name, _, _ in new.items] == ["p1", "p2"]
    assert [(n, r) for n, _, r in shop.reader().recommend("bob", 4, False, ["p0", "gone"]).items] == [
        ("p0", "bought again")
    ]


def test_a_damaged_ranker_is_named_and_one_that_is_not_there_is_the_default(shop: Shop) -> None:
    before = shop.reader().recommend("ann", 2).items
    shop.serving.put_blob("v1:ranker", shop.seq(), dump_ranker(Ranker()))
    assert shop.reader().recommend("ann", 2).items == before
    backwards = dump_ranker(Ranker()).replace(b'"score":', b'"score":-')
    older = json.dumps({"bias": -2.0, "score": 6.0}).encode()
    without = dump_ranker(Ranker()).replace(b',"again":{}', b"")
    of_texts, endless = (dump_ranker(Ranker()).replace(b"{}", again) for again in (b'{"p":"much"}', b'{"p":1e9}'))
    for blob in (b"", b"[]", b'{"score": "much"}', backwards, older, without, of_texts, endless):
        shop.serving.put_blob("v1:ranker", shop.seq(), blob)
        with pytest.raises(RankerCorrupt, match="ranker"):
            shop.reader().recommend("ann", 2)


def test_popularity_is_named_where_it_speaks_more_than_taste(shop: Shop) -> None:
    shop.user("cara", [0.1, 0.2, 0.05, 1.0])
    shop.index.upsert(["p0"], np.array([[0.0, 0.5, 0.0, 0.9]], np.float32))
    shop.popular([("p0", 5.0), ("p1", 4.0)])
    assert [(name, reason) for name, _, reason in shop.reader().recommend("cara", 3).items] == [
        ("p0", "popular"), ("p3", "for you"), ("p1", "for you"),
    ]  # fmt: skip


def test_the_popular_products_are_read_again_after_a_moment(shop: Shop) -> None:
    now = [0.0]
    reader = shop.reader(clock=lambda: now[0])
    assert [n for n, _, _ in reader.recommend("nobody", 1).items] == ["p3"]
    shop.popular([("p2", 9.0)])
    assert [n for n, _, _ in reader.recommend("nobody", 1).items] == ["p3"]
    now[0] += 1.01
    assert [n for n, _, _ in reader.recommend("nobody", 1).items] == ["p2"]


def test_a_user_of_whom_nothing_is_known_gets_what_is_popular(shop: Shop) -> None:
    shop.user("new", [0, 0, 0, 0], [("p3", "view", 1)])
    found = shop.reader().recommend("new", 2)
    assert [name for name, _, _ in found.items] == ["p0", "p1"]
    assert (found.source, found.user_known) == ("popular", True)


def test_bad_requests_and_damaged_values_are_named(shop: Shop) -> None:
    reader = shop.reader()
    with pytest.raises(FreshetError, match="k is 0"):
        reader.recommend("ann", 0)
    shop.serving.put_blob("v1:popular", shop.seq(), b"\xc1")
    with pytest.raises(PopularCorrupt, match="'v1'"):
        reader.recommend("nobody")
    shop.store._values["v1", "ann"] = b"\x00damaged"
    with pytest.raises(ValueCorrupt):
        reader.recommend("ann")


# --- similar ------------------------------------------------------------------------------------


def test_similar_products_without_the_product_itself(shop: Shop) -> None:
    shop.index.upsert(["near"], np.array([[0.6, 0.8, 0, 0]], dtype=np.float32))
    reader = shop.reader()
    found = reader.similar("near", 2)
    assert [name for name, _ in found] == ["p1", "p0"]
    assert [score for _, score in found] == pytest.approx([0.8, 0.6])
    assert len(reader.similar("near", 100)) == DIM
    with pytest.raises(UnknownProduct, match="'missing'"):
        reader.similar("missing")
    with pytest.raises(FreshetError, match="k is 0"):
        reader.similar("near", 0)


# --- versions -----------------------------------------------------------------------------------


def test_before_a_worker_is_live() -> None:
    reader = Shop().reader()
    for call in (reader.embedding, reader.recommend):
        with pytest.raises(NotServing, match="start `freshet worker`"):
            call("ann")
    assert reader.similar("p0", 1)


def test_versions_are_never_mixed(shop: Shop) -> None:
    reader = shop.reader()
    assert reader.recommend("ann").user_known
    shop.serving.set_current("v2")
    shop.user("ann", [1, 0, 0, 0], version="v2")
    for user in ("ann", "nobody"):
        with pytest.raises(VersionMismatch, match=r"'v2'.*'v1'.*open the reader with an index of 'v2'"):
            reader.recommend(user)
    shop.serving.set_current("v1")
    assert reader.recommend("ann").model_version == "v1"


def test_a_value_that_says_another_version_is_refused(shop: Shop) -> None:
    shop.user("odd", [1, 0, 0, 0], says="v0")
    with pytest.raises(VersionMismatch, match=r"'odd'.*'v1'.*'v0'"):
        shop.reader().recommend("odd")


def test_a_pointer_that_moves_while_it_is_read_is_read_again(shop: Shop) -> None:
    """The first answer is the past: a rollover from v0 to v1 happened just then."""

    class Moving(MemoryServingState):
        answers = ["v0", "v1"]  # noqa: RUF012

        def current(self) -> str | None:
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    moving = Moving()
    reader = Reader.over(shop.store, moving, Followed(shop.index, "v1"))
    assert reader.recommend("ann").user_known


def test_users_of_a_version_that_is_cleared_away_meanwhile_are_looked_for_in_the_new_one(shop: Shop) -> None:
    followed = Followed(shop.index, "v1")

    class Clearing(MemoryEmbeddingStore):
        def get(self, model_version, user_ids):  # type: ignore[no-untyped-def]
            if model_version == "v1":
                shop.serving.set_current("v2")
                followed.model_version = "v2"
                return [None]
            return super().get(model_version, user_ids)

    shop.store = Clearing()
    shop.user("ann", [0, 0, 0, 1], version="v2")
    reader = Reader.over(shop.store, shop.serving, followed)
    found = reader.recommend("ann", 1)
    assert (found.model_version, found.user_known, found.items[0][0]) == ("v2", True, "p3")
    shop.serving.set_current("v1")
    embedding = reader.embedding("ann")
    assert embedding is not None
    assert embedding.model_version == "v2"


def test_a_bare_index_is_of_the_version_said_or_of_the_one_first_seen(shop: Shop) -> None:
    said = Reader.over(shop.store, shop.serving, shop.index, model_version="v2")
    with pytest.raises(VersionMismatch):
        said.recommend("ann")
    pinned = Reader.over(shop.store, shop.serving, shop.index)
    assert pinned.similar("p0")
    assert pinned.recommend("ann").model_version == "v1"
    shop.serving.set_current("v2")
    with pytest.raises(VersionMismatch):
        pinned.recommend("ann")


def test_a_folder_is_read_again_when_its_version_is_served(shop: Shop, tmp_path: Path) -> None:
    index = FaissFlatIndex(DIM)
    index.upsert(["old"], np.eye(1, DIM, dtype=np.float32))
    index.snapshot(tmp_path, "v1")
    reader = Reader.over(shop.store, shop.serving, tmp_path)
    assert [name for name, _, _ in reader.recommend("ann", 1).items] == ["old"]
    shop.serving.set_current("v2")
    shop.user("ann", [1, 0, 0, 0], version="v2")
    with pytest.raises(VersionMismatch):
        reader.recommend("ann", 1)
    index.upsert(["new"], 2 * np.eye(1, DIM, dtype=np.float32))
    index.snapshot(tmp_path, "v2")
    assert [name for name, _, _ in reader.recommend("ann", 1).items] == ["new"]
    with pytest.raises(IndexCorrupt, match="nowhere"):
        Reader.over(shop.store, shop.serving, str(tmp_path / "nowhere"))


# --- with real parts ----------------------------------------------------------------------------


def test_over_redis_with_an_index_from_disk(valkey_server: EmbeddedRedis, tmp_path: Path) -> None:
    from freshet.store.redis_settings import RedisSettings
    from freshet.store.redis_store import RedisStore

    namespace = f"reader-{tmp_path.name}"
    store = RedisStore(RedisSettings(url=valkey_server.url, namespace=namespace))
    made = Shop(FaissFlatIndex(DIM))
    made.store, made.serving = store, store  # type: ignore[assignment]
    made.index.snapshot(tmp_path / "index", "v1")
    with freshet.Reader(valkey_server.url, tmp_path / "index", namespace=namespace) as reader:
        with pytest.raises(NotServing):
            reader.recommend("ann")
        made.user("ann", [0.1, 0.9, 0.5, 0.2], [("p1", "purchase", 7)])
        made.popular([("p3", 9.5)])
        store.set_current("v1")
        assert [name for name, _, _ in reader.recommend("ann", 2).items] == ["p2", "p3"]
        assert reader.recommend("nobody").items == [("p3", 9.5, "popular")]
        assert len(reader.similar("p0", 3)) == 3
        embedding = reader.embedding("ann")
        assert embedding is not None
        assert embedding.recent == [("p1", "purchase", 7)]
    with pytest.raises(FreshetError):
        freshet.Reader("nonsense://", tmp_path / "index")
    store.close()


def test_importing_freshet_and_the_reader_loads_no_vendor_library() -> None:
    code = (
        "import sys, freshet, freshet.reader\n"
        "heavy = {'torch', 'faiss', 'redis', 'confluent_kafka', 'numba', 'polars'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert freshet.Reader is freshet.reader.Reader\n"
        "assert not {'torch', 'faiss', 'redis', 'confluent_kafka'} & set(sys.modules)\n"
        "freshet.Producer\n"
        "assert 'torch' not in sys.modules and 'faiss' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    with pytest.raises(AttributeError, match="'Nothing'"):
        freshet.Nothing  # noqa: B018
