"""`freshet train` and `tune` as their user meets them: settings files, interruption, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from freshet.model.bundle import Bundle
from freshet.stream.cli import EXIT_USAGE
from tests.unit.query_logs import shop, write_log
from tests.unit.test_cli import one_line, run

ROOT = Path(__file__).parents[2]
QUICK = {"batch_size": 32, "epochs": 1, "runs": 2, "pool_draws": 40, "threads": 1}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("training") / "log", shop())


def settings(folder: Path, **train: object) -> Path:
    path = folder / "settings.json"
    path.write_bytes(msgspec.json.encode({"train": {**QUICK, **train}, "towers": {"dim": 16, "views": 0}}))
    return path


def test_options_go_before_the_file_and_the_file_before_the_defaults(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    done = run("train", log, "--bundle", path, "--settings", settings(tmp_path, seed=5), "--seed", 7, "--loss", "bpr",
               "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout)["card"]["training"]["settings"]
    assert (used["seed"], used["loss"], used["batch_size"], used["dropout"]) == (7, "bpr", 32, 0.3)
    bundle = Bundle.load(path)
    assert bundle.config.dim == 16 and "viewed" not in bundle.config.user.outer
    assert not list(tmp_path.glob("*.checkpoint*")), "a checkpoint is gone when the bundle is saved"


def test_refit_trains_on_everything_and_says_what_its_measures_are_of(log: Path, tmp_path: Path) -> None:
    file = settings(tmp_path)
    for name, options in (("one", []), ("whole", ["--refit"])):
        done = run("train", log, "--bundle", tmp_path / name, "--settings", file, *options)
        assert done.returncode == 0, done.stderr
    one, whole = Bundle.load(tmp_path / "one"), Bundle.load(tmp_path / "whole")
    assert whole.cut_ms > one.cut_ms
    newest = max(e.timestamp or 0 for e in shop())
    assert whole.cut_ms == newest
    of_one, of_whole = (bundle.card["windows"]["validation"]["systems"] for bundle in (one, whole))
    assert set(of_one) - set(of_whole) == {"final_ranker"}, "fitted on the very window, it would look too good there"
    assert {name: of_one[name] for name in of_whole} == of_whole, "measured on what came after the first cut"
    assert whole.card["training"]["settings"]["validate"] is False


def test_an_interrupted_training_says_how_to_go_on_and_how_to_begin_anew(log: Path, tmp_path: Path) -> None:
    file = settings(tmp_path, epochs=400, patience=999, checkpoint_every_s=0.001)
    command = [sys.executable, "-m", "freshet.stream.cli", "train", str(log), "--bundle", str(tmp_path / "bundle"),
               "--settings", str(file)]  # fmt: skip
    state = tmp_path / "bundle.checkpoint"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as training:
        end = time.monotonic() + 100
        while not state.exists() and time.monotonic() < end and training.poll() is None:
            time.sleep(0.05)
        training.send_signal(signal.SIGINT)
        said = " ".join(training.communicate(timeout=60)[1].split())
    assert training.returncode == 130, said
    assert "interrupted: the same command goes on from the last checkpoint" in said
    assert "Traceback" not in said
    assert state.exists()
    settings(tmp_path, epochs=399, patience=999, checkpoint_every_s=0.001)
    other = run(*command[3:])
    assert other.returncode == EXIT_USAGE
    assert "train.epochs (400 there, 399 here)" in one_line(other)
    settings(tmp_path)
    done = run(*command[3:], "--restart")
    assert done.returncode == 0, done.stderr
    assert not state.exists()


def test_two_processes_make_one_bundle(log: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
         "freshet.stream.cli", "train", str(log), "--bundle", str(tmp_path / "bundle"),
         "--settings", str(settings(tmp_path)), "--json"],
        capture_output=True, text=True, timeout=180, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout)
    assert Bundle.load(tmp_path / "bundle").model_version == made["model_version"], "one wrote, and it is whole"


def test_tune_writes_what_train_reads(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = run("tune", log, "--out", out, "--settings", settings(tmp_path), "--tries", 2, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["tries"]) == 2 and found["tries"][0]["score"] >= found["tries"][1]["score"]
    assert json.loads(out.read_bytes()) == {"train": found["train"], "towers": found["towers"]}
    again = run("train", log, "--bundle", tmp_path / "bundle", "--settings", out)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "hinge"], "--loss 'hinge' is not known: softmax, in_batch or bpr"),
        (["--settings", "/nowhere.json"], "the settings file /nowhere.json cannot be read"),
        (["--before", "tomorrow"], "--before 'tomorrow' is not a date"),
        (["--before", "1999-01-01"], "nothing to train on; set a later split, or make a day-zero bundle"),
    ],
)
def test_train_names_the_option_that_is_wrong(log: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = run("train", log, "--bundle", tmp_path / "bundle", *options)
    assert done.returncode == EXIT_USAGE
    assert message in one_line(done)
    assert not (tmp_path / "bundle").exists()


def test_tune_names_a_file_it_cannot_write(log: Path, tmp_path: Path) -> None:
    done = run("tune", log, "--out", "/nowhere/found.json", "--settings", settings(tmp_path), "--tries", 1)
    assert done.returncode == EXIT_USAGE
    assert "--out /nowhere/found.json cannot be written: No such file" in one_line(done)
