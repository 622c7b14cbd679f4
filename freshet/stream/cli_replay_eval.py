"""The command `freshet replay-eval`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

console = Console(stderr=True)


def replay_eval(
    log: Annotated[Path, typer.Argument(help="Event log.")],
    since: Annotated[str, typer.Option("--from", help="First date that is played; what is before is known.")],
    until: Annotated[str | None, typer.Option(help="Date to stop before (default: the log's end).")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle made before --from (default: day zero of what is before).")
    ] = None,
    targets: Annotated[str, typer.Option(help="orders, or views: what comes next within a visit.")] = "orders",
    k: Annotated[int, typer.Option("--k", help="Length of the ranking.", min=1, max=1000)] = 20,
    max_asks: Annotated[int, typer.Option(help="Orders asked for at most, drawn by the seed.", min=1)] = 20_000,
    ranker: Annotated[
        bool, typer.Option("--ranker", help="Rank as a reader recommends, not by inner product alone.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the sample and of the intervals.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="SVG to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """What streaming buys: rankings before each order with embeddings that are fresh, an hour, a day or longer old."""
    from freshet.model.evaluation.freshness_report import table
    from freshet.stream import replay_eval as run
    from freshet.stream.progress import Bars

    settings = run.ReplaySettings(since, until, targets, k, max_asks, seed, ranker)
    with Bars(console) as bars:
        result = run.replay_eval(log, bundle, settings, bars)
    if plot is not None:
        run.plot(result, plot)
    for line in table(result.groups):
        typer.echo(line)
    if as_json:
        sys.stdout.write(msgspec.json.encode(result.as_json()).decode() + "\n")
