"""From an event log to a bundle: what `freshet train` and `freshet dayzero` do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS
from freshet.store.history import History
from freshet.stream.eventlog import EventLog
from freshet.stream.progress import Bars
from freshet.stream.settings import Settings

if TYPE_CHECKING:
    from freshet.model.fit_ranker import FitRankerConfig
    from freshet.model.settings_file import Chosen


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


@dataclass(frozen=True)
class TrainOrder:
    """The options of `freshet train`, as they were given; None is what the settings file or the default says."""

    log: Path
    bundle: Path
    before: str | None = None
    settings: Path | None = None
    loss: str | None = None
    budget_s: float | None = None
    seed: int | None = None
    refit: bool = False
    checkpoint: Path | None = None
    restart: bool = False
    serving: Settings = field(default_factory=Settings)
    """Of the workers that will serve the bundle: how long the lists are that its ranker reads."""

    def chosen(self) -> Chosen:
        """The settings. Raises FreshetError for one that cannot be."""
        from freshet.model.settings_file import Chosen, read_settings

        found = read_settings(self.settings) if self.settings is not None else Chosen()
        if self.loss not in (None, "softmax", "in_batch", "bpr"):
            raise FreshetError(f"--loss {self.loss!r} is not known: softmax, in_batch or bpr")
        given: dict[str, Any] = {"loss": self.loss, "time_budget_s": self.budget_s, "seed": self.seed}
        train = replace(found.train, **{name: value for name, value in given.items() if value is not None})
        return replace(found, train=train)

    def checkpoints(self) -> tuple[Path, Path]:
        """Where the states of the training and of the one on everything are kept."""
        path = self.checkpoint or self.bundle.with_name(f"{self.bundle.name}.checkpoint")
        return path, path.with_name(f"{path.name}.refit")


def train_bundle(order: TrainOrder, bars: Bars) -> dict[str, Any]:
    """Train on the log, save the bundle, return its card; a training that was interrupted is gone on with.

    Each process that `torchrun` started trains on its share; the first saves. Raises FreshetError for what a user can
    mend.
    """
    from freshet.model.peers import joined  # torch is loaded when it is needed
    from freshet.model.train import train

    chosen, states = order.chosen(), order.checkpoints()
    split_ms = day_ms(order.before, "--before")
    with joined() as peers:
        bars = bars if peers.first else Bars.silent()
        if order.restart and peers.first:
            for state in states:
                state.unlink(missing_ok=True)
        peers.wait()
        history = read_history(EventLog(order.log), None, bars)
        # fitted on what training was stopped by, no more
        ranker = replace(lists_of(order.serving), window_days=chosen.train.validation_days)
        common: dict[str, Any] = {"config": chosen.towers.config(), "progress": bars.share, "peers": peers}
        try:
            earlier = train(history, chosen.train, split_ms=split_ms, checkpoint=states[0], **common)
            made = earlier
            if order.refit:
                whole = chosen.train.until_best(earlier.card["training"])
                end_ms = (history.span_ms or (0, 0))[1] + 1
                made = train(history, whole, split_ms=end_ms, checkpoint=states[1], **common)
        except ValueError as e:
            raise FreshetError(f"{order.log}: {e}") from e
        if not peers.first:
            return {}
        made = _ranked(made, earlier, history, ranker)
        card = _saved(_with_card(made, earlier, history, ranker, bars), order.bundle)
        for state in states:
            state.unlink(missing_ok=True)
        return card


@dataclass(frozen=True)
class TuneOrder:
    """The options of `freshet tune`, as they were given."""

    log: Path
    out: Path
    before: str | None = None
    settings: Path | None = None
    tries: int = 20
    budget_s: float = 600.0
    seed: int = 0


def tune_settings(order: TuneOrder, bars: Bars) -> dict[str, Any]:
    """Try settings on the log, write the best to a file, return the tries. Raises FreshetError for what a user can
    mend."""
    from freshet.model.settings_file import Chosen, read_settings
    from freshet.model.tune import tune

    base = read_settings(order.settings) if order.settings is not None else Chosen()
    history = read_history(EventLog(order.log), None, bars)
    split_ms = day_ms(order.before, "--before")
    try:
        found = tune(history, base, split_ms, order.tries, order.budget_s, order.seed, bars.share)
    except ValueError as e:
        raise FreshetError(f"{order.log}: {e}") from e
    try:
        order.out.write_bytes(msgspec.json.format(msgspec.json.encode(found.chosen.changed()), indent=2) + b"\n")
    except OSError as e:
        raise FreshetError(f"--out {order.out} cannot be written: {e.strerror or e}") from e
    tries = sorted(found.tries, key=lambda one: -one.score)
    return {"path": str(order.out), "kept": found.kept, **found.chosen.changed(), "tries": [vars(t) for t in tries]}


def dayzero_bundle(
    log: Path, bundle: Path, before: str | None, bars: Bars, serving: Settings | None = None
) -> dict[str, Any]:
    """Make a bundle without training, save it, return its card. Its ranker is fitted on the last weeks, to embeddings
    of what was before them and to lists as the workers of `serving` keep them."""
    history = read_history(EventLog(log), day_ms(before, "--before"), bars)
    try:
        ranker = lists_of(serving or Settings())
        made, earlier = ranked_dayzero(history, ranker=ranker)
    except ValueError as e:
        raise FreshetError(f"{log}: {e}") from e
    return _saved(_with_card(made, earlier, history, ranker, bars), bundle)


def lists_of(serving: Settings) -> FitRankerConfig:
    """A ranker is fitted to the lists that it will get: those that workers with these settings keep and write."""
    from freshet.model.fit_ranker import FitRankerConfig

    return FitRankerConfig(
        bought_max=serving.sink.bought_max, recent_max=serving.sink.recent_max, lines_max=serving.graph.purchased_max
    )


def ranked_dayzero(
    history: History, cut_ms: int | None = None, ranker: FitRankerConfig | None = None
) -> tuple[Bundle, Bundle]:
    """Day zero of a history up to `cut_ms` (all of it by default), with its ranker, and the bundle of what was before
    the weeks that it was fitted on. Raises ValueError."""
    from freshet.model.dayzero import dayzero
    from freshet.model.fit_ranker import FitRankerConfig

    ranker = ranker or FitRankerConfig()
    made = dayzero(history, cut_ms=cut_ms)
    earlier = dayzero(history, cut_ms=made.cut_ms - int(ranker.window_days * DAY_MS))
    return _ranked(made, earlier, history, ranker), earlier


def _ranked(made: Bundle, earlier: Bundle, history: History, config: FitRankerConfig) -> Bundle:
    """`made` with the ranker that fits what came after `earlier` was made."""
    from freshet.model.at_time import TowersAt
    from freshet.model.evaluation.final import ranker_of

    return made.with_ranker(ranker_of(TowersAt.of(earlier, history), history, earlier.cut_ms + 1, config))


def _with_card(made: Bundle, earlier: Bundle, history: History, ranker: FitRankerConfig, bars: Bars) -> Bundle:
    """`made` with a card of how `earlier`, the same or a like one of less, ranks what came after it; without the ranker
    where that was fitted on more than the first of these windows."""
    from freshet.model.evaluation.card import make_card
    from freshet.model.evaluation.page import page_of

    same = earlier.cut_ms == made.cut_ms
    measured = make_card(made if same else earlier, history, ranker=ranker if same else None, progress=bars.share)
    lines = history.purchases
    orders = len(np.unique(lines.event[lines.time <= made.cut_ms]))
    of_made = {
        "model_version": made.model_version, "cut_ms": made.cut_ms, "orders": orders,
        "ranker": vars(made.ranker.weights), "ranker_products": len(made.ranker.again),
    }  # fmt: skip
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
        "ranker": vars(made.ranker.weights),
        "card": dict(made.card),
    }
