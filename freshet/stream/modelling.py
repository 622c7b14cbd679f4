"""From an event log to a bundle: what `freshet train` and `freshet dayzero` do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS
from freshet.store.history import History
from freshet.stream.eventlog import EventLog
from freshet.stream.progress import Bars

if TYPE_CHECKING:
    from freshet.model.fit_ranker import FitRankerConfig


def day_ms(text: str | None, setting: str) -> int | None:
    """Milliseconds of an ISO date or date-time (UTC). Raises FreshetError naming the setting."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise FreshetError(f"{setting} {text!r} is not a date: write it as 2017-12-01 or 2017-12-01T08:00") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e3)


def read_history(log: EventLog, until_ms: int | None, bars: Bars) -> History:
    """Every interaction of a log before `until_ms` (all by default)."""
    total, done, parts = sum(log.counts.values()), 0, []
    for columns in log.columns(until_ms=until_ms):
        parts.append(columns)
        done += 20_000
        bars.update("read log", min(done, total), total)
    return History.of(parts)


def train_bundle(
    log: Path, bundle: Path, before: str | None, loss: str, budget_s: float, seed: int, bars: Bars
) -> dict[str, Any]:
    """Train on the log, save the bundle, return its card. Raises FreshetError for what a user can mend."""
    if loss not in ("softmax", "bpr"):
        raise FreshetError(f"--loss {loss!r} is not known: softmax or bpr")
    from freshet.model.fit_ranker import FitRankerConfig
    from freshet.model.train import TrainConfig, train  # torch is loaded when it is needed

    history = read_history(EventLog(log), None, bars)
    settings = TrainConfig(loss=loss, time_budget_s=budget_s, seed=seed)  # type: ignore[arg-type]
    try:
        made = train(history, settings, split_ms=day_ms(before, "--before"), progress=bars.share)
    except ValueError as e:
        raise FreshetError(f"{log}: {e}") from e
    ranker = FitRankerConfig(window_days=settings.validation_days)  # what training was stopped by, and nothing later
    made = _ranked(made, made, history, ranker)
    return _saved(_with_card(made, made, history, bars), bundle)


def dayzero_bundle(log: Path, bundle: Path, before: str | None, bars: Bars) -> dict[str, Any]:
    """Make a bundle without training, save it, return its card. Its ranker is fitted on the last weeks, to embeddings
    of what was before them."""
    from freshet.model.dayzero import dayzero
    from freshet.model.fit_ranker import FitRankerConfig

    cut_ms = day_ms(before, "--before")
    history = read_history(EventLog(log), cut_ms, bars)
    ranker = FitRankerConfig()
    try:
        made = dayzero(history)
        earlier = dayzero(history, cut_ms=made.cut_ms - int(ranker.window_days * DAY_MS))
    except ValueError as e:
        raise FreshetError(f"{log}: {e}") from e
    made = _ranked(made, earlier, history, ranker)
    return _saved(_with_card(made, earlier, history, bars), bundle)


def _ranked(made: Bundle, earlier: Bundle, history: History, config: FitRankerConfig) -> Bundle:
    """`made` with the ranker that fits what came after `earlier` was made."""
    from freshet.model.at_time import TowersAt
    from freshet.model.evaluation.final import ranker_of

    return made.with_ranker(ranker_of(TowersAt.of(earlier, history), history, earlier.cut_ms + 1, config))


def _with_card(made: Bundle, earlier: Bundle, history: History, bars: Bars) -> Bundle:
    """`made` with a card of how `earlier`, the same or a like one of less, ranks what came after it; without the ranker
    where that was fitted on more than the first of these windows."""
    from freshet.model.evaluation.card import make_card
    from freshet.model.evaluation.page import page_of

    measured = make_card(earlier, history, with_ranker=earlier is made, progress=bars.share)
    of_made = {"model_version": made.model_version, "cut_ms": made.cut_ms, "ranker": vars(made.ranker)}
    card = {**made.card, **measured, **of_made}
    return replace(made, card=card, page=page_of(card))


def _saved(made: Bundle, path: Path) -> dict[str, Any]:
    made.save(path)
    return {
        "path": str(path),
        "model_version": made.model_version,
        "kind": made.kind,
        "cut_ms": made.cut_ms,
        "products": len(made.vocabulary.row_of),
        "ranker": vars(made.ranker),
        "card": dict(made.card),
    }
