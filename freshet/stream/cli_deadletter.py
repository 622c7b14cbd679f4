"""The commands `freshet deadletter list`, `show` and `replay`."""

from __future__ import annotations

import base64
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from freshet.errors import FreshetError

app = typer.Typer(help="Look at records that could not be used, and send them again.", no_args_is_help=True)

HEX_BYTES = 32
"""Bytes on a line of a value that is no text."""
_AGE = re.compile(r"(\d{1,6})(s|min|h|d)")
_AGE_MS = {"s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}

Bootstrap = Annotated[str | None, typer.Option(help="Kafka brokers, host:port[,host:port].", metavar="HOST:PORT")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", help="Only letters with this reason (docs/contracts.md); may be repeated."),
]
Topics = Annotated[
    list[str] | None,
    typer.Option("--topic", help="Only records of this topic, by name or kind (view, purchase...); may be repeated."),
]
Since = Annotated[
    str | None, typer.Option(help="Only letters since a date or time (UTC), or an age: 30min, 2h, 7d.")
]


@app.command("list")
def list_letters(
    reason: Reasons = None,
    topic: Topics = None,
    since: Since = None,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Also those that were sent again and have not come back.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Newest to show.", min=1)] = 20,
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """The newest dead letters that are open, newest last: one line for each record, with its newest state.

    A line is the record's address, the reason, and what to do about it.
    """
    from freshet.stream.deadletter_topic import open_dead_letters

    settings = _settings(bootstrap)
    choice = _choice(settings, reason, topic, since, replayed)
    with open_dead_letters(settings) as letters:
        found = [entry for entry in letters.entries() if choice.holds(entry)]
    if as_json:
        _print_json([_summary(entry) for entry in found[-limit:]])
        return
    if not found:
        typer.echo("no dead letters" + (" of that kind" if reason or topic or since else " are open"), err=True)
    for entry in found[-limit:]:
        counted = f" [sent again {entry.replays}x]" if entry.replays else ""
        state = f" [sent again, not back: {entry.repairs or 'unchanged'}]" if entry.replayed else counted
        typer.echo(_printable(f"{entry.origin}\t{entry.reason}\t{entry.message}{state}"))
    if len(found) > limit:
        typer.echo(f"{len(found) - limit} older ones: --limit {len(found)} shows all", err=True)


@app.command("show")
def show_letter(
    address: Annotated[str, typer.Argument(help="TOPIC:PARTITION:OFFSET of the record, as list prints it.")],
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """The whole of one letter: reason, headers, key and value; what is no text in hexadecimal.

    With --json bytes are in base64, and nothing is lost.
    """
    from freshet.stream.deadletter import Address
    from freshet.stream.deadletter_topic import find, open_dead_letters

    with open_dead_letters(_settings(bootstrap)) as letters:
        entry = find(letters.entries(), Address.parse(address))
        _, letter = next(letters.letters([entry]))
    if as_json:
        headers = [[name, _base64(value)] for name, value in letter.headers]
        whole = {"timestamp_ms": letter.timestamp_ms, "key": _base64(letter.key), "value": _base64(letter.value)}
        _print_json(_summary(entry) | whole | {"headers": headers})
        return
    stated = {
        "record": str(entry.address),
        "first stood at": str(entry.origin),
        "reason": entry.reason,
        "message": entry.message,
        "rejected": _clock(entry.rejected_ms),
        "sent again": f"{entry.replays} times" + (", and once more since" if entry.replayed else ""),
        "record timestamp": _clock(letter.timestamp_ms),
        "not whole": ", ".join(letter.truncated) or "-",
        "key": _readable(letter.key),
        **{f"header {name}": _readable(value) for name, value in letter.headers},
        f"value ({letter.value_bytes} bytes)": "",
    }
    for name, text in stated.items():
        typer.echo(_printable(f"{name}: {text}".rstrip()))
    typer.echo(_block(letter.value))


@app.command("replay")
def replay_letters(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="TOPIC:PARTITION:OFFSET of records, as list prints them.")
    ] = None,
    reason: Reasons = None,
    topic: Topics = None,
    since: Since = None,
    every: Annotated[bool, typer.Option("--all", help="All letters that are open.")] = False,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Repair what the record itself tells: key, partition, unit of time, spelling."),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=JSON", help="FIELD=JSON sets a field, null leaves it out; may be repeated."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and send nothing.")] = False,
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """Send records to their topics again: those named, those that the filters choose, or all.

    Repeating it does no harm: an event that is applied twice changes nothing, and a letter that was sent again is not
    chosen any more until it comes back (docs/operations.md). With --fix or --set only what is then valid is sent.
    """
    from freshet.stream.deadletter import Address
    from freshet.stream.deadletter_repair import Repairs, parse_change
    from freshet.stream.deadletter_replay import Order, open_sender, send_again
    from freshet.stream.deadletter_topic import find, open_dead_letters

    named = [Address.parse(text) for text in addresses or ()]
    if bool(named) + every + bool(reason or topic or since) != 1:
        raise FreshetError("name letters by their addresses, or choose by --reason, --topic, --since, or give --all")
    settings = _settings(bootstrap)
    choice = _choice(settings, reason, topic, since, False)
    order = Order.of(settings, Repairs(fix, tuple(map(parse_change, changes or ()))), bool(named))
    with open_dead_letters(settings) as letters:
        entries = letters.entries()
        chosen = [find(entries, address) for address in named] or [e for e in entries if choice.holds(e)]
        if len(chosen) > 1 and any(name == "event_id" for name, _ in order.repairs.changes):
            raise FreshetError("--set event_id: one id is one event; name one letter")
        if dry_run or not chosen:
            outcomes = _told(send_again(letters.letters(chosen), order, None), as_json)
        else:
            with open_sender(settings) as sender:
                outcomes = _told(send_again(letters.letters(chosen), order, sender), as_json)
    _conclude(outcomes, as_json)


# --- parts --------------------------------------------------------------------------------------


def _settings(bootstrap: str | None) -> Any:
    from freshet.stream.wiring import settings_of

    return settings_of(os.environ, bootstrap, None)


def _choice(
    settings: Any, reasons: list[str] | None, names: list[str] | None, since: str | None, replayed: bool
) -> Any:
    from freshet.stream.deadletter_topic import Choice
    from freshet.stream.rejection import Reason
    from freshet.stream.topics import kinds

    for reason in reasons or ():
        if reason not in set(Reason):
            raise FreshetError(f"--reason {reason} is no reason; there are {', '.join(Reason)}")
    topic_of = {kind.value: topic for topic, kind in kinds(settings.topics).items()}
    chosen = frozenset(topic_of.get(name, name) for name in names or ())
    return Choice(frozenset(reasons or ()), chosen, _since_ms(since, int(time.time() * 1e3)), replayed)


def _since_ms(text: str | None, now_ms: int) -> int | None:
    from freshet.stream.modelling import day_ms

    if text and (found := _AGE.fullmatch(text)):
        return now_ms - int(found[1]) * _AGE_MS[found[2]]
    return day_ms(text, "--since")


def _told(outcomes: Any, as_json: bool) -> list[Any]:
    """All outcomes, each printed as it comes."""
    found = []
    for outcome in outcomes:
        found.append(outcome)
        if not as_json:
            said = "; ".join(outcome.repairs) or "unchanged" if not outcome.why else outcome.why
            typer.echo(_printable(f"{outcome.origin}\t{outcome.outcome}\t{said}"))
    return found


def _conclude(outcomes: list[Any], as_json: bool) -> None:
    counts = dict.fromkeys(("sent", "would be sent", "skipped", "failed"), 0)
    for outcome in outcomes:
        counts[outcome.outcome] += 1
    if as_json:
        shown = [{**outcome._asdict(), "origin": str(outcome.origin)} for outcome in outcomes]
        _print_json({name.replace(" ", "_"): n for name, n in counts.items()} | {"letters": shown})
    else:
        counted = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        typer.echo(counted or "no letter is chosen", err=True)
    if counts["failed"]:
        why = next(outcome.why for outcome in outcomes if outcome.outcome == "failed")
        raise FreshetError(f"{counts['failed']} records were not taken by the broker: {why}. Replay them again")


def _summary(entry: Any) -> dict[str, Any]:
    """A letter without its record, as JSON."""
    return {
        "origin": str(entry.origin), "address": str(entry.address), "topic": entry.address.topic,
        "partition": entry.address.partition, "offset": entry.address.offset, "reason": entry.reason,
        "message": entry.message, "value_bytes": entry.value_bytes, "truncated": list(entry.truncated),
        "dead_lettered_ms": entry.rejected_ms, "replays": entry.replays, "replayed": entry.replayed,
        "repairs": entry.repairs,
    }  # fmt: skip


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _clock(time_ms: int) -> str:
    if not 0 < time_ms < 253_402_300_800_000:
        return "none"
    return datetime.fromtimestamp(time_ms / 1e3, UTC).isoformat(timespec="milliseconds")


def _readable(data: bytes | None) -> str:
    """Text where it is text, else hexadecimal."""
    if data is None:
        return "none"
    text = _text(data)
    return f"0x{data.hex()}" if text is None else text


def _block(value: bytes | None) -> str:
    if value is None:
        return "none"
    text = _text(value)
    rows = range(0, len(value), HEX_BYTES)
    return "\n".join(value[i : i + HEX_BYTES].hex(" ") for i in rows) if text is None else text


def _text(data: bytes) -> str | None:
    """The text of these bytes, if a terminal can show it as it is."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\n\r\t" for c in text) else None


def _printable(text: str) -> str:
    """A line that does nothing to a terminal: a message may quote what a producer sent."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)
