"""How to train: every setting of `freshet train`, with what was found to work (`docs/decisions/towers.md`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from freshet.model.dayzero import DayZeroConfig
from freshet.model.objective import Loss
from freshet.model.score import score_of


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    `window_days` of orders before the split are trained on, `epochs` times or until `time_budget_s` (0: no
    budget; only without one are two trainings with the same seed equal to the byte). `runs` trainings, which share the
    budget, differ in their seeds alone (`seed`, `seed` + 1, ...); the average of their weights is kept.

    `loss`: `softmax` over the whole catalogue where it has at most `full_softmax_max` products, else over the
    products the batch buys and `pool_draws` others with logQ correction (Bengio and Senecal 2008; Yi et al.
    2019); `in_batch`: over what the batch buys alone, with logQ correction; `bpr` (Rendle et al. 2009) with
    `negatives_each` of the `pool_draws` for each positive. Draws are by popularity to `pool_power`.

    A batch is `batch_size` orders that are contiguous in time, and batches come in any order when `shuffle`. An
    order counts with the square root of its lines; `novel_weight` is the weight of a first purchase against a
    repeated one, `view_weight` that of a view. Of the orders of two lines and more `basket_share` have a random
    part given. `dropout`: share of the entries of a user's lists that a batch does not see; `id_dropout`: share of
    products it takes for unknown. Co-purchases are counted anew every `snapshot_days` and read from the snapshot
    before the batch; `partners_max` are kept a product. Products with `interactions_min` purchases and views
    have an id row.

    `start`: day zero's closed form, which a few small steps improve, or random ids (which want ten times the
    `learning_rate` and three times the `epochs`, and end lower on all that was tried). The weights that are kept hold
    `start_share` of those of the start, which has to be the closed form (Wortsman et al. 2022, "robust fine-tuning"):
    with random ids it has to be 0.

    AdamW (Loshchilov and Hutter 2019) with a cosine: `learning_rate` for ids and layers, times `table_rate` for the
    tables of attributes, `scale_learning_rate` for the inverse temperature (`scale` at first) and a hundredth
    of the scale times it for the weight of popularity. Validation is by recall@20 of at most `validation_users_max`
    users, `validations` times; training stops after `patience` of them in a row without a better one. Without
    `validate` nothing after the split is looked at, and the last weights are kept; with 0 `epochs` those of the start.

    `device` auto is a GPU where there is one, and `precision` auto is bfloat16 on a GPU that has it and float32
    elsewhere. A training that may be interrupted writes its state every `checkpoint_every_s`, at the least.
    """

    loss: Loss = "softmax"
    window_days: float = 365.0
    epochs: int = 6
    runs: int = 3
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
    interactions_min: int = 1
    learning_rate: float = 1e-3
    table_rate: float = 0.1
    scale_learning_rate: float = 1e-2
    weight_decay: float = 0.01
    start: Literal["closed_form", "random"] = "closed_form"
    start_share: float = 0.3
    closed_form: DayZeroConfig = field(default_factory=DayZeroConfig)
    scale: float = 5.0
    popularity_weight: float = 0.05
    validations: int = 3
    validation_days: float = 7.0
    validation_users_max: int = 500
    patience: int = 3
    validate: bool = True
    threads: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("window_days", "batch_size", "pool_draws", "negatives_each", "snapshot_days",
                     "learning_rate", "scale", "runs", "validations", "validation_days", "patience",
                     "threads"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be greater than 0")
        for name in ("epochs", "time_budget_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("basket_share", "dropout", "id_dropout", "start_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it is a share, from 0 to 1")
        if self.start_share and self.start != "closed_form":
            raise ValueError(f"start_share is {self.start_share}: random ids are worth no share; start has to be "
                             "closed_form, or start_share 0")  # fmt: skip

    def until_best(self, training: Mapping[str, Any]) -> TrainConfig:
        """To train on everything: as long as the kept weights of a validated training took, of which the card has
        `training`."""
        trace: Sequence[Mapping[str, float]] = training["trace"]
        one_kept = training["averaged"] == 1
        rows = [row for row in trace if ("averaged" in row) != one_kept]
        share = max(rows, key=score_of)["share"] if rows and "all" in rows[0] else 1.0
        epochs = max(1, round(self.epochs * share)) if share else 0
        budget_s = self.time_budget_s * share * (training["averaged"] / self.runs)
        return replace(self, epochs=epochs, runs=training["averaged"], time_budget_s=budget_s, validate=False)

    def course(self) -> dict[str, Any]:
        """All that the course of a training depends on, by name."""
        free = ("time_budget_s", "threads", "checkpoint_every_s")
        return {name: value for name, value in asdict(self).items() if name not in free}
