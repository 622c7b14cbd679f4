"""What a query answers: lines for people, one object for programs, a file for all users; and how it was chosen."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from freshet.errors import FreshetError
from freshet.stream.query.encoded import Prediction
from freshet.stream.query.keep import Kept
from freshet.stream.query.language import Query
from freshet.stream.query.plan import Trial

DEFAULT_OUT = Path("predictions.jsonl")
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"


@dataclass(frozen=True)
class Answer:
    """Answers to a query. `predictions` are those for named users; for all users they are in the file `out`.
    `model` says which model answered, `explanation` why, `notes` what a person should know of the answer."""

    query: str
    model: dict[str, Any]
    notes: list[str]
    explanation: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    out: Path | None = None
    users: int = 0

    def as_json(self, explain: bool) -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = {"query": self.query, "model": self.model, "notes": self.notes}
        if self.out is not None:
            found |= {"out": str(self.out), "users": self.users}
        else:
            found["predictions"] = [
                {"user_id": p.user, "user_known": p.known, "items": _items(p)} for p in self.predictions
            ]
        if explain:
            found["explain"] = {"lines": self.explanation, "trials": msgspec.to_builtins(self.trials)}
        return found

    def as_lines(self, explain: bool) -> list[str]:
        """For people; a user's id stands before each product where there are several users."""
        lines = [*self.explanation, ""] if explain else []
        if self.out is not None:
            return [*lines, f"predictions for {self.users} users written to {self.out}"]
        for p in self.predictions:
            who = f"{p.user}\t" if len(self.predictions) > 1 else ""
            lines += [f"{who}{product}\t{score:.4f}\t{reason}" for product, score, reason in p.items]
        return lines


def explain_log(query: Query, kept: Kept) -> list[str]:
    """How the model that answers from a log was chosen."""
    lines = ["log:", *(f"  {line}" for line in kept.schema)]
    lines += [f"using: {', '.join(sorted(query.tables))}", *(f"  {note}" for note in kept.notes)]
    if kept.trials:
        lines.append("tried:")
    for trial in kept.trials:
        m = trial.measured
        what = f"recall@20 {m.recall:.4f}  MAP@12 {m.map:.4f}  {trial.seconds:.1f} s" if m else trial.note
        lines.append(f"  {trial.candidate}: {what}")
    lines += ["chosen:", *(f"  {reason}" for reason in kept.reasons), f"model: {kept.model_version} ({kept.kind})"]
    if kept.bundle is not None:
        lines.append(f"bundle: {kept.bundle}")
    made = f"made in {kept.made_s:.1f} s"
    stored = "not kept" if kept.bundle is None else "the next query finds it in the cache"
    return [*lines, f"read from the cache; {made}" if kept.again else f"{made}; {stored}"]


def explain_live(status: dict[str, Any]) -> list[str]:
    """Why no model is chosen on a live system."""
    return [
        "chosen:",
        f"  {status['model_version']}, because the live system serves it",
        "  USING is checked and not applied: a frozen model reads what it was trained to read",
    ]


def check_out(query: Query, out: Path | None) -> Path | None:
    """The file for all users; None where users are named.

    Raises FreshetError for an ending nobody knows, a folder that is missing, a file for named users, and the
    default file where it exists (a file that is named is replaced).
    """
    if query.users is not None:
        if out is not None:
            raise query.refuse("--out is for all users, and FOR names some", "users", "FOR user without an id")
        return None
    if out is None:
        if DEFAULT_OUT.exists():
            raise FreshetError(f"{DEFAULT_OUT} is there already: name the file with --out to replace it")
        return DEFAULT_OUT
    if out.suffix not in (*JSON_LINES, PARQUET):
        raise FreshetError(f"--out {out}: predictions are written as .jsonl or .parquet")
    if not out.parent.is_dir():
        raise FreshetError(f"--out {out}: there is no folder {out.parent}")
    return out


def write(predictions: Iterable[Prediction], out: Path) -> int:
    """Write predictions to a file, whole or not at all; returns for how many users.

    Parquet has a row a product: user_id, rank (from 1), product_id, score, reason. JSON lines have a user each.
    Raises FreshetError where the file cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        count = _write_parquet(predictions, temporary) if out.suffix == PARQUET else _write_json(predictions, temporary)
        os.replace(temporary, out)
        return count
    except OSError as e:
        raise FreshetError(f"cannot write {out}: {e.strerror or e}") from e
    finally:
        temporary.unlink(missing_ok=True)


def _items(prediction: Prediction) -> list[dict[str, Any]]:
    return [{"product_id": p, "score": score, "reason": reason} for p, score, reason in prediction.items]


def _write_json(predictions: Iterable[Prediction], path: Path) -> int:
    users = 0
    with path.open("wb") as file:
        for p in predictions:
            users += 1
            file.write(msgspec.json.encode({"user_id": p.user, "user_known": p.known, "items": _items(p)}) + b"\n")
    return users


def _write_parquet(predictions: Iterable[Prediction], path: Path) -> int:
    from freshet.stream.convert.frames import write_columns

    users = 0
    columns: dict[str, list[Any]] = {name: [] for name in ("user_id", "rank", "product_id", "score", "reason")}
    for p in predictions:
        users += 1
        for rank, row in enumerate(p.items, start=1):
            for column, value in zip(columns.values(), (p.user, rank, *row), strict=True):
                column.append(value)
    write_columns(columns, path)
    return users
