"""What the sources share: their rows, their times, and ids for rows that have none."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import xxhash

from freshet.errors import FreshetError

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""
Row = dict[str, str]
"""One row of a CSV file by column; an empty text is no value."""

_OPEN: dict[str, Callable[[Path, str], IO[bytes]]] = {".csv": open, ".gz": gzip.open, ".xz": lzma.open}  # type: ignore[dict-item]


class SourceError(FreshetError):
    """A data set that is missing, or is not what its name says."""


def csv_file(source: Path | None, pattern: str) -> Path:
    """The one file to read: `source` itself, or in the folder `source` the one that fits `pattern`."""
    if source is None:
        raise SourceError("this data set does not come with pip: give the folder or file that holds it")
    if source.is_file():
        return source
    found = sorted(source.glob(pattern)) if source.is_dir() else []
    if len(found) != 1:
        raise SourceError(f"{source}: {len(found)} files fit {pattern}, one is needed")
    return found[0]


def csv_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """All rows of a CSV file (UTF-8; plain, .gz or .xz). Raises SourceError where one of `columns` is missing."""
    opened = _OPEN.get(path.suffix)
    if opened is None:
        raise SourceError(f"{path}: not a CSV file (.csv, .csv.gz or .csv.xz)")
    try:
        with opened(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise SourceError(f"{path}: no column {', '.join(missing)}; this is another data set")
    return list(reader)


def time_ms(text: str) -> int:
    """Milliseconds of `2016-02-01 13:05:59`, also with ` UTC` or a fraction, taken for UTC."""
    return round(datetime.fromisoformat(text.removesuffix(" UTC")).replace(tzinfo=UTC).timestamp() * 1e3)


def iso_date(time_ms: int) -> str:
    """The UTC date of a time, as in `2016-02-01`."""
    return datetime.fromtimestamp(time_ms / 1e3, UTC).date().isoformat()


def content_id(*fields: str) -> str:
    """An id made of what the row says: rows that say the same have the same id. 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest("\x1f".join(fields).encode())


def integer(text: str) -> str:
    """The id in a whole number that was written as a float: `17850` of `17850.0`."""
    return str(int(float(text))) if "." in text else text


def non_negative(text: str) -> float | None:
    """The number, or None for an empty text or a number below 0."""
    return float(text) if text and float(text) >= 0 else None
