"""Training that is interrupted, that goes on, that runs in several processes, and in half precision."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from freshet.model.bundle import Bundle
from freshet.model.checkpoint import CheckpointError
from freshet.model.config import DAY_MS, TowerConfig
from freshet.model.dayzero import history_codes, vocabulary_of
from freshet.model.features import user_codes
from freshet.model.neighborhood import neighborhood, walk
from freshet.model.peers import Peers
from freshet.model.sampler import HistoryReader, PopularityHistory
from freshet.model.towers import Towers
from freshet.model.train import train
from freshet.model.train_config import TrainConfig
from freshet.store.history import History
from tests.unit.test_train import FEATURES, SMALL, shop

SPLIT_MS = 66 * DAY_MS
ROOT = Path(__file__).parents[2]


class Interrupted(Exception):
    """Somebody pulled the plug."""


class PullThePlug:
    """Progress that fails after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, what: str, share: float) -> None:
        if what.startswith("training"):
            self.left -= 1
        if self.left < 0:
            raise Interrupted


@pytest.fixture(scope="module")
def history() -> History:
    return History.of([shop()])


@pytest.fixture(scope="module")
def whole(history: History) -> Bundle:
    return train(history, SMALL, features=FEATURES, split_ms=SPLIT_MS)


def resumed(history: History, path: Path, settings: TrainConfig = SMALL, plugs: tuple[int, ...] = ()) -> Bundle:
    settings = replace(settings, checkpoint_every_s=0.0)
    for steps in plugs:
        with pytest.raises(Interrupted):
            train(history, settings, features=FEATURES, split_ms=SPLIT_MS, progress=PullThePlug(steps), checkpoint=path)
    return train(history, settings, features=FEATURES, split_ms=SPLIT_MS, checkpoint=path)


@pytest.mark.parametrize("plugs", [(1,), (20,), (5, 30, 2)])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    history: History, whole: Bundle, tmp_path: Path, plugs: tuple[int, ...]
) -> None:
    path = tmp_path / "state"
    made = resumed(history, path, plugs=plugs)
    assert {name: value.tobytes() for name, value in made.weights.items()} == {
        name: value.tobytes() for name, value in whole.weights.items()
    }
    trace = [{k: v for k, v in row.items() if k != "seconds"} for row in made.card["training"]["trace"]]
    assert trace == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.card["training"]["trace"]]
    again = resumed(history, path)
    assert again.model_version == made.model_version, "a training that is over is not done again"
    assert again.card["training"]["trace"] == made.card["training"]["trace"], "not even its last validation"


def test_a_resumed_training_does_not_start_anew(history: History, tmp_path: Path) -> None:
    path, said = tmp_path / "state", list[str]()
    with pytest.raises(Interrupted):
        train(history, replace(SMALL, checkpoint_every_s=0.0), features=FEATURES, split_ms=SPLIT_MS,
              progress=PullThePlug(7), checkpoint=path)  # fmt: skip
    train(history, SMALL, features=FEATURES, split_ms=SPLIT_MS, checkpoint=path,
          progress=lambda what, share: said.append(what))  # fmt: skip
    assert "goes on after step 7" in said


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (replace(SMALL, epochs=9), r"train\.epochs \(3 there, 9 here\)"),
        (replace(SMALL, loss="bpr"), r"train\.loss \('softmax' there, 'bpr' here\)"),
        (replace(SMALL, seed=1), r"train\.seed"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    history: History, tmp_path: Path, changed: TrainConfig, named: str
) -> None:
    path = interrupted(history, tmp_path)
    with pytest.raises(CheckpointError, match=named):
        train(history, changed, features=FEATURES, split_ms=SPLIT_MS, checkpoint=path)
    assert path.exists(), "what was refused is kept"


