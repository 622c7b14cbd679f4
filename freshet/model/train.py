"""Training: from a history to a frozen bundle.

Trained on edges before the split T, stopped by recall in [T, T + 7 days), tested in the seven days after
that (as far as the history reaches). Starts from the closed form of `dayzero.py`: a good start is most of
what a minute of training can reach. `docs/decisions/towers.md` has the figures behind the defaults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from freshet.model import dayzero as day0
from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS, FeatureConfig, TowerConfig
from freshet.model.evaluate import Targets, baselines, embedding_scores, recall
from freshet.model.features import ProductCodes, UserCodes, user_codes
from freshet.model.neighborhood import NO_NODES, Neighborhood, neighborhood, walk
from freshet.model.parity import make_fixture
from freshet.model.sampler import (
    SEED_EDGE,
    HistoryReader,
    NegativePool,
    Seeds,
    TemporalLoader,
    TemporalSampler,
    batch_neighborhood,
    time_runs,
)
from freshet.model.towers import Towers
from freshet.store.columns import F32, I32, Bool
from freshet.store.history import History, PairHistory

Progress = Callable[[str, float], None]
"""Told what is going on and which share of it is done, 0 to 1."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    `window_days` of edges before the split are trained on, `epochs` times or until `time_budget_s` (0: no
    budget; only without one are two runs with the same seed equal to the byte). `loss`: sampled softmax
    over the batch's candidates with logQ correction, or BPR over `negatives_each` negatives a positive, all
    out of a pool of `pool_draws` products a batch. Batches go forward in time unless `shuffle` (batches,
    never edges). `novel_weight` is the weight of a first purchase against a repeated one, `view_weight`
    that of a view; `scale` is where the learned inverse temperature starts. `id_dropout`: share of
    products a batch takes for unknown. Validation is by recall of at most `validation_users_max` users,
    `validations` times; training stops after `patience` of them in a row without a better one.
    """

    loss: Literal["softmax", "bpr"] = "softmax"
    window_days: float = 220.0
    epochs: int = 1
    shuffle: bool = False
    time_budget_s: float = 0.0
    batch_size: int = 8192
    pool_draws: int = 8192
    pool_power: float = 0.75
    negatives_each: int = 8
    novel_weight: float = 3.0
    view_weight: float = 0.2
    learning_rate: float = 2e-3
    table_learning_rate: float = 3e-4
    scale: float = 12.0
    id_dropout: float = 0.2
    validations: int = 2
    validation_days: float = 7.0
    validation_users_max: int = 500
    patience: int = 2
    top_k: int = 20
    threads: int = 2
    seed: int = 0
    start: day0.DayZeroConfig = field(default_factory=day0.DayZeroConfig)


def train(
    history: History,
    settings: TrainConfig | None = None,
    config: TowerConfig | None = None,
    features: FeatureConfig | None = None,
    split_ms: int | None = None,
    progress: Progress = lambda what, share: None,
    clock_s: Callable[[], float] = time.monotonic,
) -> Bundle:
    """Train both towers on the edges before `split_ms` (default: a week before the newest edge).

    Raises ValueError when there is no edge to train on.
    """
    settings = settings or TrainConfig()
    with _quiet_threads(settings.threads):
        return _Training(history, settings, config, features, split_ms, progress, clock_s).run()


class _Training:
    def __init__(
        self, history: History, settings: TrainConfig, config: TowerConfig | None, features: FeatureConfig | None,
        split_ms: int | None, progress: Progress, clock_s: Callable[[], float],
    ) -> None:  # fmt: skip
        self.history, self.settings, self.progress, self.clock_s = history, settings, progress, clock_s
        self.config = config or TowerConfig()
        self.features = features or FeatureConfig()
        lines = [part.time[-1] for part in (history.purchases, history.views) if part.time.shape[0]]
        if not lines:
            raise ValueError("the history has no purchase and no view: there is nothing to train on")
        self.split_ms = int(max(lines) - settings.validation_days * DAY_MS) if split_ms is None else split_ms
        self.began_s = clock_s()
        torch.manual_seed(settings.seed)
        cut = self.split_ms - 1
        self.vocabulary = day0.vocabulary_of(history, cut, settings.start.purchases_min)
        self.codes = day0.history_codes(history, self.features, self.vocabulary)
        users = np.arange(len(history.users), dtype=np.int32)
        self.user_codes = user_codes(history.user_attributes.take(users), self.features, self.vocabulary)

    def run(self) -> Bundle:
        s, history = self.settings, self.history
        self.progress("start", 0.0)
        weights = day0.closed_form(
            history, self.config, self.features, s.start, self.vocabulary, self.codes, self.split_ms - 1
        )
        towers = Towers(self.config, self.features, len(self.vocabulary.row_of) + 1, fused=True).load(weights)
        start_ms = int(self.split_ms - s.window_days * DAY_MS)
        seeds = Seeds.of(history, start_ms, self.split_ms - 1, s.view_weight)
        if not len(seeds):
            raise ValueError(f"no edge in the {s.window_days} days before the split: set another split or window")
        if s.novel_weight != 1.0:
            share = np.where(_is_repeat(history, seeds), 1.0, s.novel_weight)
            seeds = replace(seeds, weight=(seeds.weight * share).astype(np.float32))
        pairs = history.pairs_since(history.freeze(start_ms, s.start.partners_max), self.split_ms)
        bought = day0.counts_until(history, self.split_ms - 1, start_ms)
        everything = day0.counts_until(history, self.split_ms - 1)
        pool = NegativePool.of(everything, s.pool_power, s.pool_draws, s.negatives_each)
        sampler = TemporalSampler(history, pairs, self.config, pool, bought.astype(np.float32), s.seed)
        evaluator = Evaluator(history, self.config, self.features, self.codes, self.user_codes, self.split_ms, s)
        trace = self._fit(towers, seeds, sampler, evaluator)
        bundle = Bundle(
            kind="trained",
            config=self.config,
            features=self.features,
            weights=towers.export(),
            vocabulary=self.vocabulary,
            cut_ms=self.split_ms - 1,
            pairs=day0.frozen_pairs(history, evaluator.pairs.frozen),
            popular=day0.popular(history, self.split_ms - 1),
            evaluation=evaluator.report(towers) | {"trace": trace, "settings": asdict(s)},
        )
        bundle = replace(bundle, fixture=make_fixture(bundle))
        self.progress("done", 1.0)
        return bundle

    def _fit(
        self, towers: Towers, seeds: Seeds, sampler: TemporalSampler, evaluator: Evaluator
    ) -> list[dict[str, float]]:
        s = self.settings
        rng = np.random.default_rng(s.seed)
        draw = torch.Generator().manual_seed(s.seed)
        log_scale = nn.Parameter(torch.tensor(float(np.log(s.scale))))
        tables = list(towers.table.parameters())
        layers = [*towers.layer.parameters(), log_scale]
        optimizer = torch.optim.Adam(
            [{"params": tables, "lr": s.table_learning_rate}, {"params": layers, "lr": s.learning_rate}],
            betas=(0.9, 0.99),
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        best = Checkpoint()
        best.offer(evaluator.validate(towers), towers)
        trace = [{"step": 0.0, "seconds": self.clock_s() - self.began_s, **best.found}]
        fit_s = self.clock_s()
        due, losses = 1, list[float]()
        for step, (share, data) in enumerate(self._batches(seeds, sampler, rng)):
            spent = (self.clock_s() - fit_s) / s.time_budget_s if s.time_budget_s > 0 else 0.0
            share = max(share, spent)
            if share * s.validations >= due or share >= 1.0:
                due = int(share * s.validations) + 1
                found = evaluator.validate(towers)
                better = best.offer(found, towers)
                seconds, mean = self.clock_s() - self.began_s, float(np.mean(losses)) if losses else float("nan")
                trace.append({"step": step, "seconds": seconds, "loss": mean, **found})
                losses.clear()
                if share >= 1.0 or (not better and best.missed >= s.patience):
                    break
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1.0 - 0.9 * min(share, 1.0))
            graph = batch_neighborhood(data, self.codes, self.user_codes, self.features)
            keep = torch.rand(len(graph.product), generator=draw) >= s.id_dropout
            user, item = towers(graph, keep)
            found_loss = loss_of(user, item, data, log_scale, s.loss)
            optimizer.zero_grad(set_to_none=True)
            found_loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(found_loss.detach()))
            self.progress(f"training, loss {losses[-1]:.3f}", min(share, 1.0))
        best.restore(towers)
        return trace

    def _batches(self, seeds: Seeds, sampler: TemporalSampler, rng: np.random.Generator) -> Iterator[tuple[float, Any]]:
        """Share done, and a batch; at the end share 1 with the last batch once more."""
        data = None
        for epoch in range(self.settings.epochs):
            sampler.epoch = epoch
            runs = time_runs(len(seeds), self.settings.batch_size, rng, self.settings.shuffle)
            for i, data in enumerate(TemporalLoader(seeds, sampler, runs)):
                yield (epoch + i / len(runs)) / self.settings.epochs, data
        yield 1.0, data


def loss_of(user: Tensor, item: Tensor, data: Any, log_scale: Tensor, loss: str) -> Tensor:
    """Weighted mean loss of a batch's seeds; `user` [q, dim] and `item` [t, dim] are its embeddings."""
    query, positive = data[SEED_EDGE].edge_label_index
    weight = data[SEED_EDGE].edge_label
    if loss == "bpr":
        sign = (user[query] * item[positive]).sum(-1, keepdim=True)
        other = torch.einsum("nd,nkd->nk", user[query], item[data[SEED_EDGE].negative])
        each = fn.softplus(log_scale.exp() * (other - sign)).mean(dim=1)
    else:
        logits = log_scale.exp() * (user @ item.T)
        each = torch.logsumexp(logits - data["item"].log_q, dim=1)[query] - logits[query, positive]
    mean: Tensor = (weight * each).sum() / weight.sum()
    return mean


