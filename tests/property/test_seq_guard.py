"""The guard makes values a semilattice: whatever order, repetition and grouping, the greatest seq stays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshet.store.memory_store import MemoryEmbeddingStore
from freshet.store.redis_settings import RedisSettings
from freshet.store.redis_store import RedisStore
from freshet.store.value import Seq, encode_value, seq_text
from freshet.stream.embedded import EmbeddedRedis

Write = tuple[str, Seq]
USERS = st.sampled_from(["a", "b", "c", "d", "e"])
NUMBERS = st.one_of(st.integers(0, 11), st.integers(0, 10**15))
SEQS = st.builds(Seq, NUMBERS, NUMBERS)
WRITES = st.lists(st.tuples(USERS, SEQS), max_size=30)
DELETIONS = st.tuples(st.sets(USERS), SEQS)
OPERATIONS = st.lists(st.one_of(WRITES, DELETIONS), max_size=12)
"""Batches of writes, and deletions of some users."""

relaxed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def value(seq: Seq) -> bytes:
    """The one value that a worker writes under this seq."""
    return encode_value(np.full(2, seq.step, dtype="<f4").tobytes(), 2, "v1", seq, -1, 0, None, [])


@pytest.fixture(scope="module")
def guarded(valkey_server: EmbeddedRedis) -> Iterator[RedisStore]:
    """A store on a real server with few keys a call; `versions` keep examples apart."""
    store = RedisStore(RedisSettings(url=valkey_server.url, namespace="guard", keys_per_call=4))
    yield store
    store.close()


@pytest.fixture(scope="module")
def versions() -> Iterator[str]:
    return (f"example-{i}" for i in range(10**9))


@given(a=SEQS, b=SEQS)
def test_texts_compare_as_numbers_do(a: Seq, b: Seq) -> None:
    assert (a.text() < b.text(), a.text() == b.text()) == (a < b, a == b)
    assert Seq.parse(a.text()) == a
    assert seq_text(value(a)).decode() == a.text()


@given(writes=WRITES, data=st.data())
@relaxed
def test_any_order_repetition_and_grouping_gives_the_same(
    guarded: RedisStore, versions: Iterator[str], writes: list[Write], data: st.DataObject
) -> None:
    repeated = writes + data.draw(st.lists(st.sampled_from(writes), max_size=10)) if writes else []
    shuffled = data.draw(st.permutations(repeated))
    version, at = next(versions), 0
    while at < len(shuffled):
        size = data.draw(st.integers(1, len(shuffled)))
        batch = shuffled[at : at + size]
        guarded.upsert(version, [user for user, _ in batch], [value(seq) for _, seq in batch])
        at += size
    greatest: dict[str, Seq] = {}
    for user, seq in writes:
        greatest[user] = max(seq, greatest.get(user, seq))
    assert guarded.get(version, list(greatest)) == [value(seq) for seq in greatest.values()]
    assert set(guarded.user_ids(version)) == set(greatest)


@given(operations=OPERATIONS)
@relaxed
def test_the_twin_does_what_the_server_does(
    guarded: RedisStore, versions: Iterator[str], operations: list[list[Write] | tuple[set[str], Seq]]
) -> None:
    twin, version = MemoryEmbeddingStore(), next(versions)
    for operation in operations:
        if isinstance(operation, tuple):
            gone, seq = sorted(operation[0]), operation[1]
            refused = [store.delete(version, gone, seq).tolist() for store in (twin, guarded)]
        else:
            users, values = [user for user, _ in operation], [value(seq) for _, seq in operation]
            refused = [store.upsert(version, users, values).tolist() for store in (twin, guarded)]
        assert refused[0] == refused[1]
        assert twin.get(version, list("abcde")) == guarded.get(version, list("abcde"))


@given(writes=WRITES, deletions=st.lists(st.tuples(USERS, SEQS), max_size=8), data=st.data())
@relaxed
def test_of_writes_and_deletions_in_any_order_the_greatest_seq_stays(
    guarded: RedisStore, versions: Iterator[str], writes: list[Write], deletions: list[Write], data: st.DataObject
) -> None:
    """As long as the guards last: a deletion is one more write of the semilattice."""
    twin, version = MemoryEmbeddingStore(), next(versions)
    seqs = {seq for _, seq in writes}
    operations = [(u, s, False) for u, s in writes] + [(u, s, True) for u, s in deletions if s not in seqs]
    for user, seq, deletes in data.draw(st.permutations(operations)):
        for store in (twin, guarded):
            if deletes:
                store.delete(version, [user], seq)
            else:
                store.upsert(version, [user], [value(seq)])
    greatest = {user: max((s, gone) for u, s, gone in operations if u == user) for user, _, _ in operations}
    expected = [None if gone else value(seq) for seq, gone in greatest.values()]
    assert guarded.get(version, list(greatest)) == expected
    assert twin.get(version, list(greatest)) == expected


@given(writes=WRITES, at=st.integers(0, 30))
@relaxed
def test_a_batch_that_is_repeated_after_a_cut_connection_changes_nothing_more(
    guarded: RedisStore, versions: Iterator[str], writes: list[Write], at: int
) -> None:
    """The first part of a batch got through, then all of it is written again."""
    version, whole = next(versions), MemoryEmbeddingStore()
    users, values = [user for user, _ in writes], [value(seq) for _, seq in writes]
    guarded.upsert(version, users[:at], values[:at])
    guarded.upsert(version, users, values)
    whole.upsert(version, users, values)
    assert guarded.get(version, list("abcde")) == whole.get(version, list("abcde"))
