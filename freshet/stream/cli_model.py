"""The commands that make and show a bundle: `freshet train`, `dayzero` and `card`."""

from __future__ import annotations

import os
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


SettingsPath = Annotated[Path | None, typer.Option("--settings", help="Settings file, as freshet tune writes it.")]
Before = Annotated[str | None, typer.Option(help="Train on events before this date (default: 7 days before the end).")]


def _serving() -> Any:
    """The settings of the environment, which the workers that serve a bundle run with."""
    from freshet.stream.settings import from_environment

    return from_environment(os.environ)


def train(
    log: Annotated[Path, typer.Argument(help="Event log.")],
    bundle: BundlePath = Path("bundle"),
    before: Before = None,
    settings: SettingsPath = None,
    loss: Annotated[str | None, typer.Option(help="softmax (default), in_batch or bpr.")] = None,
    budget_s: Annotated[
        float | None, typer.Option(min=0.0, help="Seconds to train for; 0 trains all epochs (default).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Two runs with one seed and no budget give the same model to the byte.")
    ] = None,
    refit: Annotated[bool, typer.Option(help="Then train as long on everything, the days before the end too.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keeps the state until the bundle is saved (default: BUNDLE.checkpoint).")
    ] = None,
    restart: Annotated[bool, typer.Option(help="Forget the checkpoint of an interrupted run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train both towers on an event log and freeze them into a bundle. An interrupted run goes on when it is started
    again; `torchrun --nproc-per-node N -m freshet.stream.cli train LOG` trains in N processes."""
    from freshet.stream.modelling import TrainOrder, train_bundle
    from freshet.stream.progress import Bars

    order = TrainOrder(log, bundle, before, settings, loss, budget_s, seed, refit, checkpoint, restart, _serving())
    try:
        with Bars(console) as bars:
            card = train_bundle(order, bars)
    except KeyboardInterrupt:
        if any(state.exists() for state in order.checkpoints()):
            console.print("interrupted: the same command goes on from the last checkpoint, --restart begins anew")
        raise
    if card:
        _show_card(card, as_json)


def tune(
    log: Annotated[Path, typer.Argument(help="Event log.")],
    out: Annotated[Path, typer.Option(help="Where the settings are written, for freshet train --settings.")] = Path(
        "settings.json"
    ),
    before: Before = None,
    settings: SettingsPath = None,
    tries: Annotated[int, typer.Option(help="Trainings at most, the first with the settings as they are.", min=1)] = 20,
    budget_s: Annotated[float, typer.Option(help="Seconds for all of them; 0 is no limit.", min=0.0)] = 600.0,
    seed: Annotated[int, typer.Option(help="Of what is tried.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find settings of the training for a log of your own, judged by the week after the split, and write them to a
    file. What is tried is in docs/training.md."""
    from freshet.stream.modelling import TuneOrder, tune_settings
    from freshet.stream.progress import Bars

    with Bars(console) as bars:
        found = tune_settings(TuneOrder(log, out, before, settings, tries, budget_s, seed), bars)
    if as_json:
        _print_json(found)
        return
    table = Table("changed", "recall@20 all", "novel", "score", "seconds", title="tries, the best first")
    for row in found["tries"]:
        changes = ", ".join(f"{name} {value}" for part in row["changed"].values() for name, value in part.items())
        recall = [f"{row['recall'][kind]:.4f}" if row["recall"] else "-" for kind in ("all", "novel")]
        table.add_row(changes or "nothing", *recall, row["note"] or f"{row['score']:.4f}", f"{row['seconds']:.1f}")
    Console(width=160).print(table)
    if found["kept"]:
        typer.echo("nothing is better by more than noise: the settings stay as they were")
    typer.echo(f"settings written to {found['path']}; freshet train LOG --settings {found['path']}")


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
        card = dayzero_bundle(log, bundle, before, bars, _serving())
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


COMMANDS = (train, tune, dayzero, card)


def _show_card(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(made)
        return
    _tables(made["model_version"], made["card"])
    typer.echo(f"bundle written to {made['path']}; its page is {made['path']}/card.html")


def _tables(version: str, card: Mapping[str, Any]) -> None:
    from freshet.model.card import remarks, summary

    typer.echo(version)
    for title, head, rows in summary(card):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        Console(width=160).print(table)
    for remark in remarks(card):
        typer.echo(remark)


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
