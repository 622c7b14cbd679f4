"""The steps of training: from towers to better towers, validated on the way, interrupted and gone on with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from freshet.model.config import FeatureConfig
from freshet.model.features import ProductCodes, UserCodes
from freshet.model.objective import Objective
from freshet.model.peers import Peers
from freshet.model.sampler import Seeds, TemporalLoader, TemporalSampler, batch_neighborhood, order_runs
from freshet.model.score import score_of
from freshet.model.towers import Towers
from freshet.model.train_config import TrainConfig
from freshet.model.validation import Best, Validation

START_HANDICAP = 0.05
"""The closed form is kept where training does not come within this of its recall: validation is small and noisy, and
steps that leave it the same there have won on every longer period that was looked at (`docs/LOG.md`)."""

class StateFile(Protocol):
    """Where the state of a run is kept."""

    def load(self) -> dict[str, Any] | None:
        """The state, None where there is none yet. Raises CheckpointError."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace it. Raises CheckpointError."""
        ...


Progress = Callable[[str, float], None]
"""Told what is going on and which share of it is done, 0 to 1."""


@dataclass
class Course:
    """Where a training stands. `step` counts the steps done; `spent_s` the seconds of them, over all its runs;
    `seeds_seen` the orders and views they learned from."""

    over: bool = False
    step: int = 0
    due: int = 0
    spent_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    trace: list[dict[str, float]] = field(default_factory=list)
    seeds_seen: int = 0


class Fit:
    """One training. `encoded` are the codes of every product and user; all processes of `peers` run one each.

    With `file` the state is written every `checkpoint_every_s`, with each validation and at the end, and taken up from
    there.
    """

    def __init__(
        self, settings: TrainConfig, autocast: bool, towers: Towers, seeds: Seeds, sampler: TemporalSampler,
        encoded: tuple[ProductCodes, UserCodes, FeatureConfig], validation: Validation | None,
        clock_s: Callable[[], float], progress: Progress, peers: Peers, file: StateFile | None,
    ) -> None:  # fmt: skip
        self.settings, self.towers, self.seeds, self.sampler, self.encoded = settings, towers, seeds, sampler, encoded
        self.validation, self.clock_s, self.progress = validation, clock_s, progress
        self.peers, self.file = peers, file
        self.objective = Objective(towers, settings.loss, float(np.log(settings.scale)), autocast)
        self.objective.to(towers.device)
        self.optimizer = self._optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.best = Best()
        self.start: dict[str, float] | None = None
        """What validation finds before the first step, where an earlier run from the same start has asked."""
        self.at = Course(due=int(settings.start != "closed_form"))  # which may be the best there is
        self._began_s = self._written_s = clock_s()

    def run(self) -> Course:
        """Take every step that is left; the towers end with the best weights. Raises CheckpointError."""
        self._resume()
        if not self.at.over:
            self._steps()
            self.at.over = True
            self.at.spent_s, self._began_s = self._spent_s(), self.clock_s()
            self._write()
        self.best.restore(self.towers)
        return self.at

    # --- parts ----------------------------------------------------------------------------------

    def _steps(self) -> None:
        model = self.peers.averaged(self.objective)
        for share, data in self._batches():
            share = max(share, self._time_share())
            if self._ends(share):
                return
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
            loss = self._step(model, data)
            self.progress(f"training, loss {loss:.3f}", min(share, 1.0))
            if self.clock_s() - self._written_s >= self.settings.checkpoint_every_s:
                self._write()

    def _optimizer(self) -> torch.optim.AdamW:
        s, towers = self.settings, self.towers
        tables = [p for name, p in towers.table.items() if name != "product_id"]
        rest = [towers.table["product_id"], *towers.layer.parameters()]
        groups = [
            {"params": tables, "lr": s.learning_rate * s.table_rate},
            {"params": rest, "lr": s.learning_rate},
            {"params": [self.objective.log_scale], "lr": s.scale_learning_rate, "weight_decay": 0.0},
        ]
        if towers.config.popularity is not None:
            rate = s.scale_learning_rate / s.scale
            groups.append({"params": [towers.popularity], "lr": rate, "weight_decay": 0.0})
        return torch.optim.AdamW(groups, weight_decay=s.weight_decay, fused=True)

    def _batches(self) -> Iterator[tuple[float, Any]]:
        """Share done, and a batch of what is left; at the end share 1 with none."""
        s, before = self.settings, 0
        for epoch in range(s.epochs):
            self.sampler.epoch = epoch
            rng = np.random.default_rng([s.seed, epoch])
            runs = self.peers.share(order_runs(self.seeds, s.batch_size, rng, s.shuffle))
            done = min(len(runs), self.at.step - before)
            before += len(runs)
            for i, data in enumerate(TemporalLoader(self.seeds, self.sampler, runs[done:]), start=done):
                yield (epoch + i / len(runs)) / s.epochs, data
        yield 1.0, None

    def _spent_s(self) -> float:
        return self.at.spent_s + self.clock_s() - self._began_s

    def _time_share(self) -> float:
        budget_s = self.settings.time_budget_s
        return self.peers.agreed(self._spent_s() / budget_s) if budget_s > 0 else 0.0

    def _ends(self, share: float) -> bool:
        """Validate if that is due; whether training ends here."""
        s, at = self.settings, self.at
        if share * s.validations < at.due and share < 1.0:
            return False
        at.due = int(share * s.validations) + 1
        found = self._found()
        better = self.best.offer(found, self.towers, handicap=START_HANDICAP if at.step == 0 else 0.0)
        loss = {"loss": float(np.mean(at.losses))} if at.losses else {}
        scale = float(self.objective.log_scale.detach().exp())
        row = {"step": at.step, "share": min(share, 1.0), "seconds": self._spent_s(), "scale": scale}
        at.trace.append(row | loss | found)
        at.losses.clear()
        if share >= 1.0 or (not better and self.best.missed >= s.patience):
            return True
        if at.step:
            self._write()
        return False

    def _found(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        return self.start if self.start is not None and self.at.step == 0 else self.validation.recall()

    def _step(self, model: torch.nn.Module, data: Any) -> float:
        s, products, users = self.settings, *self.encoded[:2]
        device = self.towers.device
        graph = batch_neighborhood(data, products, users, self.encoded[2])
        draw = torch.Generator().manual_seed((s.seed << 32) + self.at.step * self.peers.size + self.peers.rank)
        keep = torch.rand(len(graph.product), generator=draw) >= s.id_dropout
        loss = model(graph.to(device), keep.to(device), data)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        found = float(loss.detach())
        self.at.losses.append(found)
        self.at.step += 1
        self.at.seeds_seen += len(data["user", "buys", "item"].edge_label)
        return found

    def _resume(self) -> None:
        state = self.file.load() if self.file is not None else None
        if state is None:
            return
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = Best(**state["best"])
        self.at = Course(**state["at"])
        self.progress(f"goes on after step {self.at.step}", 0.0)

    def _write(self) -> None:
        if self.file is None or not self.peers.first:
            return
        at = {**vars(self.at), "spent_s": self._spent_s()}
        self.file.save(
            {
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": vars(self.best),
                "at": at,
            }
        )
        self._written_s = self.clock_s()


def best_row(trace: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The row of the weights that a run kept: its best validation, the last row where it had none."""
    if not trace or "all" not in trace[0]:
        return trace[-1] if trace else {"share": 1.0}
    return max(trace, key=lambda row: (1.0 if row["step"] else 1.0 - START_HANDICAP) * score_of(row))
