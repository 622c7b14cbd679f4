"""Setting up: what `make` would do, the pins, and what each extra brings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
PINS: dict[str, Requirement] = {
    canonicalize_name(pin.name): pin
    for pin in (Requirement(line) for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))
}
MAKE_INPUTS = ("Makefile", "pyproject.toml", "constraints.txt")


def closure(extra: str = "") -> set[str]:
    """Every distribution that `freshet[extra]` brings to this machine, itself left out."""
    found: set[str] = set()
    wanted = [("freshet", extra)]
    done: set[tuple[str, str]] = set()
    while wanted:
        name, with_extra = wanted.pop()
        if (name, with_extra) in done:
            continue
        done.add((name, with_extra))
        found.add(name)
        for text in distribution(name).requires or ():
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": with_extra}):
                child = canonicalize_name(required.name)
                wanted += [(child, ""), *((child, further) for further in required.extras)]
    return found - {"freshet"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which nothing was set up yet."""
    for name in MAKE_INPUTS:
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def make(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What `make` prints; with `-n`, the commands that it would run."""
    # A make that runs these tests hands its own flags and settings down.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in ("MFLAGS", "PYTHON")}
    inherited.pop("TORCH_INDEX_URL", None)
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**inherited, **(environment or {})}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def pretend_done(folder: Path, target: str) -> None:
    """Leave the stamps that setting up for `target` leaves."""
    planned = make(folder, "-n", target)
    stamps = re.findall(r"^touch (\.venv/\.state/\S+)$", planned, re.M)
    assert stamps
    for stamp in stamps:
        (folder / stamp).parent.mkdir(parents=True, exist_ok=True)
        (folder / stamp).touch()


# --- make ---------------------------------------------------------------------------------------


def test_torch_is_installed_once_for_both_commands(folder: Path) -> None:
    first = make(folder, "-n", "demo")
    assert len(re.findall(r"pip install .* torch$", first, re.M)) == 1
    assert "5 GB" in first
    pretend_done(folder, "demo")
    second = make(folder, "-n", "test")
    assert not re.search(r"pip install .* torch$", second, re.M)
    assert "-e '.[test]'" in second
    assert "-e '.[demo]'" not in second


def test_repeating_installs_nothing(folder: Path) -> None:
    pretend_done(folder, "test")
    assert "pip" not in make(folder, "-n", "demo")
    assert "pip" not in make(folder, "-n", "test")


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_pin_is_installed(folder: Path, name: str) -> None:
    pretend_done(folder, "test")
    with (folder / name).open("a") as file:
        file.write("# changed\n")
    planned = make(folder, "-n", "test")
    assert "-e '.[demo]'" in planned
    assert "-e '.[test]'" in planned
    assert not re.search(r"pip install .* torch$", planned, re.M)  # 5 GB: only for another version of its own


def test_another_index_is_for_torch_alone(folder: Path) -> None:
    planned = make(folder, "-n", "test", environment={"TORCH_INDEX_URL": "https://wheels.example/cpu"})
    asked = [line for line in planned.splitlines() if "wheels.example" in line]
    assert len(asked) == 1
    assert asked[0].endswith(" torch")
    assert "--no-deps" in asked[0]
    assert "5 GB" not in planned


def test_every_installation_is_pinned(folder: Path) -> None:
    planned = [line for line in make(folder, "-n", "test").splitlines() if "pip install" in line]
    assert planned
    assert all("-c constraints.txt" in line for line in planned)


@pytest.mark.parametrize("program", ["old-python", "no-such-python"])
def test_a_python_that_is_too_old_or_missing_is_named(folder: Path, program: str) -> None:
    if program == "old-python":
        path = folder / program
        path.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.9" && exit 0\nexit 1\n')
        path.chmod(0o755)
        program = f"./{program}"
    said = make(folder, "setup", f"PYTHON={program}")
    assert "needs Python 3.11 or newer" in said
    assert program in said
    assert not (folder / ".venv").exists()


def test_help_lists_every_target_of_the_makefile(folder: Path) -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony is not None
    listed = set(re.findall(r"^  make (\w+)\t", make(folder), re.M))
    assert listed == set(phony[1].split()) - {"system"}


def test_every_benchmark_is_run_by_make_bench_or_named_as_a_long_one() -> None:
    quick, long = (set(line.split()) for line in re.findall(r"BENCHES := (.+)$", (ROOT / "Makefile").read_text(), re.M))
    assert not quick & long
    assert quick | long == {p.stem for p in (ROOT / "bench").glob("*.py") if "__main__" in p.read_text()}


# --- pins ---------------------------------------------------------------------------------------


def test_everything_that_is_installed_is_pinned_as_it_is_pinned() -> None:
    brought = closure("test")
    assert "torch" in brought
    assert not sorted(brought - PINS.keys()), "not pinned"
    assert not [f"{name} {version(name)}" for name in brought if not PINS[name].specifier.contains(version(name))]


def test_pins_name_versions_and_nothing_else() -> None:
    assert not [str(pin) for pin in PINS.values() if not re.fullmatch(r"==[\w.]+", str(pin.specifier)) or pin.url]
    assert [*PINS] == sorted(PINS, key=str.lower), "one order, so that a change is one line"


def test_a_wheel_for_cpus_meets_the_pin_of_torch(tmp_path: Path) -> None:
    """Such an index calls its wheels 2.13.0+cpu; pip has to take them for the pinned version."""
    pinned = next(iter(PINS["torch"].specifier)).version
    page = tmp_path / "index" / "torch"
    page.mkdir(parents=True)
    wheel = f"torch-{pinned}+cpu-py3-none-any.whl"
    info = f"torch-{pinned}+cpu.dist-info"
    with zipfile.ZipFile(page / wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {pinned}+cpu\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (page / "index.html").write_text(f'<a href="{wheel.replace("+", "%2B")}">{wheel}</a>')
    target = tmp_path / "target"
    command = [
        sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-c", str(CONSTRAINTS),
        "--no-deps", "--index-url", (tmp_path / "index").as_uri(), "--target", str(target), "torch",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (target / info).is_dir()


# --- extras -------------------------------------------------------------------------------------


def test_a_reader_installs_without_torch() -> None:
    assert closure() >= {"numpy", "redis", "msgspec"}
    heavy = {"torch", "torch-geometric", "numba", "polars", "faiss-cpu", "confluent-kafka", "typer"}
    assert not closure() & heavy
    assert not closure("index") & (heavy - {"faiss-cpu"})


def test_serving_installs_without_torch() -> None:
    assert not closure("worker") & {"torch", "torch-geometric"}
    assert "torch" in closure("train")


def test_test_brings_all_that_the_demo_brings() -> None:
    assert closure("test") > closure("demo")
    assert not closure("demo") & {"pytest", "hypothesis", "mypy", "ruff"}


def test_every_folder_of_tests_is_run() -> None:
    said = (ROOT / "tools" / "run-tests").read_text()
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    assert {str(folder) for folder in folders if str(folder) not in said} == set()
