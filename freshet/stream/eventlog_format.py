"""What reader and writer of an event log share: the files' names, the manifest, the error."""

from __future__ import annotations

import msgspec

from freshet.errors import FreshetError
from freshet.stream.events import Kind

FORMAT_VERSION = 1
MANIFEST_FILE = "log.json"
TIE_ORDER = (Kind.PRODUCT, Kind.PROFILE, Kind.SESSION, Kind.VIEW, Kind.PURCHASE)
"""Kinds in the order in which events of one timestamp are given."""


class EventLogError(FreshetError):
    """An event log that cannot be read or written; the message names the file and, where there is one, the line."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `log.json` says. Times in ms since the epoch, null for a log without events.

    `counts`: events by kind; `bytes`: size of each file by its name, so that a file which was edited or cut short
    is noticed; `notes`: what the conversion left out, and why, with counts.
    """

    source: str
    counts: dict[str, int]
    first_ms: int | None
    last_ms: int | None
    notes: dict[str, int | str] = {}
    bytes: dict[str, int] = {}
    format_version: int = FORMAT_VERSION


def file_name(kind: Kind) -> str:
    """Name of the file that holds `kind`, as in `view.jsonl`; packed ones have `.gz` after it."""
    return f"{kind.value}.jsonl"
