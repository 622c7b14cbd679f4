"""The commands that make and show a bundle: `freshet train`, `dayzero` and `card`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from freshet.errors import FreshetError

console = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
BundlePath = Annotated[Path, typer.Option("--bundle", help="Folder of the frozen model.")]


def train(
    log: Annotated[Path, typer.Argument(help="Event log.")],
    bundle: BundlePath = Path("bundle"),
    before: Annotated[
        str | None, typer.Option(help="Train on events before this date (default: 7 days before the end).")
    ] = None,
    loss: Annotated[str, typer.Option(help="softmax or bpr.")] = "softmax",
    budget_s: Annotated[float, typer.Option(help="Seconds to train for; 0 trains all epochs.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Two runs with one seed and no budget give the same bytes.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train both towers on an event log and freeze them into a bundle."""
    from freshet.stream.modelling import train_bundle
    from freshet.stream.progress import Bars

    with Bars(console) as bars:
        card = train_bundle(log, bundle, before, loss, budget_s, seed, bars)
    _show_card(card, as_json)


def dayzero(
    log: Annotated[Path, typer.Argument(help="Event log.")],
    bundle: BundlePath = Path("bundle"),
    before: Annotated[str | None, typer.Option(help="Use events before this date (default: all).")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a bundle without training, from the graph alone, in seconds."""
    from freshet.stream.modelling import dayzero_bundle
    from freshet.stream.progress import Bars

    with Bars(console) as bars:
        card = dayzero_bundle(log, bundle, before, bars)
    _show_card(card, as_json)


def card(
    bundle: Annotated[Path, typer.Argument(help="Folder of the frozen model.")] = Path("bundle"),
    html: Annotated[Path | None, typer.Option(help="Write the page with its figures to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a bundle was made and how well it ranks what came after: its evaluation card."""
    from freshet.model.bundle import Bundle

    found = Bundle.load(bundle)
    if not found.card:
        raise FreshetError(f"the bundle at {bundle} has no card: freshet train and freshet dayzero make one")
    if html is not None:
        if not found.page:
            raise FreshetError(f"the bundle at {bundle} has no page: freshet train and freshet dayzero make one")
        try:
            html.write_text(found.page)
        except OSError as e:
            raise FreshetError(f"--html {html} cannot be written: {e.strerror or e}") from e
    if as_json:
        _print_json(found.card)
        return
    _tables(found.model_version, found.card)
    if html is not None:
        typer.echo(f"page written to {html}")


def _show_card(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(made)
        return
    _tables(made["model_version"], made["card"])
    typer.echo(f"bundle written to {made['path']}; its page is {made['path']}/card.html")


def _tables(version: str, card: Mapping[str, Any]) -> None:
    from freshet.model.card import summary

    typer.echo(version)
    for title, head, rows in summary(card):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        Console(width=160).print(table)
    if not card.get("windows"):
        typer.echo("nothing happened after its cut, so there is nothing to measure with")


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
