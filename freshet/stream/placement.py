"""Is a record on the partition that Kafka's murmur2 gives its key?

A producer with another partitioner (librdkafka's default, say) spreads one user over two partitions; with
many workers each would then hold half of the user. A key is hashed once and remembered, so that the check
costs a dictionary look-up a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from freshet.stream.records import Record
from freshet.stream.rejection import Reason, Rejection, reject
from freshet.stream.topics import partition_of


class Placement:
    """Checks records of topics with known numbers of partitions (topic -> number)."""

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self._home: dict[str, dict[bytes, int]] = {}
        self._partitions = dict(partitions)
        shared: dict[int, dict[bytes, int]] = {}
        for topic, count in partitions.items():
            self._home[topic] = shared.setdefault(count, {})

    def misplaced(self, records: Sequence[Record]) -> dict[int, Rejection]:
        """The places of the records that are on a wrong partition, with the reason. Records without a key are
        left to the decoder."""
        found = {}
        for place, record in enumerate(records):
            if record.key is None:
                continue
            home = self._home[record.topic]
            expected = home.get(record.key)
            if expected is None:
                expected = home[record.key] = partition_of(record.key, self._partitions[record.topic])
            if expected != record.partition:
                found[place] = self._reason(record, expected)
        return found

    def _reason(self, record: Record, expected: int) -> Rejection:
        return reject(
            Reason.WRONG_PARTITION,
            f"key {record.key!r} is on partition {record.partition} of {record.topic}, murmur2 gives {expected}: "
            "set partitioner=murmur2_random in librdkafka clients (Java clients do so by default)",
        )
