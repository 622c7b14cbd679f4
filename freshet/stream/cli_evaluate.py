"""The command `freshet evaluate`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from freshet.errors import FreshetError

console = Console(stderr=True)


def evaluate(
    log: Annotated[Path, typer.Argument(help="Event log.")],
    train_before: Annotated[
        str | None, typer.Option(help="Systems learn from events before this date (default: 14 days before the end).")
    ] = None,
    test_from: Annotated[str | None, typer.Option(help="Begin of the test window (default: 7 days later).")] = None,
    test_until: Annotated[str | None, typer.Option(help="End of the test window (default: 7 days later).")] = None,
    validate_from: Annotated[str | None, typer.Option(help="Begin of the window in which settings are chosen.")] = None,
    validate_until: Annotated[str | None, typer.Option(help="End of the window in which settings are chosen.")] = None,
    known_until: Annotated[
        str | None, typer.Option(help="Systems know users' events before this date (default: as --train-before).")
    ] = None,
    bundle: Annotated[list[Path] | None, typer.Option(help="Rank with this bundle, too; may be repeated.")] = None,
    systems: Annotated[str, typer.Option(help="Names of systems, comma-separated, or 'all'.")] = "all",
    targets: Annotated[str, typer.Option(help="What is predicted: purchases, views or both.")] = "purchases",
    users_max: Annotated[int, typer.Option(help="Users ranked in the test window, drawn at random (0: all).")] = 0,
    budget_s: Annotated[float, typer.Option(help="Seconds for each training of the towers; 0: all epochs.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of training, samples and the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON instead of tables.")] = False,
) -> None:
    """Rank the whole catalogue with every system a shop could pick, and compare them (docs/evaluation.md)."""
    missing = [p for p in ("torch", "scipy") if find_spec(p) is None]
    if missing:
        raise FreshetError(f"{', '.join(missing)} not installed: pip install 'freshet[evaluate]'")
    from freshet.model.evaluation.report import tables
    from freshet.stream.evaluating import Asked, evaluate_log
    from freshet.stream.progress import Bars

    asked = Asked(
        train_before, test_from, test_until, validate_from, validate_until, known_until,
        tuple(bundle or ()), systems, targets, users_max, budget_s, seed,
    )  # fmt: skip
    with Bars(console) as bars:
        found = evaluate_log(log, asked, bars)
    for name, why in found["left_out"].items():
        typer.echo(f"{name} is left out: {why}", err=True)
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    for title, header, rows in tables(found):
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        Console(width=200).print(table)