class Evaluator:
    """Encodes users and the whole catalogue as they stood at a time, and measures recall."""

    def __init__(
        self, history: History, config: TowerConfig, features: FeatureConfig, codes: ProductCodes,
        users: UserCodes, split_ms: int, settings: TrainConfig,
    ) -> None:  # fmt: skip
        self.history, self.config, self.features = history, config, features
        self.codes, self.user_codes, self.settings = codes, users, settings
        self.split_ms = split_ms
        self.window_ms = int(settings.validation_days * DAY_MS)
        frozen = history.freeze(split_ms - 1, settings.start.partners_max)
        self.pairs: PairHistory = history.pairs_since(frozen, split_ms + 2 * self.window_ms)
        self.sample = self._targets(0, settings.validation_users_max)

    def validate(self, towers: Towers) -> dict[str, float]:
        """Recall of a sample of users in the validation window."""
        return self._recall(towers, self.sample) if self.sample.users.shape[0] else {}

    def report(self, towers: Towers) -> dict[str, Any]:
        """Recall of the towers and of both baselines in the validation and the test window."""
        out: dict[str, Any] = {"top_k": self.settings.top_k, "split_ms": self.split_ms}
        for name, nth in (("validation", 0), ("test", 1)):
            targets = self._targets(nth, 0)
            if targets.users.shape[0]:
                found = {"towers": self._recall(towers, targets)}
                found |= baselines(self.history, targets, self.settings.top_k)
                out[name] = {"users": int(targets.users.shape[0]), "recall": found}
        return out

    @torch.no_grad()
    def encode(self, towers: Towers, users: I32, at_ms: int) -> tuple[F32, F32]:
        """Embeddings of `users` and of every product, of what was known strictly before `at_ms`."""
        size, dim = len(self.history.products), self.config.dim
        user, item = np.empty((users.shape[0], dim), np.float32), np.empty((size, dim), np.float32)
        for start in range(0, users.shape[0], 2048):
            part = users[start : start + 2048]
            graph = self._neighborhood(part, NO_NODES, at_ms)
            user[start : start + 2048] = towers.encode_users(graph, towers.x_product(graph.product)).numpy()
        for start in range(0, size, 8192):
            items = np.arange(start, min(start + 8192, size), dtype=np.int32)
            graph = self._neighborhood(NO_NODES, items, at_ms)
            item[start : start + 8192] = towers.encode_items(graph, towers.x_product(graph.product)).numpy()
        return user, item

    def _neighborhood(self, users: I32, items: I32, at_ms: int) -> Neighborhood:
        reader = HistoryReader(self.history, self.pairs, np.full(users.shape[0], at_ms, dtype=np.int64), at_ms)
        found = walk(reader, self.config, users, items, len(self.history.products))
        return neighborhood(found, self.codes, self.user_codes, self.features)

    def _targets(self, nth: int, users_max: int) -> Targets:
        at_ms = self.split_ms + nth * self.window_ms
        return Targets.of(self.history, at_ms, at_ms + self.window_ms, users_max, self.settings.seed)

    def _recall(self, towers: Towers, targets: Targets) -> dict[str, float]:
        user, item = self.encode(towers, targets.users, targets.at_ms)
        return recall(embedding_scores(targets.users, user, item), targets, self.settings.top_k)


