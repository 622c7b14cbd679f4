"""The command `freshet query`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from freshet.errors import FreshetError

console = Console(stderr=True)


def query(
    text: Annotated[
        str, typer.Argument(help="PREDICT product_id FOR user ['ID'] USING ... (docs/query.md).", metavar="QUERY")
    ],
    log: Annotated[Path | None, typer.Argument(help="Event log; without one the live system answers.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Answer with this bundle; nothing is chosen.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File for all users, .jsonl or .parquet (default: predictions.jsonl, if it is not there)."),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where results are kept for the next query.")] = Path(".cache/query"),
    keep: Annotated[bool, typer.Option(help="Read and write the cache.")] = True,
    bootstrap: Annotated[
        str | None, typer.Option(help="Kafka brokers, host:port[,host:port].", metavar="HOST:PORT")
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option("--redis", help="Redis or Valkey. A password belongs into FRESHET_REDIS_PASSWORD.", metavar="URL"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """One line instead of a pipeline: predict products for a user, or for all users into a file."""
    from freshet.stream.progress import Bars
    from freshet.stream.query.run import run_on_live, run_on_log
    from freshet.stream.wiring import settings_of

    if log is not None and (redis or bootstrap):
        raise FreshetError("a LOG and a live system (--redis, --bootstrap): give one of the two")
    if log is None and bundle is not None:
        raise FreshetError("--bundle answers from a LOG: the live system has its own; give a LOG")
    settings = settings_of(os.environ, bootstrap, redis)
    if log is None:
        asked, answer = run_on_live(text, settings, out)
    else:
        with Bars(console) as bars:
            asked, answer = run_on_log(
                text, log, settings, bundle, cache if keep else None, out, bars, time.monotonic
            )  # fmt: skip
    if as_json:
        sys.stdout.write(msgspec.json.encode(answer.as_json(asked.explain)).decode() + "\n")
        return
    for note in answer.notes:
        typer.echo(note, err=True)
    for line in answer.as_lines(asked.explain):
        typer.echo(line)
