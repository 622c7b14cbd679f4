"""Several trainings from one start, one after another, and the average of their weights (a "model soup", Wortsman et
al. 2022): nearly as good as asking all of them, at the cost of one when serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from freshet.model.checkpoint import CheckpointFile
from freshet.model.fit import Fit, best_row
from freshet.model.peers import Peers
from freshet.model.score import score_of
from freshet.model.towers import Towers
from freshet.model.train_config import TrainConfig
from freshet.model.validation import KINDS, Validation

MakeFit = Callable[[TrainConfig, "StateOfRun | None"], Fit]
"""Settings of one run, and where its state is kept -> that run, over the towers as they are."""


@dataclass
class Runs:
    """The runs of one training. `courses` and `weights` are what the finished ones left, in their order."""

    settings: TrainConfig
    towers: Towers
    validation: Validation | None
    peers: Peers
    file: CheckpointFile | None
    make: MakeFit
    courses: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Every run that is left; the towers end with the weights to keep. Returns what the card says: `trace`,
        `seconds`, `examples`, and how many runs were `averaged`. Raises CheckpointError."""
        s, start, current = self.settings, _copy(self.towers), None
        if self.file is not None and (state := self.file.load()) is not None:
            self.courses, self.weights, current = state["courses"], state["weights"], state["current"]
        for number in range(len(self.courses), s.runs):
            self.towers.load_state_dict(start)
            one = replace(s, seed=s.seed + number, time_budget_s=s.time_budget_s / s.runs)
            fit = self.make(one, StateOfRun(self, current) if self.file is not None else None)
            fit.start = self._found_at_start()
            course = fit.run()
            current = None
            self.courses.append(vars(course))
            self.weights.append(_copy(self.towers))
            self.write(None)
        return self._ended(start)

    def write(self, current: Mapping[str, Any] | None) -> None:
        """Keep what is finished, and the state of the run that goes on. Raises CheckpointError."""
        if self.file is not None and self.peers.first:
            self.file.save({"courses": self.courses, "weights": self.weights, "current": current})

    # --- parts ----------------------------------------------------------------------------------

    def _found_at_start(self) -> dict[str, float] | None:
        first = self.courses[0]["trace"][0] if self.courses else {"step": 1}
        found: dict[str, float] = {kind: first[kind] for kind in KINDS if not first["step"] and kind in first}
        return found or None

    def _ended(self, start: dict[str, Tensor]) -> dict[str, Any]:
        trace, steps = list[dict[str, float]](), 0
        best = [best_row(course["trace"]) for course in self.courses]
        for number, course in enumerate(self.courses):
            trace += [{**row, "run": number, "step": steps + row["step"]} for row in course["trace"]]
            steps += course["step"]
        averaged = self.settings.runs
        if averaged > 1:
            share = sum(row["share"] for row in best) / averaged
            self._keep(_mean(self.weights), start)
            found = self.validation.recall() if self.validation is not None else {}
            trace.append({"step": steps, "share": share, "averaged": averaged, **found})
            scores = [score_of(row) for row in best if "all" in row]
            if found and score_of(found) < sum(scores) / len(scores):  # they did not stay in one basin
                averaged = 1
        if averaged == 1:
            first = max(range(len(best)), key=lambda i: score_of(best[i]) if "all" in best[i] else 0.0)
            self._keep(self.weights[first], start)
        seconds = sum(course["spent_s"] for course in self.courses)
        examples = sum(course["seeds_seen"] for course in self.courses)
        return {"trace": trace, "seconds": seconds, "examples": examples, "averaged": averaged}

    def _keep(self, weights: dict[str, Tensor], start: dict[str, Tensor]) -> None:
        """The towers get `weights`, with the share of the start that the settings say."""
        share = self.settings.start_share
        if share:
            weights = {name: torch.lerp(value, start[name], share) for name, value in weights.items()}
        self.towers.load_state_dict(weights)


@dataclass
class StateOfRun:
    """Where the state of the run that goes on is kept: with that of the runs before it."""

    runs: Runs
    state: dict[str, Any] | None

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, None at the start."""
        return self.state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace it. Raises CheckpointError."""
        self.runs.write(state)


def _copy(towers: Towers) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in towers.state_dict().items()}


def _mean(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in weights]).mean(dim=0) for name in weights[0]}
