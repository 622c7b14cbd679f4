"""The only file that imports matplotlib: figures as SVG, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

F64 = NDArray[np.float64]

COLORS = ("#1b6ca8", "#6aa5cf", "#b3c9d9", "#8c8c8c", "#c77f3e", "#e3b98a")
WIDTH_IN, HEIGHT_IN = 8.0, 3.4


def bars(
    groups: Sequence[str], series: Sequence[str], mean: F64, low: F64, high: F64, title: str, ylabel: str
) -> bytes:  # fmt: skip
    """Bars of several series by group, each with its interval, as the bytes of an SVG.

    `mean`, `low`, `high` [groups, series]. The same figures give the same bytes.
    """
    with matplotlib.rc_context({"svg.hashsalt": "freshet", "svg.fonttype": "none"}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / max(1, len(series))
        for i, name in enumerate(series):
            at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
            reach = np.clip(np.stack([mean[:, i] - low[:, i], high[:, i] - mean[:, i]]), 0.0, None)
            axes.bar(
                at, mean[:, i], width, yerr=reach, label=name, color=COLORS[i % len(COLORS)],
                error_kw={"elinewidth": 0.8, "capsize": 2},
            )  # fmt: skip
        axes.set_xticks(np.arange(len(groups)), list(groups))
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(ylabel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.legend(
            frameon=False, fontsize=8, ncols=max(1, len(series)), loc="upper center", bbox_to_anchor=(0.5, -0.12)
        )
        return _svg(figure)


def lines(at: Sequence[float], series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, right: str) -> bytes:
    """Lines over `at` (NaN left out), that of `right` with an axis of its own, as the bytes of an SVG."""
    with matplotlib.rc_context({"svg.hashsalt": "freshet", "svg.fonttype": "none"}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        axes = figure.subplots()
        other = axes.twinx()
        for i, (name, values) in enumerate(series.items()):
            there = np.isfinite(np.asarray(values, dtype=np.float64))
            place = other if name == right else axes
            color = COLORS[(0, 4, 3)[i % 3]]
            place.plot(np.asarray(at)[there], np.asarray(values)[there], "o-", label=name, color=color, markersize=3)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        other.set_ylabel(right)
        axes.spines[["top"]].set_visible(False)
        other.spines[["top"]].set_visible(False)
        figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
