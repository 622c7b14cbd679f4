"""Which model answers a query: chosen on validation data under a budget of time, with the reasons written down.

Without a budget it is day zero. With one, day zero and a few trained candidates are made from the events
before a validation window and compared on the purchases in it; the best is made again from all events if the
budget lasts. What a model is, how it is made and measured is the bench's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from freshet.errors import FreshetError

M = TypeVar("M")

USERS_MIN = 10
"""Fewer users than this with purchases in the validation window cannot tell models apart."""
TRAIN_S_MIN = 5.0
"""Training is not begun with less time than this."""
TRAIN_S_WANTED = 30.0
"""Another candidate is tried for each time this fits into what is left."""


@dataclass(frozen=True)
class Candidate:
    """A way to make a model: `tables` are those whose events the towers read (None: all that the query uses), `dim`
    the dimensions of the embeddings (0: as the towers have by default)."""

    name: str
    trained: bool = True
    tables: frozenset[str] | None = None
    dim: int = 0


DAY_ZERO = Candidate("day zero", trained=False)


@dataclass(frozen=True)
class Measured:
    """Quality on the validation window: means over `users`."""

    recall: float
    map: float
    users: int

    @property
    def score(self) -> float:
        """What candidates are compared by: recall@20 + MAP@12."""
        return self.recall + self.map


@dataclass(frozen=True)
class Trial:
    """What became of a candidate; `measured` is None where it was not made, and `note` says why."""

    candidate: str
    measured: Measured | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Choice(Generic[M]):
    """The model that answers, the candidate it came from, and how it was chosen."""

    model: M
    candidate: str
    reasons: list[str]
    trials: list[Trial] = field(default_factory=list)


class Bench(Protocol[M]):
    """Makes and measures models over one log."""

    def validation(self) -> tuple[int, str]:
        """How many users there are to measure by, and the window in words."""
        ...

    def fit(self, candidate: Candidate, holdout: bool, budget_s: float) -> M:
        """A model from the events before the validation window, or from all. Raises ValueError where none can be
        made. `budget_s` is for training; 0 for day zero."""
        ...

    def measure(self, model: M) -> Measured:
        """Quality of a model that was made with `holdout`."""
        ...


def choose(
    bench: Bench[M], candidates: Sequence[Candidate], budget_s: float | None, clock_s: Callable[[], float],
    began_s: float,
) -> Choice[M]:  # fmt: skip
    """The model that answers. `began_s` is when the budget began to run, by `clock_s`.

    Raises ValueError where not even day zero can be made.
    """
    planner = _Planner(bench, budget_s or 0.0, clock_s, began_s)
    if budget_s is None:
        return planner.day_zero("the query gives no budget: WITHIN 60 s would compare it with trained models")
    return planner.run(candidates)


class _Planner(Generic[M]):
    def __init__(self, bench: Bench[M], budget_s: float, clock_s: Callable[[], float], began_s: float) -> None:
        self.bench, self.budget_s, self.clock_s, self.began_s = bench, budget_s, clock_s, began_s
        self.trials: list[Trial] = []
        self.made: dict[str, tuple[M, float]] = {}
        """Models made for comparison, with the seconds that making them took."""
        self.overrun_s = 0.0
        """How much longer a candidate takes than it is given for training, as far as is known."""

    def left_s(self) -> float:
        return self.budget_s - (self.clock_s() - self.began_s)

    def day_zero(self, why: str) -> Choice[M]:
        return Choice(self.bench.fit(DAY_ZERO, False, 0.0), DAY_ZERO.name, [f"day zero, because {why}"], self.trials)

    def run(self, candidates: Sequence[Candidate]) -> Choice[M]:
        users, window = self.bench.validation()
        if users < USERS_MIN:
            return self.day_zero(f"there is {window}: candidates are compared by {USERS_MIN} users or more")
        spent_s = self.budget_s - self.left_s()
        if self.left_s() < max(TRAIN_S_MIN, spent_s):  # comparing reads the log once more
            return self.day_zero(
                f"the budget of {self.budget_s:g} s is too small: reading the log took {spent_s:.1f} s of it, and "
                "to compare models takes more than that again"
            )
        self._try(DAY_ZERO, 0.0)
        self.overrun_s = self.trials[0].seconds / 2  # training begins with as much work as day zero does
        wanted_s = TRAIN_S_WANTED
        for i, candidate in enumerate(candidates):
            more = min(len(candidates) - i, int(self.left_s() / wanted_s) - 1)
            share_s = self.left_s() / (max(1, more) + 1) - self.overrun_s  # one share is for making the best again
            if share_s < TRAIN_S_MIN or (i > 0 and more < 1):
                self.trials.append(Trial(candidate.name, None, 0.0, "not tried: it wants a larger budget"))
                continue
            self._try(candidate, share_s)
            wanted_s = min(TRAIN_S_WANTED, max(TRAIN_S_MIN, 1.5 * self.trials[-1].seconds))
        return self._best({c.name: c for c in (DAY_ZERO, *candidates)}, window)

    def _try(self, candidate: Candidate, budget_s: float) -> None:
        start_s = self.clock_s()
        try:
            model = self.bench.fit(candidate, True, budget_s)
            fit_s = self.clock_s() - start_s
            measured = self.bench.measure(model)
        except (ValueError, FreshetError) as e:
            self.trials.append(Trial(candidate.name, None, self.clock_s() - start_s, f"failed: {e}"))
            return
        seconds = self.clock_s() - start_s
        if candidate.trained:
            self.overrun_s = max(0.0, seconds - budget_s)
        self.made[candidate.name] = model, fit_s
        self.trials.append(Trial(candidate.name, measured, seconds))

    def _best(self, by_name: dict[str, Candidate], window: str) -> Choice[M]:
        done = [(t.measured.score, -i, t) for i, t in enumerate(self.trials) if t.measured is not None]
        if not done:
            return self.day_zero("no candidate could be made from the events before the validation window")
        best = max(done, key=lambda found: found[:2])[2]  # of equal ones the first, which costs least
        assert best.measured is not None
        figure = f"recall@20 + MAP@12 of {best.measured.score:.4f} on {window}"
        reasons = [
            f"{best.candidate}, because its {figure} is the greatest of {len(done)}"
            if len(done) > 1
            else f"{best.candidate}, because there was time for no other ({figure})"
        ]
        model, fit_s = self.made[best.candidate]
        if self.left_s() < fit_s:
            reasons.append(
                "as it was compared, made from the events before that time: making it again from all would take "
                f"{fit_s:.0f} s, and {max(0.0, self.left_s()):.0f} s of the budget were left (it reads later events "
                "as neighbours all the same)"
            )
            return Choice(model, best.candidate, reasons, self.trials)
        candidate = by_name[best.candidate]
        budget_s = max(TRAIN_S_MIN, min(fit_s, self.left_s() - self.overrun_s)) if candidate.trained else 0.0
        reasons.append("made again from all events")
        return Choice(self.bench.fit(candidate, False, budget_s), best.candidate, reasons, self.trials)
