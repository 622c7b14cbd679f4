"""What the composing module decides itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from freshet.errors import FreshetError
from freshet.store import kernels
from freshet.store.embeddings import StoreUnavailable
from freshet.stream import topics, warming
from freshet.stream.eventlog_writer import EventLogWriter
from freshet.stream.events import Kind
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_errors import KafkaUnavailable
from freshet.stream.progress import Bars
from freshet.stream.settings import Settings
from freshet.stream.sink import Stopped
from freshet.stream.starting import ask_topics, wait_for
from freshet.stream.wiring import BEHIND_MS, history_logs, next_event_ms

NOW = 1_763_900_000_000


def test_an_event_stands_at_the_clock_but_behind_the_newest_of_a_replayed_log() -> None:
    assert next_event_ms({"event_time_max": NOW - 5}, NOW) == NOW
    assert next_event_ms({"event_time_max": NOW + 5}, NOW) == NOW
    assert next_event_ms({"event_time_max": NOW - BEHIND_MS}, NOW) == NOW
    old = NOW - BEHIND_MS - 1
    assert next_event_ms({"event_time_max": old}, NOW) == old + 1
    assert next_event_ms({"event_time_max": -1}, NOW) == NOW  # nothing has happened yet


def started_with(*logs: tuple[Path, int | None]) -> dict[str, Any]:
    return {"origin": {"logs": [{"path": str(path), "until_ms": until_ms} for path, until_ms in logs]}}


def test_state_is_rebuilt_from_the_logs_that_workers_name_or_from_the_one_that_is_given(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with EventLogWriter(tmp_path / name, "test"):
            pass
    status = started_with((tmp_path / "a", 5), (tmp_path / "b", None))
    assert [(log.path, end) for log, end in history_logs(status, None, None)] == [
        (tmp_path / "a", 5), (tmp_path / "b", None),
    ]  # fmt: skip
    assert [(log.path, end) for log, end in history_logs(status, tmp_path / "b", 7)] == [(tmp_path / "b", 7)]
    assert history_logs(started_with(), None, None) == []


def test_a_log_that_a_worker_names_and_that_is_not_here_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FreshetError, match=r"event log .*/gone, which is not here.*--backfill"):
        history_logs(started_with((tmp_path / "gone", 5)), None, None)


def test_the_loops_are_compiled_by_one_of_everything_that_can_happen() -> None:
    assert {kind for kind, _ in warming.EVENTS} == set(Kind)
    warming.main()
    assert kernels.weighted_sum.signatures and kernels.place_keys.signatures


class ComingBack:
    """A broker that leaves question after question unanswered, each of them once."""

    def __init__(self, found: dict[str, int]) -> None:
        self.found = found
        self.failed: list[tuple[str, ...]] = []

    def _asked(self, *question: str) -> None:
        if question not in self.failed:
            self.failed.append(question)
            raise KafkaUnavailable("127.0.0.1:9092", "connection refused")

    def describe(self, names: Iterable[str]) -> dict[str, int | None]:
        asked = list(names)
        self._asked("describe", *asked)
        return {name: self.found.get(name) for name in asked}

    def topic_ids(self, names: Iterable[str]) -> dict[str, str | None]:
        asked = list(names)
        self._asked("topic_ids", *asked)
        return {name: f"id of {name}" for name in asked}


def test_who_is_asked_to_stop_while_waiting_asks_for_nothing_more() -> None:
    """What is waited for may be a token, which would end the worker that runs."""
    asked: list[str] = []

    def away() -> None:
        assert not asked, "asked again"
        asked.append("once")
        raise StoreUnavailable("no answer")

    with pytest.raises(Stopped):
        wait_for("Redis", away, Bars(Console(quiet=True)), lambda: bool(asked))
    assert asked == ["once"]
    with pytest.raises(Stopped):
        wait_for("Redis", lambda: asked.append("again"), Bars(Console(quiet=True)), lambda: True)
    assert asked == ["once"]


@pytest.mark.parametrize("role", ["all", "items", "users"])
def test_a_worker_that_starts_waits_for_the_answer_to_every_question(role: str) -> None:
    settings = replace(Settings(), worker=replace(Settings().worker, role=role))
    names = settings.topics
    broker = ComingBack({spec.name: spec.partitions for spec in topics.specs(names)})
    quiet = Bars(Console(quiet=True))
    asked = wait_for("Kafka", lambda: ask_topics(cast(TopicAdmin, broker), settings), quiet, lambda: False)
    assert len(broker.failed) == (3 if role == "users" else 2)
    assert asked.partitions == names.partitions
    assert asked.ids == {name: f"id of {name}" for name in names.inputs}
    if role == "users":
        assert set(asked.read) == {*names.by_user, names.state_products}
    else:
        assert set(asked.read) == set(names.inputs)
