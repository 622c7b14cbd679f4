"""The commands about snapshots of the graph: `freshet snapshot list`, `inspect` and `verify`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from freshet.errors import FreshetError

if TYPE_CHECKING:
    from freshet.store.snapshot_file import SnapshotReader
    from freshet.store.snapshot_places import SnapshotPlace

EXIT_CHECK_FAILED = 1
snapshot_app = typer.Typer(help="Look at snapshots of the graph, and check them.", no_args_is_help=True)

PlaceOption = Annotated[
    str | None,
    typer.Option(
        "--place", "--snapshots", help="Folder or URL (default: FRESHET_SNAPSHOT_PLACE).", metavar="PATH_OR_URL"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@snapshot_app.command("list")
def snapshot_list(place: PlaceOption = None, as_json: AsJson = False) -> None:
    """Snapshots at a place, newest first, by their names alone."""
    from freshet.store.snapshot_places import parse_name

    with _opened(place) as (where, found):
        parsed = [(name, p) for name in found.names() if (p := parse_name(name)) is not None]
    rows = [{"name": name, "scope": p.scope, "created_ms": p.created_ms} for name, p in parsed]
    if as_json:
        _print_json({"place": where, "snapshots": rows})
        return
    if not rows:
        typer.echo(f"no snapshots at {where}", err=True)
    for name, p in parsed:
        typer.echo(f"{name}\t{p.scope}\t{_date(p.created_ms)}")


@snapshot_app.command("inspect")
def snapshot_inspect(
    name: Annotated[str | None, typer.Argument(help="Snapshot (default: the newest).")] = None,
    place: PlaceOption = None,
    as_json: AsJson = False,
) -> None:
    """What a snapshot says of itself: scope, positions, limits, and how much it holds. Reads its manifest alone."""
    with _opened(place) as (where, found):
        chosen = _chosen(found, where, name)[0]
        if name is None and not as_json:
            typer.echo("the newest one; `freshet snapshot list` names the others", err=True)
        with _read(found, chosen) as reader:
            manifest = reader.manifest
    about: dict[str, Any] = {
        "name": chosen, "scope": manifest.scope, "created_ms": manifest.created_ms,
        "format_version": manifest.format_version, "model_version": manifest.model_version,
        "size_bytes": sum(member.size_bytes for member in manifest.members), "counts": manifest.counts,
        "limits": msgspec.to_builtins(manifest.limits), "topic_ids": manifest.topic_ids,
        "logs": msgspec.to_builtins(manifest.logs or ()),
        "positions": [{"topic": t, "partition": p, "offset": offset} for t, p, offset in manifest.positions],
    }  # fmt: skip
    if as_json:
        _print_json(about)
        return
    for field in ("name", "scope", "format_version", "model_version", "size_bytes"):
        typer.echo(f"{field}: {about[field]}")
    typer.echo(f"created: {_date(manifest.created_ms)}")
    for title in ("counts", "limits"):
        typer.echo(f"{title}: " + ", ".join(f"{key} {value:,}" for key, value in about[title].items()))
    for log in manifest.logs or ():
        typer.echo(f"holds the event log {log.path}" + (f" before {_date(log.until_ms)}" if log.until_ms else ""))
    for topic, partition, offset in manifest.positions:
        typer.echo(f"position: {topic}[{partition}] from offset {offset}")


@snapshot_app.command("verify")
def snapshot_verify(
    name: Annotated[str | None, typer.Argument(help="Snapshot (default: every one at the place).")] = None,
    place: PlaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Read snapshots and check every byte; ends with 1 where one is damaged or of another format."""
    checked = []
    with _opened(place) as (where, found):
        for chosen in _chosen(found, where, name, all_of_them=True):
            problem = None
            try:
                with _read(found, chosen) as reader:
                    reader.verify()
            except FreshetError as e:
                problem = str(e)
            checked.append({"name": chosen, "whole": problem is None, "problem": problem})
    passed = all(row["whole"] for row in checked)
    if as_json:
        _print_json({"place": where, "passed": passed, "snapshots": checked})
    else:
        for row in checked:
            typer.echo(f"{row['name']}: whole" if row["whole"] else row["problem"])
    if not passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


@contextmanager
def _opened(place: str | None) -> Iterator[tuple[str, SnapshotPlace]]:
    """The place and how it is called; an OSError over it becomes an error a user can mend."""
    from freshet.store.snapshot_places import open_place
    from freshet.stream.settings import from_environment

    where = place or from_environment(os.environ).snapshot.place
    if where is None:
        raise FreshetError("no place for snapshots is set: name one with --snapshots, or set FRESHET_SNAPSHOT_PLACE")
    try:
        yield where, open_place(where)
    except OSError as e:
        raise FreshetError(f"snapshots at {where} cannot be read ({e}): check the place and its permissions") from e


def _chosen(place: SnapshotPlace, where: str, name: str | None, all_of_them: bool = False) -> list[str]:
    """The one that was named, or the newest, or all; at least one. Raises FreshetError."""
    names = place.names()
    if name is not None and name not in names:
        raise FreshetError(f"there is no snapshot {name!r} at {where}: freshet snapshot list names those there are")
    if not names:
        raise FreshetError(f"there are no snapshots at {where}: check --snapshots")
    return [name] if name is not None else names if all_of_them else names[:1]


@contextmanager
def _read(place: SnapshotPlace, name: str) -> Iterator[SnapshotReader]:
    from freshet.store.snapshot_file import SnapshotReader

    with place.read(name) as file:
        yield SnapshotReader(file, name)


def _date(created_ms: int) -> str:
    return datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
