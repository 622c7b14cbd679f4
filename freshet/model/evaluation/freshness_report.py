"""The answers of a replay as figures: recall and MAP by policy and group, with intervals by user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshet.model.evaluation.freshness import POLICIES, Answers
from freshet.model.evaluation.metrics import Resamples, average_precision, percentile_interval, recall
from freshet.store.columns import I64, Bool

F64 = NDArray[np.float64]
MAP_AT = 12
RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A mean over asks with its 95 % interval, and its difference from that of the first policy (paired)."""

    policy: str
    metric: str
    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class Group:
    """Figures of a group of asks; `asks` and `users` say how many it has."""

    name: str
    asks: int
    users: int
    figures: tuple[Figure, ...]

    def of(self, metric: str) -> tuple[Figure, ...]:
        """The figures of one metric, in order of the policies."""
        return tuple(f for f in self.figures if f.metric == metric)


def report(answers: Answers, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Group, ...]:
    """Figures by group; a group without asks is left out.

    `all`: every target. `novel`: those the user had not taken before. `low`, `medium` and `high activity`: every
    target of the users known at the start, in thirds by what they had done before.
    `new users`: every target of those without any event then. `new products`: targets without any event then.
    Users are resampled with all their asks, since asks of one user are not independent.
    """
    return tuple(
        _group(name, hit, targets, rows, answers, seed, resamples)
        for name, hit, targets, rows in _groups(answers)
        if rows.any()
    )


def _groups(a: Answers) -> Iterator[tuple[str, Bool, I64, Bool]]:
    yield "all", a.hit, a.targets, a.targets > 0
    yield "novel", a.hit_novel, a.novel, a.novel > 0
    third = _thirds(a)
    for i, name in enumerate(("low", "medium", "high")):
        yield f"{name} activity", a.hit, a.targets, third == i
    yield "new users", a.hit, a.targets, a.is_new_user
    yield "new products", a.hit_new, a.new, a.new > 0


def _thirds(a: Answers) -> I64:
    """The third of each ask's user among the known users, [n]; -1 for a new one. Equal activity, equal third."""
    _, first = np.unique(a.user, return_index=True)
    known = first[~a.is_new_user[first]]
    bounds = np.quantile(a.activity[known], [1 / 3, 2 / 3]) if known.shape[0] else np.zeros(2)
    found = np.searchsorted(bounds, a.activity, side="left").astype(np.int64)
    return np.where(a.is_new_user, -1, found)


def _group(
    name: str, hit: Bool, targets: I64, rows: Bool, answers: Answers, seed: int, resamples: int
) -> Group:  # fmt: skip
    users, owner = np.unique(answers.user[rows], return_inverse=True)
    asks = np.bincount(owner).astype(np.float64)
    count = Resamples.draw(users.shape[0], resamples, seed).count.astype(np.float64)
    figures: list[Figure] = []
    for metric in (f"recall@{answers.k}", f"map@{MAP_AT}"):
        values = [_values(metric, hit[p][rows], targets[rows], answers.k) for p in range(len(POLICIES))]
        by_user = np.stack([np.bincount(owner, v) for v in values], axis=1)
        means = (count @ by_user) / (count @ asks)[:, None]
        difference = percentile_interval(means - means[:, :1])
        interval = percentile_interval(means)
        for p, policy in enumerate(POLICIES):
            figures.append(
                Figure(
                    policy, metric, float(values[p].mean()), float(interval[0, p]), float(interval[1, p]),
                    float((values[p] - values[0]).mean()), float(difference[0, p]), float(difference[1, p]),
                )
            )  # fmt: skip
    return Group(name, int(rows.sum()), int(users.shape[0]), tuple(figures))


def _values(metric: str, hit: Bool, targets: I64, k: int) -> F64:
    return recall(hit, targets, k) if metric.startswith("recall") else average_precision(hit, targets, MAP_AT)


def table(groups: Sequence[Group]) -> list[str]:
    """Markdown: a table a metric, a row a group; each cell a mean with its interval, differences in brackets."""
    metrics = list(dict.fromkeys(f.metric for g in groups for f in g.figures))
    lines: list[str] = []
    for metric in metrics:
        lines += [
            f"{metric} [95 % interval by user]; below the first: difference from every event",
            "",
            f"| group | asks | {' | '.join(POLICIES)} |",
            f"|---|---:|{'---|' * len(POLICIES)}",
        ]
        for group in groups:
            first, *others = group.of(metric)
            cells = [f"{first.mean:.4f} [{first.low:.4f}, {first.high:.4f}]"]
            cells += [
                f"{f.mean:.4f} ({f.difference:+.4f} [{f.difference_low:+.4f}, {f.difference_high:+.4f}])"
                for f in others
            ]
            lines.append(f"| {group.name} | {group.asks} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]
