"""Settings files of a training: what they may say, and how they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from freshet.model.config import TowerConfig
from freshet.model.settings_file import Chosen, SettingsFileError, Towers, read_settings
from freshet.model.train_config import TrainConfig
from freshet.store.popularity import PopularityConfig


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "settings.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_an_empty_file_of_settings_says_the_defaults(tmp_path: Path) -> None:
    found = read_settings(written(tmp_path, "{}"))
    assert found == Chosen()
    assert found.towers.config() == TowerConfig()
    assert found.changed() == {"train": {}, "towers": {}}


def test_what_is_changed_comes_back_from_a_file(tmp_path: Path) -> None:
    chosen = Chosen(replace(TrainConfig(), epochs=5, loss="bpr", dropout=0.1), Towers(dim=64, partners=0))
    assert chosen.changed() == {
        "train": {"epochs": 5, "loss": "bpr", "dropout": 0.1}, "towers": {"dim": 64, "partners": 0},
    }  # fmt: skip
    assert read_settings(written(tmp_path, msgspec.json.encode(chosen.changed()))) == chosen


def test_every_setting_of_a_training_can_be_in_a_file(tmp_path: Path) -> None:
    whole = msgspec.json.encode({"train": msgspec.to_builtins(TrainConfig())})
    assert read_settings(written(tmp_path, whole)).train == TrainConfig()


def test_towers_read_as_many_neighbors_as_the_file_says() -> None:
    config = Towers(dim=64, purchases=20, views=0, partners=7, popularity_days=2.5).config()
    assert config.dim == 64
    assert config.user.outer["purchased"].num_neighbors == 20
    assert "viewed" not in config.user.outer
    assert config.item.outer["co_purchased"].num_neighbors == 7
    assert config.user.inner == TowerConfig().user.inner
    assert config.popularity == replace(PopularityConfig(), half_life_ms=2.5 * 86_400_000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ("[1]", "is no object"),
        ('{"train": {"epochs": 3}, "worker": {}}', "worker is neither train nor towers"),
        ('{"train": {"epoch": 3}}', r"train has no setting epoch; there are .*epochs"),
        ('{"towers": {"width": 3}}', r"towers has no setting width; there are dim, .*popularity_days"),
        ('{"train": {"epochs": "three"}}', r"Expected `int`, got `str` - at `\$\.train\.epochs`"),
        ('{"train": {"loss": "hinge"}}', r"\$\.train\.loss"),
        ('{"train": 3}', r"\$\.train"),
        ('{"train": {"dropout": 2}}', "dropout is 2.*from 0 to 1"),
        ('{"train": {"batch_size": 0}}', "batch_size is 0: it must be greater than 0"),
        ('{"towers": {"dim": 0}}', "dim is 0: it must be greater than 0"),
        ('{"towers": {"views": -1}}', "views is -1: it must be 0 or more"),
        ('{"towers": {"popularity_days": 0}}', "popularity_days is 0.*: it must be greater than 0"),
        ('{"towers": {"popularity_days": 1e300}}', r"popularity_days is 1e\+300: it is at most 36500"),
    ],
)
def test_a_bad_file_names_itself_and_the_setting(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(SettingsFileError, match=rf"(?s)settings\.json.*{message}"):
        read_settings(written(tmp_path, content))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsFileError, match=r"nowhere\.json cannot be read: No such file"):
        read_settings(tmp_path / "nowhere.json")
