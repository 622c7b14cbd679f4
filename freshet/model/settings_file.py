"""The settings of a training as a file, `{"train": {NAME: value}, "towers": {"dim": 128}}`: what `freshet tune` writes
and `freshet train --settings` reads. What is not named has its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from freshet.errors import FreshetError
from freshet.model.config import DAY_MS, TowerConfig
from freshet.model.train_config import TrainConfig
from freshet.store.lists import Gather
from freshet.store.popularity import PopularityConfig

POPULARITY_DAYS_MAX = 36_500
"""The longest half-life of popularity, in days: a century, by when nothing decays."""


class SettingsFileError(FreshetError):
    """A settings file that cannot be read, or names what is no setting."""


@dataclass(frozen=True)
class Towers:
    """What a settings file says of the towers: dimensions, how many neighbours of a relation are read (0: it is left
    out), and the half-life of popularity; None is the default."""

    dim: int | None = None
    purchases: int | None = None
    views: int | None = None
    partners: int | None = None
    popularity_days: float | None = None

    def config(self) -> TowerConfig:
        """The towers. Raises ValueError for a number that cannot be."""
        for name, value in vars(self).items():
            some = name in ("dim", "popularity_days")
            if value is not None and (value <= 0 if some else value < 0):
                raise ValueError(f"{name} is {value}: it must be {'greater than 0' if some else '0 or more'}")
        if self.popularity_days is not None and not self.popularity_days <= POPULARITY_DAYS_MAX:
            raise ValueError(f"popularity_days is {self.popularity_days:g}: it is at most {POPULARITY_DAYS_MAX}")
        default = TowerConfig()
        user = {"purchased": self.purchases, "viewed": self.views}
        item = {"co_purchased": self.partners}
        return replace(
            default,
            dim=self.dim or default.dim,
            user=replace(default.user, outer=_of_lengths(default.user.outer, user)),
            item=replace(default.item, outer=_of_lengths(default.item.outer, item)),
            popularity=self._popularity(),
        )

    def _popularity(self) -> PopularityConfig:
        default = PopularityConfig()
        days = self.popularity_days
        return default if days is None else replace(default, half_life_ms=max(1, round(days * DAY_MS)))


def _of_lengths(reads: Mapping[str, Gather], lengths: Mapping[str, int | None]) -> dict[str, Gather]:
    changed = {
        name: replace(read, num_neighbors=length) if (length := lengths.get(name)) is not None else read
        for name, read in reads.items()
    }
    return {name: read for name, read in changed.items() if read.num_neighbors}


@dataclass(frozen=True)
class Chosen:
    """A training and towers."""

    train: TrainConfig = field(default_factory=TrainConfig)
    towers: Towers = field(default_factory=Towers)

    def changed(self) -> dict[str, dict[str, Any]]:
        """What differs from the defaults: the content of a settings file."""
        default = TrainConfig()
        train = {f.name: getattr(self.train, f.name) for f in fields(TrainConfig)}
        return {
            "train": {name: value for name, value in train.items() if value != getattr(default, name)},
            "towers": {name: value for name, value in vars(self.towers).items() if value is not None},
        }


def read_settings(path: Path) -> Chosen:
    """Raises SettingsFileError naming the setting."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except OSError as e:
        raise SettingsFileError(f"the settings file {path} cannot be read: {e.strerror or e}") from e
    except msgspec.DecodeError as e:
        raise SettingsFileError(f"the settings file {path} is not JSON: {e}") from e
    if not isinstance(found, dict):
        raise SettingsFileError(f'the settings file {path} is no object such as {{"train": {{"epochs": 3}}}}')
    for part, known in (("train", fields(TrainConfig)), ("towers", fields(Towers))):
        names = found.get(part, {})
        strange = sorted(set(names) - {f.name for f in known}) if isinstance(names, dict) else []
        if strange:
            raise SettingsFileError(
                f"the settings file {path}: {part} has no setting {', '.join(strange)}; "
                f"there are {', '.join(f.name for f in known)}"
            )
    strange = sorted(set(found) - {"train", "towers"})
    if strange:
        raise SettingsFileError(f"the settings file {path}: {', '.join(strange)} is neither train nor towers")
    try:
        chosen = msgspec.convert(found, Chosen)
        chosen.towers.config()
    except (msgspec.ValidationError, ValueError) as e:
        raise SettingsFileError(f"the settings file {path}: {e}") from e
    return chosen
