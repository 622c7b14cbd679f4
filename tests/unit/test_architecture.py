"""The layout is a rule: directions of imports, one file a vendor, names, and a tree that is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "freshet").rglob("*.py"))

MAY_IMPORT = {
    "store": {"store", "errors"},
    "model": {"model", "store", "errors"},
    "stream": {"stream", "model", "store", "errors", "reader"},
    "reader": {"store", "errors"},
    "errors": set(),
    "__init__": {"reader", "stream", "errors"},
}
"""What each part of the package may import; `freshet/__init__` does so lazily."""

HOME_OF_VENDOR = {
    "confluent_kafka": {
        "freshet/stream/kafka.py",
        "freshet/stream/kafka_consumer.py",
        "freshet/stream/kafka_group.py",
    },
    "redis": {"freshet/store/redis_client.py"},
    "hiredis": {"freshet/store/redis_client.py"},
    "faiss": {"freshet/store/faiss_search.py"},
    "numba": {
        "freshet/store/kernels.py",
        "freshet/store/list_kernels.py",
        "freshet/store/pair_kernels.py",
        "freshet/store/prefetch.py",
        "freshet/store/session_kernels.py",
        "freshet/store/value_kernels.py",
    },
    "polars": {"freshet/stream/convert/frames.py"},
    "lark": {"freshet/stream/query/parse.py"},
    "fsspec": {"freshet/store/snapshot_places.py"},
}
METHODS_MAX = 5
SCREEN_LINES = 60
MODULE_LINES_MAX = 600
"""A module that nears this wants to be two; 300 is a lot."""
BANNED = re.compile(r"(^|_)(utils?|helpers?|common|manager|processor|data2|misc)(_|$)")


def imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "freshet" else {module}
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    part = path.relative_to(ROOT / "freshet").parts[0].removesuffix(".py")
    wrong = {
        name for name in imports(path) if name.startswith("freshet.") and name.split(".")[1] not in MAY_IMPORT[part]
    }
    assert not wrong, f"{relative(path)} may not import {wrong}"


@pytest.mark.parametrize("vendor", HOME_OF_VENDOR)
def test_a_vendor_library_has_one_home(vendor: str) -> None:
    users = {relative(p) for p in FILES if any(n.split(".")[0] == vendor for n in imports(p))}
    assert users == HOME_OF_VENDOR[vendor]


def test_tensors_never_leave_the_model() -> None:
    users = {relative(p) for p in FILES if any(n.split(".")[0] in ("torch", "torch_geometric") for n in imports(p))}
    assert users
    assert all(name.startswith("freshet/model/") for name in users)


def test_serving_needs_no_torch() -> None:
    code = (
        "import sys, freshet, freshet.stream.updater, freshet.stream.worker, freshet.model.frozen;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_freshet_is_light() -> None:
    code = (
        "import sys, freshet;"
        "heavy = {'torch', 'faiss', 'redis', 'confluent_kafka', 'numba', 'polars'} & set(sys.modules);"
        "assert not heavy, heavy; freshet.Reader, freshet.Producer"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


RUNS_WHAT_IT_READS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "runpy"}
SHIPPED = sorted(p for folder in ("freshet", "bench", "tools", "examples") for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_nothing_that_is_read_is_run(path: Path) -> None:
    """No pickle in any guise, nothing evaluated: a bundle, a snapshot or a log from elsewhere is data."""
    tree = ast.parse(path.read_text())
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in ("eval", "exec", "compile", "__import__", "yaml.load", "os.system"):
                wrong.append(called)
            if called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
                wrong.append(f"{called} without allow_pickle=False")
            if called == "torch.load" and given.get("weights_only") != "True":
                wrong.append(f"{called} without weights_only=True")
            if given.get("allow_pickle") == "True" or given.get("shell") == "True":
                wrong.append(f"{called} with {given}")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in RUNS_WHAT_IT_READS:
            if ast.unparse(node) != "pickle.UnpicklingError":  # which torch raises for what it does not unpickle
                wrong.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_WHAT_IT_READS:
            wrong.append(f"from {node.module}")
    assert not wrong


def test_no_module_is_called_after_nothing() -> None:
    assert not [relative(p) for p in FILES if BANNED.search(p.stem)]


def test_a_protocol_has_five_methods_at_most() -> None:
    wide = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases):
                methods = sum(isinstance(part, ast.FunctionDef) for part in node.body)
                if methods > METHODS_MAX:
                    wide[f"{relative(path)}:{node.name}"] = methods
    assert not wide


def test_a_function_fits_on_a_screen_and_a_module_is_about_one_idea(record_property: Callable[..., None]) -> None:
    lines = {relative(path): len(path.read_text().splitlines()) for path in FILES}
    for name, count in sorted(lines.items(), key=lambda item: -item[1])[:10]:
        print(f"{count:5d} {name}")  # seen with -s
        record_property(name, count)
    assert not {name: count for name, count in lines.items() if count > MODULE_LINES_MAX}
    long = {}
    for path in FILES:
        if relative(path) in HOME_OF_VENDOR["numba"]:
            continue  # a compiled kernel is one loop nest; taking it apart costs time in every call
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (size := (node.end_lineno or 0) - node.lineno + 1) > SCREEN_LINES:
                long[f"{relative(path)}:{node.name}"] = size
    assert not long


def test_the_tree_in_the_architecture_page_is_true() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.split("```")[1]
    listed, folders = set(), []
    for line in tree.splitlines():
        match = re.match(r"^( *)([\w./]+)(\s|$)", line)
        if not match:
            continue
        depth, name = len(match[1]) // 2, match[2]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        elif name.endswith(".py"):
            listed.add("".join(folders) + name)
    present = {relative(p) for p in FILES if p.name != "__init__.py" or p.parent == ROOT / "freshet"}
    assert listed == present, f"missing in the page: {present - listed}; gone: {listed - present}"