def test_a_checkpoint_of_other_towers_data_or_split_is_refused(history: History, tmp_path: Path) -> None:
    path = interrupted(history, tmp_path)
    with pytest.raises(CheckpointError, match=r"towers\.dim"):
        train(history, SMALL, TowerConfig(dim=64), FEATURES, SPLIT_MS, checkpoint=path)
    with pytest.raises(CheckpointError, match="split_ms"):
        train(history, SMALL, features=FEATURES, split_ms=SPLIT_MS - DAY_MS, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"history .*--restart"):
        train(History.of([shop(seed=1)]), SMALL, features=FEATURES, split_ms=SPLIT_MS, checkpoint=path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_a_torn_checkpoint_is_named(history: History, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state cannot be read, it is torn: .*--restart"):
        train(history, SMALL, features=FEATURES, split_ms=SPLIT_MS, checkpoint=path)


def test_a_checkpoint_of_another_format_is_named(history: History, tmp_path: Path) -> None:
    path = tmp_path / "state"
    torch.save({"format": 0}, path)
    with pytest.raises(CheckpointError, match="another version"):
        train(history, SMALL, features=FEATURES, split_ms=SPLIT_MS, checkpoint=path)


def test_a_checkpoint_that_cannot_be_written_is_named(history: History, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        train(history, replace(SMALL, checkpoint_every_s=0.0), features=FEATURES, split_ms=SPLIT_MS,
              checkpoint=tmp_path / "no folder" / "state")  # fmt: skip


def interrupted(history: History, folder: Path) -> Path:
    path = folder / "state"
    with pytest.raises(Interrupted):
        train(history, replace(SMALL, checkpoint_every_s=0.0), features=FEATURES, split_ms=SPLIT_MS,
              progress=PullThePlug(4), checkpoint=path)  # fmt: skip
    return path


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """Each on half of the batches, over gloo: the same weights in both, and they learn."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "tests.unit.train_together", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [np.load(tmp_path / f"{rank}.npz") for rank in (0, 1)]
    for name in set(found[0].files) - {"losses"}:
        assert np.array_equal(found[0][name], found[1][name]), name
    losses = found[0]["losses"]
    assert losses[-1] < losses[0]


def test_processes_share_batches_evenly() -> None:
    shares = [Peers(rank, 3).share(range(11)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert Peers().share(range(3)) == [0, 1, 2]
    assert Peers(1, 3).share(range(2)) == [0, 1], "too few to share: everybody takes all"


def test_layers_in_bfloat16_learn_alike(history: History, whole: Bundle) -> None:
    """Half precision is for GPUs; that norms and losses stay in float32 shows on a CPU, too."""
    half = train(history, replace(SMALL, precision="bfloat16"), features=FEATURES, split_ms=SPLIT_MS)
    assert not np.array_equal(half.weights["product.id"], whole.weights["product.id"])
    last = [made.card["training"]["trace"][-1]["loss"] for made in (half, whole)]
    assert last[0] == pytest.approx(last[1], rel=0.02)


def test_a_forward_pass_stays_on_the_device_of_the_weights(history: History) -> None:
    """On the device without content every operand has to be there; this machine may have no other."""
    config = TowerConfig()
    vocabulary = vocabulary_of(history, SPLIT_MS, 1)
    products = history_codes(history, FEATURES, vocabulary)
    users = np.arange(len(history.users), dtype=np.int32)
    of_users = user_codes(history.user_attributes.take(users), FEATURES, vocabulary)
    assert config.popularity is not None
    pairs = history.pairs_since(history.freeze(SPLIT_MS, 8), SPLIT_MS)
    at_ms = np.full(users.shape[0], SPLIT_MS, dtype=np.int64)
    reader = HistoryReader(history, pairs, at_ms, SPLIT_MS, popularity=PopularityHistory(history, config.popularity))
    items = np.arange(len(history.products), dtype=np.int32)
    found = walk(reader, config, users, items, items.shape[0])
    towers = Towers(config, FEATURES, len(vocabulary.row_of) + 1, fused=True).to("meta")
    user, item = towers(neighborhood(found, products, of_users, FEATURES).to(towers.device))
    assert (user.device.type, item.device.type) == ("meta", "meta")
    assert user.shape == (users.shape[0], config.dim) and item.shape == (items.shape[0], config.dim)


def test_a_gpu_that_is_not_there_is_named(history: History) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"device is cuda.*auto or cpu"):
        train(history, replace(SMALL, device="cuda"), features=FEATURES, split_ms=SPLIT_MS)
