"""What docker-compose.yml and the Procfile say, as data: the tests of both stand on it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROGRAM = "freshet"


def compose() -> dict[str, Any]:
    """docker-compose.yml with its anchors merged."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def with_defaults(text: str, values: dict[str, str] | None = None) -> str:
    """`${NAME:-default}` replaced by the value of NAME, else by the default, as Compose and a shell do."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: (values or {}).get(m[1], m[2]), text)


def service_commands() -> dict[str, list[str]]:
    """The arguments of `freshet` in each service of our own image, and in their health checks."""
    found = {}
    for name, service in compose()["services"].items():
        if "build" not in service:
            continue
        found[name] = [with_defaults(word) for word in service["command"]]
        check = service.get("healthcheck", {}).get("test", [])
        if PROGRAM in check:
            found[f"{name} healthcheck"] = check[check.index(PROGRAM) + 1 :]
    return found


def procfile() -> dict[str, str]:
    """The shell line of each process."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))


def procfile_commands() -> dict[str, list[str]]:
    """The arguments of every `freshet` in the Procfile."""
    found = {}
    for name, line in procfile().items():
        for place, part in enumerate(with_defaults(line).split("&&")):
            words = shlex.split(part)
            at = next((i for i, word in enumerate(words) if Path(word).name == PROGRAM), None)
            if at is not None:
                found[f"{name} {place}"] = words[at + 1 :]
    return found
