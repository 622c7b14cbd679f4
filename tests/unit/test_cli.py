"""The command line as its user meets it: exit codes, one-line errors, JSON, help."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from freshet.errors import FreshetError
from freshet.stream.cli import EXIT_FENCED, EXIT_UNAVAILABLE, EXIT_USAGE, exit_code
from freshet.stream.embedded import free_port
from freshet.stream.kafka_errors import NameTaken
from tests.commands import freshet, freshet_process

TINY = Path(__file__).parents[2] / "examples" / "tiny_log"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return freshet(*arguments, env=environment)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a failed command, which is no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "command",
    [
        *"convert train tune dayzero card evaluate worker replay click recommend similar verify demo".split(),  # noqa: SIM905
        *"status broker redis query replay-eval".split(),  # noqa: SIM905
        "topics create",
        "topics describe",
        "deadletter list",
        "snapshot list",
        "snapshot inspect",
        "snapshot verify",
        "deadletter show",
        "deadletter replay",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_it_says_which_release_it_is() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"freshet {version('freshet')}\n")
    assert "Fresh embeddings" in run("--help").stdout


def test_a_level_of_the_log_that_is_none_is_named_with_those_there_are() -> None:
    done = run("--version", FRESHET_LOG="loud")
    assert done.returncode == EXIT_USAGE
    assert "FRESHET_LOG is 'loud'" in one_line(done) and "WARNING" in one_line(done)
    assert run("--version", FRESHET_LOG="info").returncode == 0


def test_a_broker_that_does_not_answer_is_named_with_the_remedy() -> None:
    where = f"127.0.0.1:{free_port()}"
    done = run("topics", "create", "--bootstrap", where, FRESHET_KAFKA_REQUEST_TIMEOUT_MS="800")
    assert done.returncode == EXIT_UNAVAILABLE
    assert where in one_line(done)
    assert "--bootstrap" in one_line(done)


def test_a_redis_that_does_not_answer_is_named_with_the_remedy() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    done = run("status", "--redis", url, FRESHET_REDIS_ATTEMPTS="1")
    assert done.returncode == EXIT_UNAVAILABLE
    assert url in one_line(done)


def test_a_redis_without_a_worker_says_so(valkey: str) -> None:
    done = run("status", "--redis", valkey)
    assert done.returncode == EXIT_USAGE
    assert "freshet worker" in one_line(done)


def test_a_data_set_that_nobody_knows_and_a_log_that_is_not_there() -> None:
    assert "completejourney" in one_line(run("convert", "netflix", "-", "/tmp/nowhere"))
    done = run("dayzero", "/nowhere/log")
    assert done.returncode == EXIT_USAGE
    assert "/nowhere/log" in one_line(done)


def test_a_bundle_that_is_not_there_is_named() -> None:
    done = run("worker", "--bundle", "/nowhere/bundle")
    assert done.returncode == EXIT_USAGE
    assert "/nowhere/bundle" in one_line(done)


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("FRESHET_WORKER_POLL_RECORDS_MAX", "many", "int"),
        ("FRESHET_WORKER_POL_RECORDS_MAX", "5", "no setting"),
        ("FRESHET_INDEX_KIND", "tree", "FRESHET_INDEX_KIND"),
    ],
)
def test_a_setting_that_cannot_be_used_names_its_variable(variable: str, value: str, hint: str) -> None:
    done = run("status", **{variable: value})
    assert done.returncode == EXIT_USAGE
    assert variable in one_line(done)
    assert hint in one_line(done)


def test_rate_and_speed_exclude_each_other() -> None:
    done = run("replay", TINY, "--rate", 5, "--speed", 5)
    assert done.returncode == EXIT_USAGE
    assert "--rate and --speed" in one_line(done)


def test_dayzero_prints_one_json_object(tmp_path: Path) -> None:
    done = run("dayzero", TINY, "--bundle", tmp_path / "bundle", "--json")
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["kind"] == "dayzero"
    assert (tmp_path / "bundle" / "bundle.json").exists()


def test_exit_codes_follow_the_kind_of_error() -> None:
    from freshet.store.embeddings import StoreUnavailable
    from freshet.stream.sink import Fenced

    assert exit_code(Fenced("x", 1)) == EXIT_FENCED
    assert exit_code(NameTaken("group", "Static consumer fenced")) == EXIT_FENCED
    assert exit_code(StoreUnavailable("x")) == EXIT_UNAVAILABLE
    assert exit_code(FreshetError("x")) == EXIT_USAGE


def test_a_part_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    done = freshet_process("dayzero", TINY, "--bundle", tmp_path / "bundle", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == EXIT_USAGE
    assert "freshet[train]" in one_line(done)


def test_a_worker_that_is_asked_to_stop_while_it_is_loaded_ends_as_asked() -> None:
    program = """
import os, signal, sys, types
starting = types.ModuleType("freshet.stream.starting")
starting.worker_settings = lambda *given: os.kill(os.getpid(), signal.SIGTERM)
starting.run_worker = lambda *given: print("asked to stop:", given[-1]())
sys.modules[starting.__name__] = starting
from freshet.stream.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program, "worker"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "asked to stop: True\n"), done.stderr
