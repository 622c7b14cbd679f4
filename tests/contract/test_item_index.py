"""What every item index has to do, whichever library is behind it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.faiss_index import FaissFlatIndex, FaissHnswIndex, make_index, open_index
from freshet.store.index import IndexCorrupt, InvalidVectors, ItemIndex, MemoryItemIndex
from freshet.store.index_settings import IndexSettings

F32 = NDArray[np.float32]
DIM = 8
GRAPH_ALWAYS = IndexSettings(
    kind="hnsw", hnsw_exact_below_rows=0, hnsw_exact_below_share=0.0, hnsw_tombstones_min=50, hnsw_rows_per_lock=16
)
"""HNSW that answers from its graph, however few products there are."""

MAKERS: dict[str, Callable[[int], ItemIndex]] = {
    "memory": MemoryItemIndex,
    "flat": FaissFlatIndex,
    "hnsw": lambda dim: FaissHnswIndex(dim, IndexSettings(kind="hnsw")),
    "hnsw-graph": lambda dim: FaissHnswIndex(dim, GRAPH_ALWAYS),
}
Make = Callable[[int], ItemIndex]


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


def unit(rng: np.random.Generator, n: int, dim: int = DIM) -> F32:
    x = rng.standard_normal((n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clustered(rng: np.random.Generator, n: int, dim: int, clusters: int) -> F32:
    centres = rng.standard_normal((clusters, dim))
    x = (centres[rng.integers(0, clusters, n)] + 0.4 * rng.standard_normal((n, dim))).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def axes(count: int = DIM) -> F32:
    return np.eye(count, DIM, dtype=np.float32)


# --- contents -----------------------------------------------------------------------------------


def test_an_empty_index_finds_nothing(make: Make) -> None:
    index = make(DIM)
    result = index.search(axes(2), 5, allowed=["a"], excluded=[[], ["a"]])
    assert result.ids == [[], []]
    assert [s.shape for s in result.scores] == [(0,), (0,)]
    assert len(index) == 0
    assert index.ids() == []
    vectors, present = index.get(["a"])
    assert vectors.shape == (1, DIM)
    assert present.tolist() == [False]
    index.remove(["a"])
    index.upsert([], np.empty((0, DIM), dtype=np.float32))
    assert index.search(np.empty((0, DIM), dtype=np.float32), 3).ids == []


def test_answers_known_by_hand(make: Make) -> None:
    index = make(DIM)
    index.upsert(["x", "y", "z"], axes(3))
    query = np.zeros((2, DIM), dtype=np.float32)
    query[0, :3] = [0.1, 0.9, 0.5]
    query[1, :3] = [0.7, -0.2, 0.0]
    result = index.search(query, 2)
    assert result.ids == [["y", "z"], ["x", "z"]]
    np.testing.assert_allclose(result.scores[0], [0.9, 0.5], atol=1e-6)
    np.testing.assert_allclose(result.scores[1], [0.7, 0.0], atol=1e-6)
    assert result.scores[0].dtype == np.float32


def test_k_above_the_size_gives_everything_once(make: Make) -> None:
    index = make(DIM)
    index.upsert(["x", "y", "z"], axes(3))
    result = index.search(axes(1), 100)
    assert sorted(result.ids[0]) == ["x", "y", "z"]
    assert result.ids[0][0] == "x"


def test_an_upsert_moves_a_product_and_never_doubles_it(make: Make) -> None:
    index = make(DIM)
    index.upsert(["x", "y"], axes(2))
    for _ in range(3):
        index.upsert(["x"], axes(3)[2:])
    assert len(index) == 2
    assert sorted(index.ids()) == ["x", "y"]
    assert index.search(axes(3), 2).ids[2][0] == "x"
    assert sorted(index.search(axes(1), 10).ids[0]) == ["x", "y"]
    np.testing.assert_array_equal(index.get(["x"])[0][0], axes(3)[2])


def test_of_an_id_given_twice_the_last_counts(make: Make) -> None:
    index = make(DIM)
    index.upsert(["x", "y", "x"], axes(3))
    assert sorted(index.ids()) == ["x", "y"]
    np.testing.assert_array_equal(index.get(["x", "y"])[0], axes(3)[[2, 1]])
    assert index.search(axes(3)[2:], 1).ids == [["x"]]


def test_removed_products_are_not_found_and_unknown_ones_are_ignored(make: Make) -> None:
    index = make(DIM)
    names = [f"p{i}" for i in range(DIM)]
    index.upsert(names, axes())
    index.remove(["p0", "nobody", "p3", "p3", f"p{DIM - 1}"])
    left = [n for n in names if n not in ("p0", "p3", f"p{DIM - 1}")]
    assert sorted(index.ids()) == left
    assert sorted(index.search(axes(1), DIM).ids[0]) == left
    vectors, present = index.get(names)
    assert [n for n, there in zip(names, present) if there] == left
    assert not vectors[~present].any()
    np.testing.assert_array_equal(vectors[present], axes()[present])
    index.upsert(["p3"], axes(1))
    assert index.search(axes(1), 1).ids == [["p3"]]
    index.remove(index.ids())
    assert len(index) == 0
    assert index.search(axes(1), 3).ids == [[]]


def test_vectors_that_are_handed_out_or_in_are_copies(make: Make) -> None:
    index = make(DIM)
    given_in = axes(1)
    index.upsert(["x"], given_in)
    given_in[:] = 7
    index.get(["x"])[0][:] = 9
    np.testing.assert_array_equal(index.get(["x"])[0], axes(1))


def test_a_vector_of_zeros_is_a_vector(make: Make) -> None:
    index = make(DIM)
    index.upsert(["zero", "x"], np.stack([np.zeros(DIM, dtype=np.float32), axes(1)[0]]))
    result = index.search(np.stack([axes(1)[0], np.zeros(DIM, dtype=np.float32)]), 5)
    assert result.ids[0] == ["x", "zero"]
    assert sorted(result.ids[1]) == ["x", "zero"]
    assert result.scores[1].tolist() == [0.0, 0.0]


def test_ids_may_be_any_text(make: Make, tmp_path: Path) -> None:
    index = make(DIM)
    names = ["", "ø 日本", 'q"\\\n', "x" * 256]
    index.upsert(names, axes(4))
    index.snapshot(tmp_path / "s", "v1")
    again = make(DIM)
    again.load(tmp_path / "s")
    assert [again.search(axes(4), 1).ids[i] for i in range(4)] == [[n] for n in names]


# --- filters ------------------------------------------------------------------------------------


def test_allowed_and_excluded(make: Make) -> None:
    rng = np.random.default_rng(1)
    index, oracle = make(DIM), MemoryItemIndex(DIM)
    names = [f"p{i}" for i in range(300)]
    vectors = unit(rng, 300)
    for each in (index, oracle):
        each.upsert(names, vectors)
        each.remove(names[::7])
    queries = unit(rng, 4)
    best = oracle.search(queries, 20)
    excluded = [best.ids[0], [], ["nobody", best.ids[2][0]], names]
    allowed = [*names[:150], "nobody", names[1]]
    for kwargs in ({"allowed": allowed}, {"excluded": excluded}, {"allowed": allowed, "excluded": excluded}):
        found, wanted = index.search(queries, 10, **kwargs), oracle.search(queries, 10, **kwargs)  # type: ignore[arg-type]
        for i in range(4):
            assert len(found.ids[i]) == len(wanted.ids[i])
            assert set(found.ids[i]) <= set(index.ids())
            if "allowed" in kwargs:
                assert set(found.ids[i]) <= set(allowed)
            if "excluded" in kwargs:
                assert not set(found.ids[i]) & set(excluded[i])
            assert list(found.scores[i]) == sorted(found.scores[i], reverse=True)
        hits = sum(len(set(a) & set(b)) for a, b in zip(found.ids, wanted.ids))
        assert hits >= 0.95 * sum(map(len, wanted.ids))
        if isinstance(index, FaissFlatIndex):
            assert found.ids == wanted.ids
    assert index.search(queries, 5, allowed=[]).ids == [[]] * 4
    assert index.search(queries, 5, allowed=["p1"]).ids == [["p1"]] * 4


# --- bad input ----------------------------------------------------------------------------------


def bad(value: float) -> F32:
    out = axes(2)
    out[1, 3] = value
    return out


@pytest.mark.parametrize(
    ("ids", "vectors", "says"),
    [
        (["a", "b"], np.zeros((2, DIM + 1), dtype=np.float32), rf"\[2, {DIM + 1}\].*\[n, {DIM}\]"),
        (["a"], np.zeros(DIM, dtype=np.float32), rf"\[{DIM}\]"),
        (["a", "b", "c"], axes(2), "3 ids came with 2 vectors"),
        (["a", "b"], bad(np.nan), "vector 1 .*'b'.*finite"),
        (["a", "b"], bad(np.inf), "vector 1 .*'b'.*finite"),
        (["a", "b"], axes(2).astype(np.float64) * 1e300, "vector 0 .*'a'.*finite"),
        (["a"], [["one"] * DIM], "not an array of numbers"),
    ],
)
def test_an_upsert_that_cannot_be_taken_changes_nothing(make: Make, ids: list[str], vectors: F32, says: str) -> None:
    index = make(DIM)
    index.upsert(["x"], axes(1))
    with pytest.raises(InvalidVectors, match=says):
        index.upsert(ids, vectors)
    assert index.ids() == ["x"]


def test_a_search_that_cannot_be_made(make: Make) -> None:
    index = make(DIM)
    index.upsert(["x"], axes(1))
    with pytest.raises(InvalidVectors, match=rf"\[n, {DIM}\]"):
        index.search(axes(1)[0], 1)
    with pytest.raises(InvalidVectors, match="finite"):
        index.search(bad(np.nan), 1)
    with pytest.raises(InvalidVectors, match="k is 0"):
        index.search(axes(1), 0)
    with pytest.raises(InvalidVectors, match="1 sets for 2 queries"):
        index.search(axes(2), 1, excluded=[["x"]])


# --- against the oracle -------------------------------------------------------------------------

OPERATION = st.tuples(
    st.sampled_from(["upsert", "upsert", "remove"]),
    st.lists(st.tuples(st.integers(0, 12), st.lists(st.integers(-3, 3), min_size=3, max_size=3)), max_size=10),
)


@pytest.mark.parametrize("name", ["flat", "hnsw"])
@given(
    operations=st.lists(OPERATION, max_size=12),
    k=st.integers(1, 15),
    query=st.lists(st.integers(-3, 3), min_size=3, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_any_sequence_gives_what_the_oracle_gives(
    name: str, operations: list[tuple[str, list[tuple[int, list[int]]]]], k: int, query: list[int]
) -> None:
    index, oracle = MAKERS[name](3), MemoryItemIndex(3)
    for kind, rows in operations:
        ids = [f"p{i}" for i, _ in rows]
        for each in (index, oracle):
            if kind == "upsert":
                each.upsert(ids, np.array([v for _, v in rows], dtype=np.float32).reshape(-1, 3))
            else:
                each.remove(ids)
    assert sorted(index.ids()) == sorted(oracle.ids())
    assert len(index) == len(oracle)
    all_ids = [f"p{i}" for i in range(13)]
    for part, expected in zip(index.get(all_ids), oracle.get(all_ids)):
        np.testing.assert_array_equal(part, expected)
    q = np.array([query], dtype=np.float32)
    found, wanted = index.search(q, k), oracle.search(q, k)
    np.testing.assert_array_equal(found.scores[0], wanted.scores[0])  # whole numbers: sums are exact
    assert len(set(found.ids[0])) == len(found.ids[0])
    if found.ids[0]:
        np.testing.assert_array_equal(oracle.get(found.ids[0])[0] @ q[0], found.scores[0])


def test_batches_equal_single_queries(make: Make) -> None:
    rng = np.random.default_rng(3)
    index = make(DIM)
    index.upsert([f"p{i}" for i in range(200)], unit(rng, 200))
    queries = unit(rng, 40)  # FAISS takes another path from 20 queries on
    together = index.search(queries, 5)
    for i in range(40):
        alone = index.search(queries[i : i + 1], 5)
        assert alone.ids[0] == together.ids[i]
        np.testing.assert_allclose(alone.scores[0], together.scores[i], atol=1e-6)


# --- snapshots ----------------------------------------------------------------------------------


def filled(make: Make, seed: int = 5, n: int = 60) -> ItemIndex:
    index = make(DIM)
    names = [f"p{i}" for i in range(n)]
    index.upsert(names, unit(np.random.default_rng(seed), n))
    index.remove(names[::5])
    return index


def same(a: ItemIndex, b: ItemIndex) -> bool:
    ids = sorted(a.ids())
    return ids == sorted(b.ids()) and np.array_equal(a.get(ids)[0], b.get(ids)[0])


def test_a_snapshot_comes_back(make: Make, tmp_path: Path) -> None:
    index, queries = filled(make), unit(np.random.default_rng(6), 5)
    index.snapshot(tmp_path / "deep" / "index", "model-7")
    again = make(DIM)
    again.upsert(["other"], axes(1))
    assert again.load(tmp_path / "deep" / "index") == "model-7"
    assert same(index, again)
    assert again.search(queries, 10).ids == index.search(queries, 10).ids
    again.upsert(["new"], axes(1))
    again.remove(["p1"])
    assert "new" in again.search(axes(1), 1).ids[0]
    opened, version = open_index(tmp_path / "deep" / "index")
    assert version == "model-7"
    assert same(index, opened)


def test_an_empty_snapshot_comes_back(make: Make, tmp_path: Path) -> None:
    make(DIM).snapshot(tmp_path, "v1")
    index = filled(make)
    assert index.load(tmp_path) == "v1"
    assert len(index) == 0
    index.upsert(["x"], axes(1))
    assert index.search(axes(1), 3).ids == [["x"]]


def test_a_snapshot_replaces_the_former_one_and_leaves_no_files(make: Make, tmp_path: Path) -> None:
    filled(make, 1).snapshot(tmp_path, "v1")
    (tmp_path / "manifest.json.left-by-a-crash").write_text("{")
    newer = filled(make, 2, 80)
    newer.snapshot(tmp_path, "v2")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["manifest.json", *(entry["name"] for entry in manifest["files"].values())]
    )
    again = make(DIM)
    assert again.load(tmp_path) == "v2"
    assert same(newer, again)


@pytest.mark.parametrize("after", range(8))
def test_a_crash_at_any_step_of_a_snapshot_leaves_the_former_one(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The disk fails at the n-th sync or rename, and nothing is cleaned up, as after a power cut."""
    former, newer = filled(make, 1), filled(make, 2)
    former.snapshot(tmp_path, "v1")
    done = 0

    def wrap(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            nonlocal done
            if done == after:
                raise OSError(28, "No space left on device")
            done += 1
            real(*args)

        return call

    monkeypatch.setattr(os, "fsync", wrap(os.fsync))
    monkeypatch.setattr(os, "replace", wrap(os.replace))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with contextlib.suppress(OSError):
        newer.snapshot(tmp_path, "v2")
    monkeypatch.undo()
    again = make(DIM)
    version = again.load(tmp_path)
    assert same(again, {"v1": former, "v2": newer}[version])
    assert version == ("v1" if after < 5 else "v2")


def test_a_full_disk_leaves_the_former_snapshot_and_no_rubbish(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(make, 1).snapshot(tmp_path, "v1")
    before = sorted(tmp_path.iterdir())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        filled(make, 2).snapshot(tmp_path, "v2")
    assert sorted(tmp_path.iterdir()) == before
    assert make(DIM).load(tmp_path) == "v1"


def data_files(path: Path) -> dict[str, Path]:
    return {p.name.split("-")[0].removesuffix(".json"): p for p in path.iterdir()}


@pytest.mark.parametrize("how", ["flip", "truncate", "extend", "empty", "delete"])
@pytest.mark.parametrize("which", ["manifest", "ids", "data"])
def test_a_damaged_snapshot_is_refused_by_name(make: Make, tmp_path: Path, which: str, how: str) -> None:
    filled(make).snapshot(tmp_path, "v1")
    files = data_files(tmp_path)
    target = files[which] if which in files else files.get("vectors") or files["graph"]
    raw = bytearray(target.read_bytes())
    if how == "flip":
        raw[len(raw) // 2] ^= 1
    elif how == "truncate":
        del raw[-1]
    elif how == "extend":
        raw += b"0"
    elif how == "empty":
        raw.clear()
    target.write_bytes(raw)
    if how == "delete":
        target.unlink()
    index = filled(make, 9)
    before = filled(make, 9)
    with pytest.raises(IndexCorrupt, match=target.name):
        index.load(tmp_path)
    assert same(index, before)
    assert issubclass(IndexCorrupt, FreshetError)


def test_a_foreign_snapshot_is_refused(make: Make, tmp_path: Path) -> None:
    index = make(DIM)
    with pytest.raises(IndexCorrupt, match="holds no index snapshot"):
        index.load(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"format": "another"}')
    with pytest.raises(IndexCorrupt, match="not the manifest of a Freshet item index"):
        index.load(tmp_path)
    make(DIM + 1).snapshot(tmp_path / "dim", "v1")
    with pytest.raises(IndexCorrupt, match=f"dimension {DIM + 1}, not {DIM}"):
        index.load(tmp_path / "dim")
    other = MemoryItemIndex if not isinstance(index, MemoryItemIndex) else FaissFlatIndex
    other(DIM).snapshot(tmp_path / "kind", "v1")
    with pytest.raises(IndexCorrupt, match="kind"):
        index.load(tmp_path / "kind")
    index.snapshot(tmp_path / "later", "v1")
    manifest = tmp_path / "later" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(IndexCorrupt, match="format version 9"):
        index.load(tmp_path / "later")


# --- threads ------------------------------------------------------------------------------------


def test_searches_and_snapshots_beside_updates(make: Make, tmp_path: Path) -> None:
    """A product's vector is one of those it was given, scores fit it, and none is found twice."""
    dim, n, rounds = 16, 400, 25
    rng = np.random.default_rng(11)
    index = make(dim)
    stable = [f"s{i}" for i in range(50)]
    moving = [f"m{i}" for i in range(n)]
    anchor = unit(rng, 50, dim)
    index.upsert(stable, anchor)
    failures: list[str] = []
    stop = threading.Event()

    def search(seed: int) -> None:
        local = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                found = index.search(unit(local, 3, dim), 15, excluded=[["s0"], [], ["m0"]])
                for ids, scores in zip(found.ids, found.scores):
                    if len(set(ids)) != len(ids):
                        failures.append(f"twice in {ids}")
                    if np.any(np.abs(scores) > 1.001) or np.any(np.diff(scores) > 0):
                        failures.append(f"scores {scores}")
                vectors, present = index.get(stable)
                if not present.all() or not np.array_equal(vectors, anchor):
                    failures.append("a product that nobody touched changed")
                vectors, present = index.get(moving)
                norms = np.linalg.norm(vectors[present], axis=1)
                if np.any(np.abs(norms - 1) > 1e-3):
                    failures.append("a torn vector")
        except Exception as e:
            failures.append(repr(e))

    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    last = unit(rng, n, dim)
    for i in range(rounds):
        index.upsert(moving, unit(rng, n, dim))
        index.remove(moving[i::rounds])
        if i % 8 == 0:
            index.snapshot(tmp_path, "v1")
    index.upsert(moving, last)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    if isinstance(index, FaissHnswIndex):
        assert index.wait_rebuilt(60)
    assert len(index) == n + 50
    np.testing.assert_array_equal(index.get(moving)[0], last)
    make(dim).load(tmp_path)


def test_two_writers(make: Make) -> None:
    index = make(DIM)
    vectors = unit(np.random.default_rng(2), 200)
    names = [[f"{w}-{i}" for i in range(200)] for w in range(2)]

    def write(which: int) -> None:
        for i in range(0, 200, 10):
            index.upsert(names[which][i : i + 10], vectors[i : i + 10])
            index.remove(names[which][i : i + 5])

    threads = [threading.Thread(target=write, args=(w,)) for w in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index) == 200
    for each in names:
        kept = [name for i, name in enumerate(each) if i % 10 >= 5]
        np.testing.assert_array_equal(index.get(kept)[0], vectors[[i for i in range(200) if i % 10 >= 5]])


# --- HNSW ---------------------------------------------------------------------------------------


def recall(index: ItemIndex, oracle: ItemIndex, queries: F32, k: int, allowed: list[str] | None = None) -> float:
    found, wanted = index.search(queries, k, allowed), oracle.search(queries, k, allowed)
    return sum(len(set(a) & set(b)) for a, b in zip(found.ids, wanted.ids)) / sum(map(len, wanted.ids))


def test_hnsw_recall_on_clusters_through_moves_and_rebuilds() -> None:
    rng = np.random.default_rng(21)
    dim, n = 32, 6000
    index = FaissHnswIndex(dim, IndexSettings(kind="hnsw", hnsw_exact_below_rows=0, hnsw_tombstones_min=500))
    oracle = FaissFlatIndex(dim)
    names = [f"p{i}" for i in range(n)]
    x = clustered(rng, n, dim, 60)
    for each in (index, oracle):
        each.upsert(names, x)
    queries = clustered(rng, 100, dim, 60)
    assert recall(index, oracle, queries, 20) >= 0.95
    assert recall(index, oracle, queries, 20, names[:3000]) >= 0.95
    assert recall(index, oracle, queries, 20, names[:400]) == 1.0  # few enough for an exact search
    moved = clustered(rng, n // 2, dim, 60)
    for each in (index, oracle):
        each.remove(names[::10])
        each.upsert(names[: n // 2], moved)
    assert recall(index, oracle, queries, 20) >= 0.95
    assert index.wait_rebuilt(120)
    assert index.rebuilds >= 1
    assert index.tombstones <= 0.25 * n
    assert same(index, oracle)
    assert recall(index, oracle, queries, 20) >= 0.95


def test_a_rebuild_takes_over_what_changed_meanwhile() -> None:
    rng = np.random.default_rng(22)
    index = FaissHnswIndex(DIM, GRAPH_ALWAYS)
    oracle = MemoryItemIndex(DIM)
    names = [f"p{i}" for i in range(600)]
    for step in range(60):
        chosen = [names[i] for i in rng.choice(600, 40, replace=False)]
        vectors = unit(rng, 40)
        for each in (index, oracle):
            each.upsert(chosen, vectors)
            each.remove(chosen[: step % 5])
    assert index.wait_rebuilt(60)
    assert index.rebuilds >= 2
    assert same(index, oracle)
    everything = index.search(unit(rng, 1), len(oracle)).ids[0]
    assert sorted(everything) == sorted(oracle.ids())


def test_a_rebuild_that_fails_leaves_the_index_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(23)
    index, oracle = FaissHnswIndex(DIM, GRAPH_ALWAYS), MemoryItemIndex(DIM)
    names = [f"p{i}" for i in range(100)]

    def no_memory(threads: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("freshet.store.faiss_search.faiss.omp_set_num_threads", no_memory)
        for _ in range(2):
            vectors = unit(rng, 100)
            index.upsert(names, vectors)
            oracle.upsert(names, vectors)
        assert index.wait_rebuilt(60)
    assert index.rebuilds == 0
    assert same(index, oracle)
    for _ in range(4):
        vectors = unit(rng, 100)
        index.upsert(names, vectors)
        oracle.upsert(names, vectors)
    assert index.wait_rebuilt(60)
    assert index.rebuilds >= 1
    assert same(index, oracle)


def test_loading_during_a_rebuild_keeps_what_was_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(24)
    index = FaissHnswIndex(DIM, GRAPH_ALWAYS)
    index.upsert(["x", "y"], axes(2))
    index.snapshot(tmp_path, "v1")
    names = [f"p{i}" for i in range(3000)]
    index.upsert(names, unit(rng, 3000))
    index.remove(names[:1500])
    index.load(tmp_path)
    assert index.wait_rebuilt(60)
    assert sorted(index.ids()) == ["x", "y"]


def test_an_unchanged_vector_costs_no_tombstone() -> None:
    index = FaissHnswIndex(DIM, GRAPH_ALWAYS)
    index.upsert(["x", "y"], axes(2))
    index.upsert(["x", "y"], axes(2))
    assert index.tombstones == 0
    index.upsert(["x"], axes(3)[2:])
    assert index.tombstones == 1


# --- the factory --------------------------------------------------------------------------------


def test_the_factory_makes_what_the_settings_name() -> None:
    assert isinstance(make_index(IndexSettings(), DIM), FaissFlatIndex)
    assert isinstance(make_index(IndexSettings(kind="hnsw"), DIM), FaissHnswIndex)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "ivf"}, {"hnsw_m": 1}, {"hnsw_ef_search": 0}, {"hnsw_tombstone_share_max": 1.0}],
)
def test_settings_that_cannot_be_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IndexSettings(**wrong)  # type: ignore[arg-type]
