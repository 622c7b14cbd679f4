"""Training: from a history to a frozen bundle.

Trained on the orders before the split T, stopped by recall in [T, T + 7 days); nothing later is looked at. An order
is predicted from what its user did before, and from a random part of its own basket. `docs/decisions/towers.md` has
the figures behind the defaults.
"""

from __future__ import annotations

import math
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
from freshet.model.at_time import TowersAt
from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS, FeatureConfig, TowerConfig
from freshet.model.features import table_rows, user_codes
from freshet.model.parity import make_fixture
from freshet.model.sampler import (
    SEED_EDGE,
    Candidates,
    PairSnapshots,
    Seeds,
    TemporalLoader,
    TemporalSampler,
    batch_neighborhood,
    order_runs,
)
from freshet.model.towers import Towers, weight_shapes
from freshet.model.validation import Checkpoint, Validation
from freshet.store.columns import F32, Bool
from freshet.store.history import History
from freshet.store.popularity import PopularityConfig

ID_STD = 0.05
"""Standard deviation of the ids before training."""

START_HANDICAP = 0.05
"""The closed form is kept where training does not come within this of its recall: validation is small and noisy, and
steps that leave it the same there have won on every longer period that was looked at (`docs/LOG.md`)."""

START_SHARES = {
    "user.inner.self.user": 1.0,
    "user.inner.self.product": 1.0,
    "user.inner.self.session": 1.0,
    "user.inner.contains": 1.0,
    "user.outer.purchased": 1.0,
    "user.outer.viewed": 0.5,
    "user.outer.has_session": 0.5,
    "item.inner.self.product": 1.0,
    "item.outer.self.product": 1.0,
    "item.outer.co_purchased": 0.5,
}
"""Matrices that start as this share of the identity; all others start at zero."""

