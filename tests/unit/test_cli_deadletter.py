"""The commands of dead letters, as far as they go without a broker."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from freshet.errors import FreshetError
from freshet.stream.cli import app
from freshet.stream.cli_deadletter import _block, _printable, _readable, _since_ms

NOW = 1_764_000_000_000


def test_since_is_an_age_or_a_time() -> None:
    assert _since_ms(None, NOW) is None
    assert [_since_ms(text, NOW) for text in ("30s", "90min", "2h", "7d")] == [
        NOW - 30_000, NOW - 5_400_000, NOW - 7_200_000, NOW - 604_800_000,
    ]  # fmt: skip
    assert _since_ms("2025-11-24T16:00:00+00:00", NOW) == NOW
    for text in ("2 h", "yesterday", "7w", "-2h", ""):
        with pytest.raises(FreshetError, match="--since"):
            _since_ms(text, NOW)


def test_nothing_that_a_producer_sent_reaches_a_terminal_as_it_is() -> None:
    assert _printable("a\tb\x1b[2J\u202e\n") == "a\tb\\x1b[2J\\u202e\\n"
    assert _readable(b"\x1b[2J") == "0x1b5b324a"
    assert _readable("käse".encode()) == "käse"
    assert (_readable(None), _readable(b"")) == ("none", "")
    assert _block(b'{"a":\n 1}') == '{"a":\n 1}'
    assert _block(b"\xff" * 33) == " ".join(["ff"] * 32) + "\nff"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["replay"], "--all"),
        (["replay", "view:0:1", "--all"], "--all"),
        (["replay", "--all", "--reason", "wrong_type"], "--all"),
        (["replay", "nonsense"], "TOPIC:PARTITION:OFFSET"),
        (["replay", "--all", "--set", "quantity"], "FIELD=VALUE"),
        (["replay", "--reason", "bad"], "negative_number"),
        (["list", "--since", "soon"], "--since"),
        (["list", "--reason", "bad"], "negative_number"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_before_any_broker_is_asked(words: list[str], says: str) -> None:
    done: Any = CliRunner().invoke(app, ["deadletter", *words])
    assert isinstance(done.exception, FreshetError)
    assert says in str(done.exception)
