"""What every place for embeddings has to do: Valkey, redis-server, and the twin in memory."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import redis

from freshet.errors import FreshetError
from freshet.store import redis_store
from freshet.store.embeddings import EmbeddingStore, ServingState, StoreUnavailable
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.store.redis_settings import KEYS_PER_CALL_MAX, RedisSettings, without_password
from freshet.store.redis_store import RedisStore
from freshet.store.value import Seq, decode_value, encode_value
from freshet.stream.embedded import EmbeddedRedis, free_port
from tests.conftest import lacking

DIM = 4
ODD_IDS = ["", "a:user:b", "ø 日本 \U0001f600", "*", "[ab]?", "line\nbreak\r\n\0", "x" * 256]


def value(fence: int, step: int, mark: int = 0) -> bytes:
    """A value with this seq; `mark` tells values of one seq apart."""
    vector = np.full(DIM, mark, dtype="<f4").tobytes()
    return encode_value(vector, DIM, "v1", Seq(fence, step), -1, 0, ("views", 3, 17), [("p", "view", 1)])


@dataclass
class Stores:
    """The two roles of one implementation."""

    users: EmbeddingStore
    serving: ServingState


@pytest.fixture(
    params=[
        "memory",
        "valkey",
        pytest.param("redis_server", marks=pytest.mark.integration),
        "redis_cluster",
        "redis_sentinel",
    ],
)
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    if request.param == "memory":
        yield Stores(MemoryEmbeddingStore(), MemoryServingState())
        return
    # Few keys a call and an odd number, so that every test of more crosses calls.
    store = RedisStore(RedisSettings(url=request.getfixturevalue(request.param), keys_per_call=3))
    yield Stores(store, store)
    store.close()


# --- users --------------------------------------------------------------------------------------


def test_what_was_written_is_read(stores: Stores) -> None:
    users = [f"u{i}" for i in range(20)]
    values = [value(1, 1, i) for i in range(20)]
    assert stores.users.get("v1", users) == [None] * 20
    stale = stores.users.upsert("v1", users, values)
    assert stale.dtype == np.bool_
    assert stale.tolist() == [False] * 20
    assert stores.users.get("v1", ["u7", "nobody", "u0", "u7"]) == [values[7], None, values[0], values[7]]
    assert stores.users.get("v1", users) == values
    assert sorted(stores.users.user_ids("v1")) == sorted(users)


def test_nothing_is_allowed_everywhere(stores: Stores) -> None:
    assert stores.users.upsert("v1", [], []).shape == (0,)
    assert stores.users.get("v1", []) == []
    assert stores.users.delete("v1", [], Seq(1, 1)).shape == (0,)
    assert list(stores.users.user_ids("v1")) == []


def test_one_value_a_user(stores: Stores) -> None:
    with pytest.raises(ValueError, match="2 users came with 1 values"):
        stores.users.upsert("v1", ["a", "b"], [value(1, 1)])
    assert stores.users.get("v1", ["a", "b"]) == [None, None]


@pytest.mark.parametrize(
    ("held", "new", "stays", "refused"),
    [
        ((1, 1), (1, 2), "new", False),
        ((1, 9), (1, 10), "new", False),
        ((9, 9), (10, 0), "new", False),
        ((1_700_000_000_000, 5), (1_700_000_000_001, 1), "new", False),
        ((1, 2), (1, 2), "held", False),
        ((1, 2), (1, 1), "held", True),
        ((1, 10), (1, 9), "held", True),
        ((2, 0), (1, 10**15), "held", True),
    ],
)
def test_a_write_counts_iff_its_seq_is_greater(
    stores: Stores, held: tuple[int, int], new: tuple[int, int], stays: str, refused: bool
) -> None:
    values = {"held": value(*held, mark=1), "new": value(*new, mark=2)}
    stores.users.upsert("v1", ["a"], [values["held"]])
    assert stores.users.upsert("v1", ["a"], [values["new"]]).tolist() == [refused]
    assert stores.users.get("v1", ["a"]) == [values[stays]]


def test_refusals_are_told_user_by_user(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "CALLS_PER_TRIP", 2)
    users = [f"u{i}" for i in range(25)]  # nine calls in five trips
    ahead = users[::4]
    stores.users.upsert("v1", ahead, [value(2, 1)] * len(ahead))
    stale = stores.users.upsert("v1", users, [value(1, 7)] * 25)
    assert [u for u, refused in zip(users, stale, strict=True) if refused] == ahead
    found = stores.users.get("v1", users)
    assert [u for u, raw in zip(users, found, strict=True) if raw == value(2, 1)] == ahead
    assert found.count(value(1, 7)) == 25 - len(ahead)


def test_what_is_on_its_way_has_landed_when_it_was_waited_for(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "CALLS_PER_TRIP", 2)
    users = [f"u{i}" for i in range(25)]  # nine calls in five trips
    stores.users.upsert("v1", users[:1], [value(1, 5)])
    one = stores.users.begin_upsert("v1", users, [value(1, 1)] * 25)
    other = stores.users.begin_upsert("v1", ["x"], [value(1, 1)])
    assert stores.users.get("v1", users[:1]) == [value(1, 5)], "meanwhile the store can be used"
    assert other().tolist() == [False]
    assert one().tolist() == [True] + [False] * 24
    assert stores.users.get("v1", [*users, "x"]) == [value(1, 5), *[value(1, 1)] * 25]
    assert one().tolist() == [True] + [False] * 24, (
        "waited for once more it is written once more, which changes nothing"
    )
    assert stores.users.begin_upsert("v1", [], [])().shape == (0,)
    with pytest.raises(ValueError, match="2 users came with 1 values"):
        stores.users.begin_upsert("v1", ["a", "b"], [value(1, 1)])


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_a_user_given_twice_the_greater_seq_stays(stores: Stores, order: tuple[int, int]) -> None:
    stale = stores.users.upsert("v1", ["a", "b", "a"], [value(1, order[0]), value(1, 1), value(1, order[1])])
    assert stale.tolist() == [False, False, order[1] < order[0]]
    assert stores.users.get("v1", ["a"]) == [value(1, 2)]


def test_versions_do_not_touch_each_other(stores: Stores) -> None:
    for version, step in (("v1", 5), ("v2", 1), ("v[12]*", 3)):
        assert not stores.users.upsert(version, ["a", version], [value(1, step)] * 2).any()
    stores.users.delete("v2", ["a"], Seq(1, 9))
    assert not stores.users.upsert("v3", ["a"], [value(1, 1)]).any(), "a deletion guards its own version alone"
    assert stores.users.get("v1", ["a"]) == [value(1, 5)]
    assert sorted(stores.users.user_ids("v1")) == ["a", "v1"]
    assert sorted(stores.users.user_ids("v2")) == ["v2"]
    assert sorted(stores.users.user_ids("v[12]*")) == ["a", "v[12]*"]
    assert list(stores.users.user_ids("v")) == []


def test_ids_may_be_any_text(stores: Stores) -> None:
    values = [value(1, 1, i) for i in range(len(ODD_IDS))]
    stores.users.upsert("v1", ODD_IDS, values)
    assert stores.users.get("v1", ODD_IDS) == values
    assert sorted(stores.users.user_ids("v1")) == sorted(ODD_IDS)
    stores.users.delete("v1", ODD_IDS[:3], Seq(1, 2))
    assert stores.users.upsert("v1", ODD_IDS, [value(1, 1)] * len(ODD_IDS)).tolist() == [True] * 3 + [False] * 4
    assert sorted(stores.users.user_ids("v1")) == sorted(ODD_IDS[3:])


def test_of_a_deleted_user_nothing_stays(stores: Stores) -> None:
    users = [f"u{i}" for i in range(10)]
    stores.users.upsert("v1", users, [value(5, 5)] * 10)
    stale = stores.users.delete("v1", [*users[:8], "nobody", users[0]], Seq(5, 6))
    assert stale.dtype == np.bool_
    assert stale.tolist() == [False] * 10
    assert stores.users.get("v1", users) == [None] * 8 + [value(5, 5)] * 2
    assert sorted(stores.users.user_ids("v1")) == users[8:]


@pytest.mark.parametrize("known", [True, False], ids=["a known user", "a user nobody knows"])
def test_a_deletion_is_a_write_that_older_ones_do_not_pass(stores: Stores, known: bool) -> None:
    """A worker that was replaced still has a write of a user on its way whom its successor was told to forget."""
    if known:
        stores.users.upsert("v1", ["ann"], [value(1, 7)])
    assert not stores.users.delete("v1", ["ann"], Seq(2, 5)).any()
    for fence, step in ((1, 8), (1, 10**15), (2, 4)):
        assert stores.users.upsert("v1", ["ann"], [value(fence, step)]).tolist() == [True]
        assert stores.users.delete("v1", ["ann"], Seq(fence, step)).tolist() == [True]
    assert not stores.users.delete("v1", ["ann"], Seq(2, 5)).any(), "the same write again"
    assert not stores.users.upsert("v1", ["ann"], [value(2, 5)]).any()
    assert stores.users.get("v1", ["ann"]) == [None]
    assert list(stores.users.user_ids("v1")) == []
    assert not stores.users.upsert("v1", ["ann"], [value(2, 6)]).any()
    assert stores.users.get("v1", ["ann"]) == [value(2, 6)]


def test_a_deletion_does_not_take_back_what_is_newer(stores: Stores) -> None:
    users = [f"u{i}" for i in range(8)]
    newer = users[::3]
    stores.users.upsert("v1", users, [value(2, 1) if u in newer else value(1, 1) for u in users])
    assert stores.users.delete("v1", users, Seq(1, 9)).tolist() == [u in newer for u in users]
    assert sorted(stores.users.user_ids("v1")) == newer
    assert stores.users.get("v1", newer) == [value(2, 1)] * len(newer)
    stores.users.upsert("v1", ["u1"], [value(2, 2)])
    assert stores.users.delete("v1", ["u1"], Seq(2, 2)).tolist() == [False], "an equal seq changes nothing"
    assert stores.users.get("v1", ["u1"]) == [value(2, 2)]


def test_the_twin_keeps_a_deletion_no_longer_than_it_was_told() -> None:
    now = [0.0]
    twin = MemoryEmbeddingStore(guard_s=60.0, monotonic=lambda: now[0])
    twin.delete("v1", ["ann"], Seq(2, 1))
    now[0] = 59.0
    assert twin.upsert("v1", ["ann"], [value(1, 1)]).tolist() == [True]
    now[0] = 60.0
    assert twin.upsert("v1", ["ann"], [value(1, 1)]).tolist() == [False]


# --- what is not a user's -----------------------------------------------------------------------


def test_the_version_to_use(stores: Stores) -> None:
    assert stores.serving.current() is None
    for version in ("v1", "v2", "v1"):
        stores.serving.set_current(version)
        assert stores.serving.current() == version


def test_a_fence_is_greater_than_all_before_it_and_than_its_floor(stores: Stores) -> None:
    assert stores.serving.fence("worker") == 0
    fences = [stores.serving.next_fence("worker", floor) for floor in (0, 0, 100, 100, 5, 1_700_000_000_000, 0)]
    assert fences == [1, 2, 101, 102, 103, 1_700_000_000_001, 1_700_000_000_002]
    assert stores.serving.fence("worker") == fences[-1]
    assert stores.serving.next_fence("another", 0) == 1


def test_a_store_that_lost_nothing_stays_what_it_was(stores: Stores) -> None:
    before = stores.serving.incarnation()
    assert before
    stores.users.upsert("v1", ["ann"], [value(1, 1)])
    stores.users.delete("v1", ["ann"], Seq(1, 2))
    stores.serving.set_current("v1")
    assert stores.serving.incarnation() == before


def test_blobs_follow_the_same_rule(stores: Stores) -> None:
    put, get = stores.serving.put_blob, stores.serving.get_blob
    assert get("v1:popular") is None
    assert put("v1:popular", Seq(1, 5), b"\x00first\xff")
    assert get("v1:popular") == b"\x00first\xff"
    assert put("v1:popular", Seq(1, 5), b"again")  # the same write, repeated
    assert not put("v1:popular", Seq(1, 4), b"older")
    assert not put("v1:popular", Seq(0, 10**15), b"replaced worker")
    assert get("v1:popular") == b"\x00first\xff"
    assert put("v1:popular", Seq(2, 0), b"")
    assert get("v1:popular") == b""
    assert get("v2:popular") is None


# --- Redis alone --------------------------------------------------------------------------------


@pytest.fixture(params=["valkey", pytest.param("redis-server", marks=pytest.mark.integration)])
def own(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    """A server of this test alone, to be stopped, filled up and locked."""
    binary = None
    if request.param == "redis-server":
        program = shutil.which("redis-server")
        if program is None:
            lacking("redis-server is not on the PATH: install the package redis-server of the distribution")
        binary = Path(program)
    with EmbeddedRedis(binary=binary) as server:
        yield server


Opener = Callable[..., RedisStore]


@pytest.fixture
def pauses() -> list[float]:
    """The pauses that stores made between tries, in seconds."""
    return []


@pytest.fixture
def opened(pauses: list[float]) -> Iterator[Opener]:
    """Opens stores that count their pauses instead of making them."""
    made: list[RedisStore] = []

    def open_store(url: str, sleep: Callable[[float], None] | None = None, **settings: object) -> RedisStore:
        chosen = replace(RedisSettings(url=url, retry_ms=10), **settings)  # type: ignore[arg-type]
        made.append(RedisStore(chosen, sleep or pauses.append))
        return made[-1]

    yield open_store
    for store in made:
        store.close()


def test_the_keys_and_bytes_are_those_of_the_contract(redis_url: str, opened: Opener) -> None:
    store = opened(redis_url)
    store.upsert("v1", ["ann"], [value(7, 8, 3)])
    store.set_current("v1")
    store.put_blob("v1:popular", Seq(7, 9), b"blob")
    store.next_fence("worker", 0)
    with redis.Redis.from_url(redis_url) as client:
        assert sorted(client.keys("*")) == [  # type: ignore[arg-type]
            b"freshet:current", b"freshet:fence:worker", b"freshet:v1:popular", b"freshet:v1:user:ann",
        ]  # fmt: skip
        assert client.get("freshet:v1:user:ann") == value(7, 8, 3)
        assert client.get("freshet:v1:popular") == b"0000000000000007.0000000000000009blob"
        assert client.ttl("freshet:v1:user:ann") == -1
        other = opened(redis_url, namespace="other")
        assert other.current() is None
        assert list(other.user_ids("v1")) == []
        store.delete("v1", ["ann"], Seq(7, 9))
        assert not client.keys("*ann*")
        guard = b"freshet:v1:gone:" + hashlib.sha1(b"freshet:v1:user:ann").hexdigest().encode()
        any_guard = b"freshet:v1:gone:any"
        assert sorted(client.keys("*:gone:*")) == sorted([guard, any_guard])  # type: ignore[arg-type]
        assert client.get(guard) == b"0000000000000007.0000000000000009"
        for key in guard, any_guard:
            assert 86_000 < client.ttl(key) <= 86_400  # type: ignore[operator]
        store.upsert("v1", ["ann"], [value(7, 10)])
        assert client.keys("*:gone:*") == [any_guard], "a newer value takes its place"


def test_values_expire_where_that_is_set(redis_url: str, opened: Opener) -> None:
    store = opened(redis_url, ttl_s=500)
    store.upsert("v1", ["ann"], [value(1, 1)])
    with redis.Redis.from_url(redis_url) as client:
        assert 400 < client.ttl("freshet:v1:user:ann") <= 500  # type: ignore[operator]
        client.expire("freshet:v1:user:ann", 100)
        store.upsert("v1", ["ann"], [value(1, 2)])
        assert client.ttl("freshet:v1:user:ann") > 400  # type: ignore[operator]


def test_what_is_left_of_a_deletion_expires(redis_url: str, opened: Opener) -> None:
    store = opened(redis_url, guard_s=1)
    store.delete("v1", ["ann"], Seq(2, 1))
    assert store.upsert("v1", ["ann"], [value(1, 1)]).tolist() == [True]
    with redis.Redis.from_url(redis_url) as client:
        end = time.monotonic() + 10
        while client.keys("*:gone:*") and time.monotonic() < end:
            time.sleep(0.05)
    assert store.upsert("v1", ["ann"], [value(1, 1)]).tolist() == [False]


def test_a_call_has_room_for_as_many_values_as_the_setting_allows(redis_url: str, opened: Opener) -> None:
    store = opened(redis_url, keys_per_call=KEYS_PER_CALL_MAX)
    users = [f"u{i}" for i in range(KEYS_PER_CALL_MAX + 1)]
    for step in 1, 2:
        values = [value(1, step, i) for i in range(len(users))]
        assert not store.upsert("v1", users, values).any()
        assert store.get("v1", users) == values


def test_a_deletion_is_held_as_long_as_it_says_whatever_another_says(redis_url: str, opened: Opener) -> None:
    opened(redis_url, guard_s=500).delete("v1", ["ann"], Seq(2, 1))
    opened(redis_url, guard_s=1).delete("v1", ["bob"], Seq(2, 1))
    with redis.Redis.from_url(redis_url) as client:
        assert client.ttl("freshet:v1:gone:any") > 400  # type: ignore[operator]
        opened(redis_url, guard_s=900).delete("v1", ["cat"], Seq(2, 1))
        assert client.ttl("freshet:v1:gone:any") > 800  # type: ignore[operator]


def test_writers_that_race_leave_the_greatest_seq(redis_url: str, opened: Opener) -> None:
    users = [f"u{i}" for i in range(50)]
    writers = 4
    errors: list[BaseException] = []
    shared = opened(redis_url, keys_per_call=8)

    def write(fence: int) -> None:
        chance = random.Random(fence)
        store = shared if fence % 2 else opened(redis_url, keys_per_call=8)
        steps = list(range(1, 21))
        chance.shuffle(steps)
        try:
            for step in steps:
                some = chance.sample(users, 30)
                store.upsert("v1", some, [value(fence, step)] * 30)
            store.upsert("v1", users, [value(fence, 21)] * 50)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=write, args=(fence,)) for fence in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert {decode_value(raw or b"").seq for raw in shared.get("v1", users)} == {Seq(writers - 1, 21)}


def test_racing_fences_are_all_different(redis_url: str, opened: Opener) -> None:
    taken: list[int] = []
    stores = [opened(redis_url) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda s=store: taken.extend(s.next_fence("w", 50) for _ in range(25)))
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(51, 151))


def test_a_server_that_forgot_the_script_is_told_it_again(own: EmbeddedRedis, opened: Opener) -> None:
    store = opened(own.url, keys_per_call=2)
    users = [f"u{i}" for i in range(9)]
    store.upsert("v1", users, [value(1, 1)] * 9)
    assert own.ask("SCRIPT FLUSH") == b"+OK"
    store.upsert("v1", users, [value(1, 2)] * 9)
    assert store.get("v1", users) == [value(1, 2)] * 9


def test_a_server_that_is_away_is_waited_for_and_then_named(
    own: EmbeddedRedis, opened: Opener, pauses: list[float]
) -> None:
    store = opened(own.url, attempts=3)
    store.upsert("v1", ["a"], [value(1, 1)])
    own.kill()
    calls: list[Callable[[], object]] = [
        lambda: store.upsert("v1", ["a"], [value(1, 2)]),
        lambda: store.get("v1", ["a"]),
        lambda: store.delete("v1", ["a"], Seq(1, 1)),
        lambda: list(store.user_ids("v1")),
        store.current,
        lambda: store.set_current("v1"),
        lambda: store.next_fence("w", 0),
        store.incarnation,
        lambda: store.put_blob("b", Seq(1, 1), b""),
        lambda: store.get_blob("b"),
    ]
    for call in calls:
        pauses.clear()
        with pytest.raises(StoreUnavailable, match=rf"{own.port}.*start it"):
            call()
        assert pauses == [0.01, 0.02]
    own.start()
    assert not store.upsert("v1", ["a"], [value(1, 2)]).any()
    assert store.get("v1", ["a"]) == [value(1, 2)]


def test_what_is_on_its_way_to_a_server_that_goes_away_is_sent_again(own: EmbeddedRedis, opened: Opener) -> None:
    store = opened(own.url, attempts=2, keys_per_call=2)
    users = [f"u{i}" for i in range(9)]
    assert not store.upsert("v1", users, [value(1, 0)] * 9).any()
    assert own.process is not None
    own.process.send_signal(signal.SIGSTOP)  # what is sent is taken by the kernel and answered by nobody
    sent = store.begin_upsert("v1", users, [value(1, 1)] * 9)
    own.kill()
    sent_to_nobody = store.begin_upsert("v1", users, [value(1, 2)] * 9)
    for landing in (sent, sent_to_nobody):
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=rf"{own.port}.*start it"):
                landing()
    own.start()
    assert not sent().any()
    assert store.get("v1", users) == [value(1, 1)] * 9
    assert not sent_to_nobody().any()
    assert store.get("v1", users) == [value(1, 2)] * 9


def test_what_a_server_refuses_on_its_way_is_told_when_it_is_waited_for(own: EmbeddedRedis, opened: Opener) -> None:
    store = opened(own.url, attempts=1)
    with redis.Redis.from_url(own.url) as client:
        client.rpush("freshet:v1:user:a", "foreign")
        landing = store.begin_upsert("v1", ["a"], [value(1, 1)])
        with pytest.raises(FreshetError, match="choose another namespace"):
            landing()
        client.delete("freshet:v1:user:a")
    assert landing().tolist() == [False]
    assert store.get("v1", ["a"]) == [value(1, 1)]


def test_a_server_that_was_started_again_is_another_incarnation(own: EmbeddedRedis, opened: Opener) -> None:
    store = opened(own.url)
    before = store.incarnation()
    assert opened(own.url).incarnation() == before, "it is the server's, not the client's"
    own.kill()
    with pytest.raises(StoreUnavailable):
        store.incarnation()
    own.start()
    assert store.incarnation() != before
    twins = MemoryServingState(), MemoryServingState()
    assert twins[0].incarnation() != twins[1].incarnation()


def test_a_server_that_comes_back_between_two_tries(own: EmbeddedRedis, opened: Opener) -> None:
    pauses = []

    def come_back(seconds: float) -> None:
        pauses.append(seconds)
        own.start()

    store = opened(own.url, sleep=come_back)
    own.kill()
    assert not store.upsert("v1", ["a"], [value(1, 2)]).any()
    assert store.get("v1", ["a"]) == [value(1, 2)]
    assert len(pauses) == 1


def test_a_server_that_never_answers(opened: Opener, pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = opened(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_ms=50, attempts=2)
        with pytest.raises(StoreUnavailable, match=r"[Tt]imeout"):
            store.upsert("v1", ["a"], [value(1, 1)])
        assert pauses == [0.01]


def configure(server: EmbeddedRedis, setting: str, to: str) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set(setting, to)


def test_a_full_server_is_told_apart(own: EmbeddedRedis, opened: Opener, pauses: list[float]) -> None:
    store = opened(own.url)
    store.upsert("v1", ["a"], [value(1, 1)])
    configure(own, "maxmemory", "1")
    for call in (
        lambda: store.upsert("v1", ["a", "b"], [value(1, 2)] * 2),
        lambda: store.set_current("v1"),
        lambda: store.put_blob("b", Seq(1, 1), b"x"),
        lambda: store.next_fence("w", 0),
    ):
        with pytest.raises(StoreUnavailable, match=r"full.*maxmemory"):
            call()
    assert len(pauses) == 8
    assert store.get("v1", ["a"]) == [value(1, 1)]
    configure(own, "maxmemory", "0")
    assert not store.upsert("v1", ["a", "b"], [value(1, 2)] * 2).any()


def test_a_replica_is_told_apart(own: EmbeddedRedis, opened: Opener) -> None:
    store = opened(own.url)
    store.upsert("v1", ["a"], [value(1, 1)])
    with redis.Redis.from_url(own.url) as client:
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match=r"replica.*name the primary"):
            store.upsert("v1", ["a"], [value(1, 2)])
        assert store.get("v1", ["a"]) == [value(1, 1)]
        client.replicaof("NO", "ONE")
    assert not store.upsert("v1", ["a"], [value(1, 2)]).any()


def test_a_password_is_asked_for_and_never_shown(own: EmbeddedRedis, opened: Opener) -> None:
    configure(own, "requirepass", "s3cret/pass")
    with pytest.raises(FreshetError, match="put user and password into the URL") as missing:
        opened(own.url).current()
    assert not isinstance(missing.value, StoreUnavailable)
    with pytest.raises(FreshetError, match="refuses the login") as wrong:
        opened(own.url.replace("//", "//:wr0ng@")).current()
    assert "wr0ng" not in str(wrong.value)
    right = own.url.replace("//", "//:s3cret%2Fpass@")
    assert opened(right).current() is None
    own.kill()
    with pytest.raises(StoreUnavailable, match=r":\*\*\*@") as away:
        opened(right).current()
    assert "s3cret" not in str(away.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:word@h:1/0", "redis://:***@h:1/0"),
        ("rediss://ann:word@h:1/0", "rediss://ann:***@h:1/0"),
        ("redis://ann@h/0", "redis://ann@h/0"),
        ("unix://ann:word@/run/redis.sock?db=1", "unix://ann:***@/run/redis.sock?db=1"),
        ("redis://h/0?username=ann&password=word&db=2", "redis://h/0?username=ann&password=***&db=2"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_key_of_somebody_else_is_named(redis_url: str, opened: Opener) -> None:
    store = opened(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.rpush("freshet:v1:user:a", "not ours")
        with pytest.raises(FreshetError, match="choose another namespace") as caught:
            store.upsert("v1", ["a"], [value(1, 1)])
        assert not isinstance(caught.value, StoreUnavailable)
        client.delete("freshet:v1:user:a")


def test_a_node_of_a_cluster_is_named(opened: Opener) -> None:
    with EmbeddedRedis(options=("--cluster-enabled", "yes", "--cluster-port", str(free_port()))) as node:
        store = opened(node.url, attempts=1)
        with pytest.raises(StoreUnavailable, match="cluster that is not whole"):
            store.upsert("v1", ["a"], [value(1, 1)])
        with redis.Redis.from_url(node.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):
                time.sleep(0.05)
        with pytest.raises(FreshetError, match=r"node of a Redis Cluster.*redis\+cluster://"):
            store.upsert("v1", ["a", "b"], [value(1, 1)] * 2)


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1/", "redis://127.0.0.1:port/0"])
def test_a_url_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(FreshetError, match="cannot be used"):
        RedisStore(RedisSettings(url=url))


@pytest.mark.parametrize(
    ("setting", "to"),
    [
        ("timeout_ms", 0), ("keys_per_call", 0), ("keys_per_call", KEYS_PER_CALL_MAX + 1), ("attempts", 0),
        ("ttl_s", 0), ("guard_s", 0), ("retry_ms", -1.0),
    ],
)
def test_settings_that_make_no_sense_are_named(setting: str, to: float) -> None:
    with pytest.raises(ValueError, match=setting):
        replace(RedisSettings(), **{setting: to})  # type: ignore[arg-type]
