"""What a system is that can be evaluated, and the plainest of them: popularity and the user's own history."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from freshet.model.config import DAY_MS
from freshet.model.evaluation.past import Past, rate
from freshet.model.evaluation.targets import TargetsOf
from freshet.store.columns import F32, I32
from freshet.store.history import History


class System(Protocol):
    """Something that ranks a catalogue for users.

    `fit` learns from what happened before `until_ms`. `scores` are for `users` [q] int32 (numbers of the history), of
    what was known strictly before `at_ms`, which is `until_ms` or later; every product of the history, [q, products]
    float32, freshly made (it may be written to), greatest best, -inf for what it would never offer. A user of whom
    nothing is known gets what the system offers to such users.
    """

    @property
    def name(self) -> str: ...

    def fit(self, history: History, until_ms: int) -> None: ...

    def scores(self, users: I32, at_ms: int) -> F32: ...


class Popularity:
    """Interactions of each product, of all time or of the last `days`."""

    def __init__(self, name: str, days: float | None = None, what: TargetsOf = "purchases") -> None:
        self.name, self.days, self.what = name, days, what
        self._history: History | None = None
        self._at: tuple[int, F32] | None = None

    def fit(self, history: History, until_ms: int) -> None:
        self._history, self._at = history, None

    def scores(self, users: I32, at_ms: int) -> F32:
        assert self._history is not None, "fit first"
        if self._at is None or self._at[0] != at_ms:
            self._at = at_ms, rate(self._history, at_ms, self.days, self.what)
        return np.tile(self._at[1], (users.shape[0], 1))


class OwnHistory:
    """How often a user bought each product, decayed with a half-life; ties and the rest go by popularity.

    score = sum over purchases of 2^(-age / half_life_days) [or `log_count`: see below] + popularity share,
    where the share is what the product has of the greatest popularity in `days`, below one. With `tuned` the score
    of a bought product is 1 + a log(count) - b log(1 + age of the last / 30 days) + c log(1 + popularity).
    """

    def __init__(
        self, name: str, half_life_days: float | None = None, days: float | None = 30.0,
        tuned: tuple[float, float, float] | None = None, share: float = 0.5, what: TargetsOf = "purchases",
    ) -> None:  # fmt: skip
        self.name, self.half_life_days, self.days, self.what = name, half_life_days, days, what
        self.tuned, self.share = tuned, share
        self._history: History | None = None
        self._at: tuple[int, Past, F32] | None = None

    def fit(self, history: History, until_ms: int) -> None:
        self._history, self._at = history, None

    def scores(self, users: I32, at_ms: int) -> F32:
        past, popular = self._state(at_ms)
        out = np.tile(self.share * popular / (popular.max(initial=0.0) + 1.0), (users.shape[0], 1)).astype(np.float32)
        out += past.dense(users, self.terms(past, popular))
        return out

    def terms(self, past: Past, popular: F32) -> F32:
        """What each bought product of `past` is worth, [entries] float32."""
        if self.tuned is None:
            return past.count if self.half_life_days is None else past.decayed(self.half_life_days)
        a, b, c = self.tuned
        age = (past.at_ms - past.last_ms) / DAY_MS
        worth = 3.0 + a * np.log(past.count) - b * np.log1p(age / 30.0) + c * np.log1p(popular[past.product])
        return np.maximum(worth, 1e-3).astype(np.float32)

    def _state(self, at_ms: int) -> tuple[Past, F32]:
        assert self._history is not None, "fit first"
        if self._at is None or self._at[0] != at_ms:
            past = Past.of(self._history, at_ms, self.what)
            self._at = at_ms, past, rate(self._history, at_ms, self.days, self.what)
        return self._at[1:]
