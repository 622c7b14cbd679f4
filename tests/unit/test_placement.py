import os

from freshet.stream.placement import Placement, partitions_of
from freshet.stream.records import Record
from freshet.stream.rejection import Reason
from freshet.stream.topics import partition_of


def test_a_key_on_its_murmur2_partition_passes_and_any_other_is_named() -> None:
    home = partition_of(b"u1", 4)
    placement = Placement({"t": 4})
    right = Record("t", home, 0, 1, b"u1", b"{}")
    wrong = Record("t", (home + 1) % 4, 1, 1, b"u1", b"{}")
    found = placement.misplaced([right, wrong, right, Record("t", 0, 2, 1, None, b"{}")])
    assert list(found) == [1]
    assert found[1].reason is Reason.WRONG_PARTITION
    assert f"murmur2 gives {home}" in found[1].message


def test_topics_of_different_sizes_are_judged_by_their_own() -> None:
    placement = Placement({"t": 4, "other": 3})
    records = [Record(t, partition_of(b"u7", n), 0, 1, b"u7", None) for t, n in (("t", 4), ("other", 3))]
    assert placement.misplaced(records) == {}


def test_many_keys_are_placed_as_one_is() -> None:
    keys = [os.urandom(n % 9) for n in range(200)] + ["zo\u00eb".encode(), b"u1", b"x" * 256]
    for partitions in (1, 3, 12):
        assert partitions_of(keys, partitions).tolist() == [partition_of(key, partitions) for key in keys]
    assert partitions_of([b""], 5).tolist() == [partition_of(b"", 5)]
    assert partitions_of([], 5).tolist() == []
