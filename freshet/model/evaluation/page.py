"""The page of an evaluation card: one HTML file without anything outside it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np

from freshet.model.card import remarks, summary
from freshet.model.evaluation import plots

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #ddd}
td:not(:first-child){font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}h2{margin-top:2rem}"""

SLICES = (
    ("by_history", "Distinct products in the user's history", "recall@20, mean of users"),
    ("by_age", "Since the product's first event", "share of targets in the first 20"),
    (
        "by_popularity",
        "Decile of the product's popularity in 30 days (10: most popular)",
        "share of targets in the first 20",
    ),
)


def page_of(card: Mapping[str, Any]) -> str:
    """The card as HTML: figures as inline SVG. The same card gives the same text."""
    cut = datetime.fromtimestamp(card["cut_ms"] / 1e3, tz=UTC).strftime("%Y-%m-%d %H:%M")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(card['model_version'])}</title><style>{STYLE}</style>",
        f"<h1>{escape(card['model_version'])}</h1>",
        f"<p>{escape(card['kind'])}, of what happened up to {cut} UTC; {card['products']} products with an id of their "
        "own. Ranked over the whole catalogue; docs/evaluation.md has the definitions.</p>",
    ]
    for title, head, rows in summary(card):
        parts.append(f"<h2>{escape(title)}</h2>{_table(head, rows)}")
    parts += [f"<p>{escape(remark)}</p>" for remark in remarks(card)]
    slices = card.get("slices") or {}
    for by, title, what in SLICES:
        for kind, found in slices.get(by, {}).items():
            parts.append(f"<h2>{title}: {escape(kind)} targets, {escape(slices['window'])}</h2>{_bars(found, what)}")
    training = card.get("training")
    if training and training["trace"]:
        parts.append(f"<h2>Training</h2>{_curve(training['trace'])}")
    parts.append(
        f"<h2>Final ranker</h2>{_table(['coefficient', ''], [[k, f'{v:.3f}'] for k, v in card['ranker'].items()])}"
    )
    parts.append(f"<p>{card['ranker_products']} products add a number of their own where they are bought again.</p>")
    return "\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _bars(found: Mapping[str, Any], what: str) -> str:
    names = list(found["recall@20"])
    there = [i for i, count in enumerate(found["count"]) if count]
    cells = np.array([[found["recall@20"][name][i] for name in names] for i in there], dtype=np.float64)
    mean, error = cells[..., 0], 1.96 * cells[..., 1]
    groups = [f"{found['groups'][i]}\n(n={found['count'][i]})" for i in there]
    return plots.bars(groups, names, mean, np.maximum(mean - error, 0.0), mean + error, "", what).decode()


def _curve(trace: list[Mapping[str, float]]) -> str:
    series = {key: [row.get(key, np.nan) for row in trace] for key in ("novel", "all", "loss")}
    return plots.lines([row["step"] for row in trace], series, "step", "recall@20 on validation", "loss").decode()