Progress = Callable[[str, float], None]
"""Told what is going on and which share of it is done, 0 to 1."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    `window_days` of orders before the split are trained on, `epochs` times or until `time_budget_s` (0: no
    budget; only without one are two runs with the same seed equal to the byte).

    `loss`: `softmax` over the whole catalogue where it has at most `full_softmax_max` products, else over the
    products the batch buys and `pool_draws` others with logQ correction (Bengio and Senecal 2008; Yi et al.
    2019); `in_batch`: over what the batch buys alone, with logQ correction; `bpr` (Rendle et al. 2009) with
    `negatives_each` of the `pool_draws` for each positive. Draws are by popularity to `pool_power`.

    A batch is `batch_size` orders that are contiguous in time, and batches come in any order when `shuffle`. An
    order counts with the square root of its lines; `novel_weight` is the weight of a first purchase against a
    repeated one, `view_weight` that of a view. Of the orders of two lines and more `basket_share` have a random
    part given. `dropout`: share of the entries of a user's lists that a batch does not see; `id_dropout`: share of
    products it takes for unknown. Co-purchases are counted anew every `snapshot_days` and read from the snapshot
    before the batch; `partners_max` are kept a product. Products with `purchases_min` purchases have an id row.

    `start`: day zero's closed form, which a few small steps improve, or random ids (which want ten times the
    `learning_rate` and three times the `epochs`, and end lower on all that was tried).

    AdamW (Loshchilov and Hutter 2019) with a cosine: `learning_rate` for ids and layers, times `table_rate` for the
    tables of attributes, `scale_learning_rate` for the inverse temperature (`scale` at first) and a hundredth
    of the scale times it for the weight of popularity. Validation is by recall@20 of at most `validation_users_max`
    users, `validations` times; training stops after `patience` of them in a row without a better one. Without
    `validate` nothing after the split is looked at, and the last weights are kept.
    """

    loss: Literal["softmax", "in_batch", "bpr"] = "softmax"
    window_days: float = 365.0
    epochs: int = 3
    shuffle: bool = True
    time_budget_s: float = 0.0
    batch_size: int = 256
    pool_draws: int = 4096
    pool_power: float = 0.75
    full_softmax_max: int = 8192
    negatives_each: int = 8
    novel_weight: float = 1.0
    view_weight: float = 0.2
    basket_share: float = 0.75
    dropout: float = 0.3
    id_dropout: float = 0.1
    snapshot_days: float = 28.0
    partners_max: int = 64
    purchases_min: int = 1
    learning_rate: float = 3e-4
    table_rate: float = 0.1
    scale_learning_rate: float = 1e-2
    weight_decay: float = 0.01
    start: Literal["closed_form", "random"] = "closed_form"
    closed_form: day0.DayZeroConfig = field(default_factory=day0.DayZeroConfig)
    scale: float = 5.0
    popularity_weight: float = 0.05
    validations: int = 3
    validation_days: float = 7.0
    validation_users_max: int = 500
    patience: int = 3
    validate: bool = True
    threads: int = 2
    seed: int = 0


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
        self.vocabulary = day0.vocabulary_of(history, cut, settings.purchases_min)
        self.codes = day0.history_codes(history, self.features, self.vocabulary)
        users = np.arange(len(history.users), dtype=np.int32)
        self.user_codes = user_codes(history.user_attributes.take(users), self.features, self.vocabulary)

    def run(self) -> Bundle:
        s, history, cut_ms = self.settings, self.history, self.split_ms - 1
        self.progress("start", 0.0)
        towers = self._untrained()
        start_ms = max(_first_ms(history) - 1, int(self.split_ms - s.window_days * DAY_MS))
        seeds = Seeds.of(history, start_ms, cut_ms, s.view_weight)
        if not len(seeds):
            raise ValueError(f"no edge in the {s.window_days} days before the split: set another split or window")
        if s.novel_weight != 1.0:
            share = np.where(_is_repeat(history, seeds), 1.0, s.novel_weight)
            seeds = replace(seeds, weight=(seeds.weight * share).astype(np.float32))
        step_ms = max(1, int(s.snapshot_days * DAY_MS))
        pairs = PairSnapshots(history, list(range(start_ms, cut_ms, step_ms)) or [start_ms], s.partners_max)
        count = day0.counts_until(history, cut_ms) + day0.counts_until(history, cut_ms, views=True)
        draws = 0 if s.loss == "in_batch" else s.pool_draws
        full_max = s.full_softmax_max if s.loss == "softmax" else 0
        candidates = Candidates.of(count, s.pool_power, draws, s.negatives_each, full_max)
        bought = np.bincount(seeds.product, seeds.weight, minlength=len(history.products)).astype(np.float32)
        sampler = TemporalSampler(
            history, pairs, self.config, candidates, bought, s.seed, s.basket_share, s.dropout
        )  # fmt: skip
        frozen = history.freeze(cut_ms, s.partners_max)
        validation = None
        if s.validate:
            over = TowersAt(history, towers, self.config, self.features, self.codes, self.user_codes, frozen)
            window_ms = int(s.validation_days * DAY_MS)
            validation = Validation.of(over, self.split_ms, window_ms, s.validation_users_max, s.seed)
        trace = self._fit(towers, seeds, sampler, validation)
        popularity = self.config.popularity or PopularityConfig()
        bundle = Bundle(
            kind="trained",
            config=self.config,
            features=self.features,
            weights=towers.export(),
            vocabulary=self.vocabulary,
            cut_ms=cut_ms,
            pairs=day0.frozen_pairs(history, frozen),
            popular=day0.frozen_popularity(history, cut_ms, popularity),
            card={"training": {"split_ms": self.split_ms, "settings": asdict(s), "trace": trace}},
        )
        bundle = replace(bundle, fixture=make_fixture(bundle))
        self.progress("done", 1.0)
        return bundle

    def _untrained(self) -> Towers:
        """The closed form, or ids at random, attributes that say nothing yet and layers that propagate."""
        config, rows = self.config, len(self.vocabulary.row_of) + 1
        if self.settings.start == "closed_form":
            return Towers(config, self.features, rows, fused=True).load(self._closed_form())
        weights = {
            name: np.zeros(shape, dtype=np.float32)
            for name, shape in weight_shapes(config, self.features, rows).items()
        }
        rng = np.random.default_rng(self.settings.seed)
        weights["product.id"][1:] = rng.normal(0.0, ID_STD, weights["product.id"][1:].shape)
        one = np.eye(config.dim, dtype=np.float32)
        for name, share in START_SHARES.items():
            if name in weights:
                weights[name][:] = share * one
        if config.popularity is not None:
            weights["popularity.weight"][:] = self.settings.popularity_weight
        return Towers(config, self.features, rows, fused=True).load(weights)

    def _closed_form(self) -> dict[str, F32]:
        """Day zero's weights of what was before the split, with tables of the size of random ids."""
        weights = day0.closed_form(
            self.history, self.config, self.features, self.settings.closed_form, self.vocabulary, self.codes,
            self.split_ms - 1,
        )  # fmt: skip
        tables = table_rows(self.features, len(self.vocabulary.row_of) + 1)
        for name in tables:
            weights[name] *= np.float32(ID_STD * self.config.dim**0.5)
        return weights

    def _optimizer(self, towers: Towers, log_scale: nn.Parameter) -> torch.optim.AdamW:
        s = self.settings
        tables = [p for name, p in towers.table.items() if name != "product_id"]
        rest = [towers.table["product_id"], *towers.layer.parameters()]
        groups = [
            {"params": tables, "lr": s.learning_rate * s.table_rate},
            {"params": rest, "lr": s.learning_rate},
            {"params": [log_scale], "lr": s.scale_learning_rate, "weight_decay": 0.0},
        ]
        if self.config.popularity is not None:
            rate = s.scale_learning_rate / s.scale
            groups.append({"params": [towers.popularity], "lr": rate, "weight_decay": 0.0})
        return torch.optim.AdamW(groups, weight_decay=s.weight_decay, fused=True)

    def _fit(
        self, towers: Towers, seeds: Seeds, sampler: TemporalSampler, validation: Validation | None
    ) -> list[dict[str, float]]:
        s = self.settings
        rng = np.random.default_rng(s.seed)
        draw = torch.Generator().manual_seed(s.seed)
        log_scale = nn.Parameter(torch.tensor(float(np.log(s.scale))))
        optimizer = self._optimizer(towers, log_scale)
        rates = [group["lr"] for group in optimizer.param_groups]
        best, trace = Checkpoint(), list[dict[str, float]]()
        fit_s = self.clock_s()
        due, losses = int(s.start != "closed_form"), list[float]()  # a closed form may be the best there is
        for step, (share, data) in enumerate(self._batches(seeds, sampler, rng)):
            spent = (self.clock_s() - fit_s) / s.time_budget_s if s.time_budget_s > 0 else 0.0
            share = max(share, spent)
            if share * s.validations >= due or share >= 1.0:
                due = int(share * s.validations) + 1
                found = validation.recall() if validation is not None else {}
                better = best.offer(found, towers, handicap=START_HANDICAP if step == 0 else 0.0)
                seconds, scale = self.clock_s() - self.began_s, float(log_scale.detach().exp())
                loss = {"loss": float(np.mean(losses))} if losses else {}
                trace.append({"step": step, "seconds": seconds, **loss, "scale": scale, **found})
                losses.clear()
                if share >= 1.0 or (not better and best.missed >= s.patience):
                    break
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
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
            runs = order_runs(seeds, self.settings.batch_size, rng, self.settings.shuffle)
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
    mean: Tensor = (weight * each).sum() / weight.sum().clamp_min(1e-9)
    return mean


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


def _first_ms(history: History) -> int:
    return min(int(part.time[0]) for part in (history.purchases, history.views) if part.time.shape[0])


@contextmanager
def _quiet_threads(threads: int) -> Iterator[None]:
    """Run with a fixed number of intra-op threads: sums depend on how work is split."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