class Checkpoint:
    """The best weights so far, by recall of all targets plus recall of novel ones; `missed` offers since."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.score, self.missed = -np.inf, 0
        self._state: dict[str, Tensor] = {}

    def offer(self, found: dict[str, float], towers: Towers) -> bool:
        """Keep the weights if they are the best; True when they were. Without validation the last are kept."""
        score = found["all"] + 4.0 * found["novel"] if found else np.inf
        if found and score <= self.score:
            self.missed += 1
            return False
        self.found, self.score, self.missed = found, score, 0
        self._state = {k: v.detach().clone() for k, v in towers.state_dict().items()}
        return True

    def restore(self, towers: Towers) -> None:
        towers.load_state_dict(self._state)


def _is_repeat(history: History, seeds: Seeds) -> Bool:
    """[n] bool: the seed's user had bought the product before."""
    lines, size = history.purchases, max(1, len(history.products))
    pair = lines.user.astype(np.int64) * size + lines.product
    known, first = np.unique(pair, return_index=True)  # lines are sorted by time
    asked = seeds.user.astype(np.int64) * size + seeds.product
    place = np.minimum(np.searchsorted(known, asked), max(0, known.shape[0] - 1))
    found = known[place] == asked if known.shape[0] else np.zeros(asked.shape[0], dtype=np.bool_)
    before: Bool = found & (lines.time[first[place]] < seeds.time)
    return before


@contextmanager
def _quiet_threads(threads: int) -> Iterator[None]:
    """Run with a fixed number of intra-op threads: sums depend on how work is split."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
