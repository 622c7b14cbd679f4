"""The command `freshet backfill`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

console = Console(stderr=True)


def backfill(
    log: Annotated[Path, typer.Argument(help="Event log.")],
    snapshots: Annotated[
        str | None, typer.Option(help="Folder or URL where workers find their snapshots.", metavar="PLACE")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Take only events before this date.")] = None,
    bootstrap: Annotated[
        str | None, typer.Option(help="Kafka brokers, host:port[,host:port].", metavar="HOST:PORT")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Make snapshots from an event log, for workers to begin with where the broker has not kept enough.

    What the newest snapshots hold is kept. The log has to reach up to the oldest record that the broker still has.
    """
    from freshet.stream import topics
    from freshet.stream.backfilling import backfill as run
    from freshet.stream.kafka import TopicAdmin
    from freshet.stream.modelling import day_ms
    from freshet.stream.progress import Bars
    from freshet.stream.starting import worker_settings
    from freshet.stream.wiring import settings_of

    settings = worker_settings(settings_of(os.environ, bootstrap, None), snapshots=snapshots)
    with Bars(console) as bars:
        counts = topics.verify_topics(TopicAdmin(settings.kafka), settings.topics)
        made = run(settings, counts, log, day_ms(until, "--until"), bars.update)
    if as_json:
        sys.stdout.write(msgspec.json.encode(made).decode() + "\n")
    else:
        typer.echo(", ".join(f"{value} {name}" for name, value in made.items()))
