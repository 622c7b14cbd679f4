"""Data sets to event logs: one small file a source, listed in `CONVERTERS`."""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path
from typing import Any

from freshet.errors import FreshetError
from freshet.stream.convert.sources import Progress, SourceError
from freshet.stream.eventlog import EventLog
from freshet.stream.eventlog_writer import EventLogWriter

CONVERTERS = ("completejourney", "online_retail", "rees46", "jd")
"""Each is a module of this package with `convert(source, writer, progress)`."""


def convert(
    kind: str, source: Path | None, log: Path, progress: Progress = lambda done, total: None, overwrite: bool = False
) -> dict[str, Any]:
    """Write the data set at `source` as the event log `log`; the same source gives the same bytes.

    `source` may be None for a set that comes with pip (completejourney). Gives the log's manifest with its folder.
    Raises FreshetError for an unknown `kind`, a `source` that is missing or not that set, and for what
    EventLogWriter refuses.
    """
    if kind not in CONVERTERS:
        raise FreshetError(f"no data set is called {kind!r}: choose one of {', '.join(CONVERTERS)}")
    module = import_module(f"freshet.stream.convert.{kind}")
    with EventLogWriter(log, source=kind, overwrite=overwrite) as writer:
        try:
            module.convert(source, writer, progress)
        except (ValueError, csv.Error) as error:
            raise SourceError(f"{source}: not the data set {kind}: {error}") from error
    manifest = EventLog(log).manifest
    return {
        "log": str(log),
        "source": manifest.source,
        "counts": manifest.counts,
        "first_ms": manifest.first_ms,
        "last_ms": manifest.last_ms,
        "notes": manifest.notes,
    }
