"""From an event log to an evaluation: windows, systems and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS
from freshet.model.evaluation.catalogue import entries
from freshet.model.evaluation.report import report
from freshet.model.evaluation.run import EvaluateConfig, evaluate
from freshet.model.evaluation.targets import TargetsOf, Window, WindowError, Windows, lines_of
from freshet.store.history import History
from freshet.stream.eventlog import EventLog
from freshet.stream.modelling import day_ms, read_history
from freshet.stream.progress import Bars

WEEK_MS = 7 * DAY_MS


@dataclass(frozen=True)
class Asked:
    """The options of `freshet evaluate`, as they were given."""

    train_before: str | None = None
    test_from: str | None = None
    test_until: str | None = None
    validate_from: str | None = None
    validate_until: str | None = None
    known_until: str | None = None
    bundles: tuple[Path, ...] = ()
    systems: str = "all"
    targets: str = "purchases"
    users_max: int = 0
    budget_s: float = 0.0
    seed: int = 0


def evaluate_log(log: Path, asked: Asked, bars: Bars) -> dict[str, Any]:
    """The report of a run as one object. Raises FreshetError for what a user can mend."""
    if asked.targets not in get_args(TargetsOf):
        raise FreshetError(f"--targets {asked.targets!r} is not known: purchases, views or both")
    what: TargetsOf = asked.targets  # type: ignore[assignment]
    bundles = {}
    for path in asked.bundles:
        name = path.resolve().name
        if name in bundles:
            raise FreshetError(f"two bundles are called {name}: rename the folder of one")
        bundles[name] = Bundle.load(path)
    known = entries(what, asked.seed, asked.budget_s, bundles)
    chosen = list(known) if asked.systems == "all" else [name.strip() for name in asked.systems.split(",")]
    strange = [name for name in chosen if name not in known]
    if strange:
        raise FreshetError(f"--systems: {', '.join(strange)} not known; there are {', '.join(known)}")
    history = read_history(EventLog(log), day_ms(asked.test_until, "--test-until"), bars)
    windows = windows_of(history, asked, what)
    config = replace(EvaluateConfig(), users_max=asked.users_max, seed=asked.seed)
    return report(evaluate(history, windows, [known[name] for name in chosen], config, what, bars.share))


def windows_of(history: History, asked: Asked, what: TargetsOf) -> Windows:
    """The windows asked for. By default the last week is the test, and training ends two weeks before the end.

    Settings are chosen between the end of training and the test, where there is time; otherwise in a window
    before the end of training that is as long as the test, for which systems are fitted on what was before it.
    Raises WindowError.
    """
    times = lines_of(history, what).time
    if not times.shape[0]:
        raise WindowError(f"the log has no {what}: there is nothing to evaluate")
    first, last = int(times[0]), int(times[-1])
    given = {
        name: day_ms(getattr(asked, name), f"--{name.replace('_', '-')}")
        for name in ("train_before", "test_from", "test_until", "validate_from", "validate_until", "known_until")
    }
    until = last + 1 if given["test_until"] is None else given["test_until"]
    test_from = given["test_from"]
    if test_from is None:
        test_from = (
            until - WEEK_MS if given["train_before"] is None else min(given["train_before"] + WEEK_MS, until - 1)
        )
    train = max(test_from - WEEK_MS, 0) if given["train_before"] is None else given["train_before"]
    if train <= first:
        raise WindowError(
            f"nothing happened before --train-before ({_date(train)}): the log's {what} go from {_date(first)} "
            f"to {_date(last)}; set --train-before, --test-from and --test-until inside"
        )
    length = until - test_from
    default = (train, test_from) if train < test_from else (test_from - length, test_from)
    start = default[0] if given["validate_from"] is None else given["validate_from"]
    end = default[1] if given["validate_until"] is None else given["validate_until"]
    asked_for = given["validate_from"] is not None or given["validate_until"] is not None
    if asked_for and start <= first:
        raise WindowError(
            f"nothing happened before --validate-from ({_date(start)}): no time is left to fit systems on"
        )
    validation = Window(start, end) if start > first else None
    if validation is not None and not asked_for and not ((times >= start) & (times < end)).any():
        validation = None
    return Windows(train, Window(test_from, until), validation, given["known_until"])


def _date(ms: int) -> str:
    from numpy import datetime64

    return str(datetime64(ms, "ms").astype("datetime64[s]"))
