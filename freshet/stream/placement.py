"""Is a record on the partition that Kafka's murmur2 gives its key?

A producer with another partitioner (librdkafka's default, say) spreads one user over two partitions; with
many workers each would then hold half of the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from freshet.store import kernels
from freshet.store.columns import I32
from freshet.stream.records import Record
from freshet.stream.rejection import Reason, Rejection, reject


def partitions_of(keys: Sequence[bytes], partitions: int) -> I32:
    """The partition of each key in a topic of `partitions`, [n] int32: `topics.partition_of` of many."""
    out = np.empty(len(keys), dtype=np.int32)
    starts = np.zeros(len(keys) + 1, dtype=np.int64)
    np.cumsum([len(key) for key in keys], out=starts[1:])
    kernels.place_keys(np.frombuffer(b"".join(keys), dtype=np.uint8), starts, partitions, out)
    return out


class Placement:
    """Checks records of topics with known numbers of partitions (topic -> number).

    Nothing is kept of any key: not of a forgotten user's, nor of however many there are.
    """

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self._partitions = dict(partitions)

    def misplaced(self, records: Sequence[Record]) -> dict[int, Rejection]:
        """The places of the records that are on a wrong partition, with the reason. Records without a key are
        left to the decoder."""
        found = {}
        for count in {self._partitions[topic] for topic in {record.topic for record in records}}:
            keyed = [
                (place, record.key, record.partition)
                for place, record in enumerate(records)
                if record.key is not None and self._partitions[record.topic] == count
            ]
            if keyed:
                places, keys, actual = zip(*keyed, strict=True)
                expected = partitions_of(keys, count)
                for i in np.flatnonzero(expected != np.array(actual)).tolist():
                    found[places[i]] = self._reason(records[places[i]], int(expected[i]))
        return found

    def _reason(self, record: Record, expected: int) -> Rejection:
        return reject(
            Reason.WRONG_PARTITION,
            f"key {record.key!r} is on partition {record.partition} of {record.topic}, murmur2 gives {expected}: "
            "set partitioner=murmur2_random in librdkafka clients (Java clients do so by default)",
        )
