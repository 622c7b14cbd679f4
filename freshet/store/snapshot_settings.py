"""Settings of snapshots of the graph; free of any client library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SnapshotSettings:
    """Where snapshots of the graph are kept, and how often one is taken."""

    place: str | None = None
    """A folder, or a URL that fsspec knows (`s3://bucket/freshet`); without one there are no snapshots."""
    keep: int = 3
    """Newest snapshots kept of each scope; older ones are deleted after a new one is complete."""
    interval_s: float = 300.0
    """Seconds from the end of a snapshot to the beginning of the next."""
    entries_per_part: int = 100_000
    """List entries copied between two turns of the stream: bounds the pause it makes."""

    def __post_init__(self) -> None:
        for name in ("keep", "entries_per_part"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        if not self.interval_s > 0:
            raise ValueError(f"interval_s is {self.interval_s}: it has to be greater than 0")
