"""What a seed decides beside what is published and which faults strike."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from freshet.store.snapshot_settings import SnapshotSettings
from freshet.stream.updater import RippleSettings
from freshet.stream.worker import WorkerSettings


@dataclass(frozen=True)
class Shape:
    """What a seed decides beside the faults."""

    partitions: int
    records: int
    published_first: int
    batch_max: int
    publish_share: float
    snapshots: SnapshotSettings | None
    worker: WorkerSettings
    ripple: RippleSettings
    users_workers: int
    """Workers that share the partitions of users, beside one of items; 0 for a worker alone."""
    session_s: float
    late_writes: bool
    """Whether what a worker sends to the store lands at the last moment, not at once."""
    shards: int = 1
    """Into how many the products are cut, each with a worker of its own."""

    def sharded(self, shards: int) -> Shape:
        """With the products cut into so many, and so with workers of users of their own."""
        return replace(self, shards=shards, users_workers=max(1, self.users_workers)) if shards > 1 else self

    @staticmethod
    def of(seed: int) -> Shape:
        """The shape of a seed."""
        rng = random.Random(f"shape {seed}")
        records = rng.randint(10, 90)
        settings = WorkerSettings(
            commit_interval_ms=rng.choice([0.0, 5.0, 50.0]), commit_wait_ms=rng.choice([20.0, 500.0]),
            status_interval_ms=rng.choice([20.0, 200.0]), sentinel_interval_ms=rng.choice([10.0, 40.0, 200.0]),
            idle_after_ms=rng.choice([1.0, 10.0, 50.0]), ripple_turn_ms=rng.choice([0.1, 1.0, 3.0]),
            rewrite_turn_ms=rng.choice([0.1, 1.0, 15.0]), rewrite_chunk=rng.choice([1, 2, 5, 256]),
            flush_timeout_s=0.5, grace_s=rng.choice([0.01, 1.0]), follow=rng.random() < 0.3,
        )  # fmt: skip
        if seed % 5 == 4:  # a worker that has been replaced learns it from the values it writes
            settings = replace(settings, status_interval_ms=1_000.0, sentinel_interval_ms=1_000.0)
        snapshots = SnapshotSettings(
            "simulated", keep=rng.randint(1, 3), interval_s=rng.choice([0.02, 0.1, 0.5]),
            entries_per_part=rng.choice([2, 20, 1000]),
        )  # fmt: skip
        ripple = RippleSettings(
            rng.choice([0.0, 20.0]), rng.choice([0.0, 50.0]), rng.choice([0.1, 0.5]), rng.choice([1, 3, 128])
        )  # fmt: skip
        shape = Shape(
            rng.randint(1, 3), records, rng.randint(0, records), rng.choice([1, 4, 12]), rng.choice([0.05, 0.2, 1.0]),
            snapshots if rng.random() < 0.75 else None, settings, ripple, rng.choice([0, 0, 0, 1, 2, 3]),
            rng.choice([0.02, 0.1]), late_writes=seed % 2 == 1,
        )  # fmt: skip
        return replace(shape, worker=replace(settings, poll_records_max=shape.batch_max))
