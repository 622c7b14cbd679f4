"""What a run found: means with bootstrap intervals, paired comparisons with the best, as JSON and as tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from freshet.model.evaluation.metrics import COVERAGE, PER_USER, Resamples, coverage, percentile_interval
from freshet.model.evaluation.run import Run
from freshet.model.evaluation.targets import KINDS, Kind

COMPARED_BY = ("recall@20", "map@12")
"""Metrics for which the best system is compared with each other one."""
SHOWN = ("recall@20", "map@12", "ndcg@10", "mrr", "hit_rate@20", "auroc", COVERAGE, "popularity@20")
"""Columns of the tables; `--json` has all."""

Table = tuple[str, list[str], list[list[str]]]
"""Title, header and rows."""


def report(run: Run) -> dict[str, Any]:
    """The run as one object of JSON types.

    `systems` and `intervals`: name -> kind -> metric -> mean, or [low, high]. `paired`: kind -> metric -> the best
    system and, for each other one, the mean difference to it and its interval over the same resamples of users;
    `first` says whether all those intervals lie above zero.
    """
    systems: dict[str, Any] = {name: {} for name in run.ranked}
    intervals: dict[str, Any] = {name: {} for name in run.ranked}
    paired: dict[str, Any] = {}
    sizes: dict[str, Any] = {}
    for kind in KINDS:
        rows, _, product = run.targets.kind(kind)
        sizes[kind] = {"users": int(rows.shape[0]), "targets": int(product.shape[0])}
        if not rows.shape[0] or not run.ranked:
            continue
        resamples = Resamples.draw(rows.shape[0], run.config.resamples, run.config.seed)
        means = {}
        for name, ranked in run.ranked.items():
            values, top = ranked.values[kind], ranked.top[kind]
            there = np.asarray(np.isfinite(values).any(axis=0))  # AUROC has no value where there is no other product
            mean = np.full(values.shape[1], np.nan)
            mean[there] = np.nanmean(values[:, there], axis=0)
            means[name] = resamples.means(values)
            low, high = np.full((2, values.shape[1]), np.nan)
            low[there], high[there] = percentile_interval(means[name][:, there], run.config.level)
            systems[name][kind] = _rounded(mean) | {COVERAGE: round(coverage(top, 20, run.products), 5)}
            intervals[name][kind] = {m: _pair(low[j], high[j]) for j, m in enumerate(PER_USER) if there[j]}
            at = resamples.coverage_interval(top, 20, run.products, run.config.level)
            intervals[name][kind][COVERAGE] = _pair(at[0], at[1])
        paired[kind] = {m: _paired(run, kind, m, systems, means) for m in COMPARED_BY}
    return {
        "systems": systems,
        "intervals": intervals,
        "paired": paired,
        "targets": sizes,
        "settings": run.chosen,
        "validation": run.validation,
        "left_out": run.left_out,
        "windows": _windows(run),
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """A table a kind that has targets, its systems by recall@20, with the interval and the difference to the best."""
    out: list[Table] = []
    for kind in KINDS:
        scored = {name: kinds[kind] for name, kinds in found["systems"].items() if kind in kinds}
        if not scored:
            continue
        size = found["targets"][kind]
        against = found["paired"][kind]["recall@20"]["against"]
        rows = []
        for name in sorted(scored, key=lambda n: -scored[n]["recall@20"]):
            low, high = found["intervals"][name][kind]["recall@20"]
            behind = against.get(name)
            gap = (
                "best"
                if behind is None
                else "{:.4f} [{:.4f}, {:.4f}]".format(behind["difference"], *behind["interval"])
            )
            rows.append([name, *(_number(scored[name].get(m)) for m in SHOWN), f"[{low:.4f}, {high:.4f}]", gap])
        title = f"{kind}: {size['users']} users, {size['targets']} targets"
        out.append((title, ["system", *SHOWN, "recall@20 from, to", "behind the best by"], rows))
    return out


def _paired(run: Run, kind: Kind, metric: str, systems: dict[str, Any], means: dict[str, Any]) -> dict[str, Any]:
    column = PER_USER.index(metric)
    best = max(run.ranked, key=lambda name: systems[name][kind][metric])
    against = {}
    for name in run.ranked:
        if name != best:
            low, high = percentile_interval(means[best][:, [column]] - means[name][:, [column]], run.config.level)
            gap = systems[best][kind][metric] - systems[name][kind][metric]
            against[name] = {"difference": round(gap, 5), "interval": _pair(low[0], high[0])}
    return {"best": best, "first": all(d["interval"][0] > 0 for d in against.values()), "against": against}


def _windows(run: Run) -> dict[str, Any]:
    w = run.windows
    out: dict[str, Any] = {
        "train_before": _day(w.train_before_ms),
        "known_until": _day(w.known_ms),
        "test": [_day(w.test.from_ms), _day(w.test.until_ms)],
    }
    if w.validation is not None:
        out["validation"] = [_day(w.validation.from_ms), _day(w.validation.until_ms)]
    return out


def _day(ms: int) -> str:
    return str(np.datetime64(ms, "ms").astype("datetime64[s]"))


def _rounded(mean: Any) -> dict[str, float]:
    return {m: round(float(mean[j]), 5) for j, m in enumerate(PER_USER) if np.isfinite(mean[j])}


def _pair(low: float, high: float) -> list[float]:
    return [round(float(low), 5), round(float(high), 5)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
