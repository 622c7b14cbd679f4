"""Training: from a history to a frozen bundle.

Trained on the orders before the split T, stopped by recall in [T, T + 7 days); nothing later is looked at. An order
is predicted from what its user did before, and from a random part of its own basket. `docs/decisions/towers.md` has
the figures behind the defaults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freshet.model import dayzero as day0
from freshet.model.at_time import TowersAt
from freshet.model.bundle import Bundle
from freshet.model.checkpoint import CheckpointFile, digest_of, flat
from freshet.model.config import DAY_MS, FeatureConfig, TowerConfig
from freshet.model.features import table_rows, user_codes
from freshet.model.fit import Fit, Progress, StateFile
from freshet.model.parity import make_fixture
from freshet.model.peers import Peers
from freshet.model.runs import Runs
from freshet.model.sampler import Candidates, PairSnapshots, Seeds, TemporalSampler
from freshet.model.towers import Towers
from freshet.model.train_config import TrainConfig
from freshet.model.validation import Validation
from freshet.model.weights import weight_shapes
from freshet.store.columns import F32, Bool
from freshet.store.history import History
from freshet.store.popularity import PopularityConfig

ID_STD = 0.05
"""Standard deviation of the ids before training."""

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


def train(
    history: History,
    settings: TrainConfig | None = None,
    config: TowerConfig | None = None,
    features: FeatureConfig | None = None,
    split_ms: int | None = None,
    progress: Progress = lambda what, share: None,
    clock_s: Callable[[], float] = time.monotonic,
    checkpoint: Path | None = None,
    peers: Peers | None = None,
) -> Bundle:
    """Train both towers on the edges before `split_ms` (default: a week before the newest edge).

    With `checkpoint` the state is kept in that file and taken up from it; the caller removes it when the bundle is
    safe. Each process of `peers` trains on its share of the batches, and all end with the same bundle.

    Raises ValueError when there is no edge to train on, and CheckpointError for a checkpoint of another training.
    """
    settings = settings or TrainConfig()
    with _quiet_threads(settings.threads):
        made = _Training(history, settings, config, features, split_ms, progress, clock_s, peers or Peers())
        return made.run(checkpoint)


class _Training:
    def __init__(
        self, history: History, settings: TrainConfig, config: TowerConfig | None, features: FeatureConfig | None,
        split_ms: int | None, progress: Progress, clock_s: Callable[[], float], peers: Peers,
    ) -> None:  # fmt: skip
        self.history, self.settings, self.progress, self.clock_s = history, settings, progress, clock_s
        self.peers = peers
        self.config = config or TowerConfig()
        self.features = features or FeatureConfig()
        if history.span_ms is None:
            raise ValueError("the history has no purchase and no view: there is nothing to train on")
        self.first_ms, last_ms = history.span_ms
        self.split_ms = int(last_ms - settings.validation_days * DAY_MS) if split_ms is None else split_ms
        torch.manual_seed(settings.seed)
        cut = self.split_ms - 1
        self.vocabulary = day0.vocabulary_of(history, cut, settings.interactions_min, self.features)
        self.codes = day0.history_codes(history, self.features, self.vocabulary)
        users = np.arange(len(history.users), dtype=np.int32)
        self.user_codes = user_codes(history.user_attributes.take(users), self.features, self.vocabulary)

    def run(self, checkpoint: Path | None) -> Bundle:
        s, history, cut_ms = self.settings, self.history, self.split_ms - 1
        self.progress("start", 0.0)
        device = _device(s)
        towers = self._untrained().to(device)
        start_ms = max(self.first_ms - 1, int(self.split_ms - s.window_days * DAY_MS))
        seeds = Seeds.of(history, start_ms, cut_ms, s.view_weight)
        if not len(seeds):
            day = datetime.fromtimestamp(self.split_ms / 1e3, UTC).date().isoformat()
            raise ValueError(
                f"no purchase or view in the {s.window_days:g} days (window_days) before the split, {day}: there is "
                "nothing to train on; set a later split, or make a day-zero bundle"
            )
        if s.novel_weight != 1.0:
            share = np.where(_is_repeat(history, seeds), 1.0, s.novel_weight)
            seeds = replace(seeds, weight=(seeds.weight * share).astype(np.float32))
        step_ms = max(1, int(s.snapshot_days * DAY_MS))
        pairs = PairSnapshots(history, list(range(start_ms, cut_ms, step_ms)) or [start_ms], s.partners_max)
        count = day0.interactions_until(history, cut_ms)
        draws = 0 if s.loss == "in_batch" else s.pool_draws
        full_max = s.full_softmax_max if s.loss == "softmax" else 0
        candidates = Candidates.of(count, s.pool_power, draws, s.negatives_each, full_max)
        bought = np.bincount(seeds.product, seeds.weight, minlength=len(history.products)).astype(np.float32)
        frozen = history.freeze(cut_ms, s.partners_max)
        validation = None
        if s.validate:
            over = TowersAt(history, towers, self.config, self.features, self.codes, self.user_codes, frozen)
            window_ms = int(s.validation_days * DAY_MS)
            validation = Validation.of(over, self.split_ms, window_ms, s.validation_users_max, s.seed)
        encoded = self.codes, self.user_codes, self.features
        file = CheckpointFile(checkpoint, self._configuration()) if checkpoint is not None else None

        def of_run(one: TrainConfig, state: StateFile | None) -> Fit:
            sampler = TemporalSampler(
                history, pairs, self.config, candidates, bought, one.seed, s.basket_share, s.dropout
            )  # fmt: skip
            number = one.seed - s.seed
            return Fit(
                one, _autocast(s, device), towers, seeds, sampler, encoded, validation, self.clock_s,
                lambda what, share: self.progress(what, (number + share) / s.runs), self.peers, state,
            )  # fmt: skip

        course = Runs(s, towers, validation, self.peers, file, of_run).run()
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
            card={"training": {"split_ms": self.split_ms, "settings": asdict(s), **course}},
        )
        bundle = replace(bundle, fixture=make_fixture(bundle))
        self.progress("done", 1.0)
        return bundle

    def _configuration(self) -> dict[str, Any]:
        """All that the steps depend on."""
        read = [*vars(self.codes).values(), *vars(self.user_codes).values(), self.history.products.hash]
        for lines in (self.history.purchases, self.history.views):
            read += [lines.user, lines.product, lines.time, lines.flag]
        return {
            "split_ms": self.split_ms,
            "processes": self.peers.size,
            "history": digest_of(read),
            **flat("train", self.settings.course()),
            **flat("towers", asdict(self.config)),
            **flat("features", asdict(self.features)),
        }

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


def _device(settings: TrainConfig) -> torch.device:
    """Raises ValueError where a GPU is asked for and there is none."""
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise ValueError("device is cuda, and PyTorch finds no GPU here: set it to auto or cpu")
    return torch.device("cuda" if there and settings.device != "cpu" else "cpu")


def _autocast(settings: TrainConfig, device: torch.device) -> bool:
    if settings.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return settings.precision == "bfloat16"


@contextmanager
def _quiet_threads(threads: int) -> Iterator[None]:
    """Run with a fixed number of intra-op threads: sums depend on how work is split."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
