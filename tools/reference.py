"""Write docs/commands.md, docs/settings.md and the tree in docs/architecture.md from the code:
`python -m tools.reference`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from freshet.stream.cli import app
from freshet.stream.settings import PREFIX, Settings, variables

DOCS = Path(__file__).parents[1] / "docs"


def commands() -> str:
    """The page of commands."""
    lines = [
        "# Commands",
        "",
        "Written by `python -m tools.reference` from the command line itself; do not edit.",
        "",
        "Exit codes: 0 done; 1 a check failed (`verify`, `snapshot verify`); 2 the call or the input is wrong; 3 a "
        "server does not answer; 4 another worker took over; 130 interrupted.",
        "",
    ]
    for name, command in _commands(typer.main.get_command(app), "freshet"):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([name, *(p.name.upper() for p in arguments), "[OPTIONS]"])
        lines += [f"## `{name}`", "", command.help or "", "", f"    {usage}", ""]
        for p in command.params:
            if p.name == "help":
                continue
            label = p.name.upper() if p in arguments else ", ".join([*p.opts, *p.secondary_opts])
            default = (
                "" if p.required or p.default in (None, False) or callable(p.default) else f" (default `{p.default}`)"
            )
            lines.append(f"- `{label}`: {getattr(p, 'help', '') or ''}{default}")
        lines.append("")
    return "\n".join(lines)


def settings() -> str:
    """The page of settings."""
    lines = [
        "# Settings",
        "",
        "Written by `python -m tools.reference` from the dataclasses; do not edit.",
        "",
        f"Every setting has a default and is overridden by its environment variable, `{PREFIX}_<SECTION>_<FIELD>`. "
        "Units stand last in a name. A variable of a known section that names no setting is an error.",
        "",
    ]
    known = variables()
    for section in fields(Settings):
        kind = type(getattr(Settings(), section.name))
        lines += [
            f"## {section.name}",
            "",
            inspect.cleandoc(kind.__doc__ or ""),
            "",
            "| variable | default | meaning |",
            "|---|---|---|",
        ]
        notes = _notes(kind)
        for f in fields(kind):
            variable = f"{PREFIX}_{section.name}_{f.name}".upper()
            default = known[variable][0]
            lines.append(f"| `{variable}` | `{default}` | {notes.get(f.name, '')} |")
        lines.append("")
    return "\n".join(lines)


def architecture() -> str:
    """The architecture page with its tree brought up to date: each file with the first line about it."""
    head, _, tail = (DOCS / "architecture.md").read_text().split("```", 2)
    root = DOCS.parent / "freshet"
    lines = ["freshet/"]
    for path in [root / "__init__.py", *sorted(p for p in root.glob("*.py") if p.stem != "__init__")]:
        lines.append(f"  {path.name:<22}{_summary(path)}")
    parts = [root / part for part in ("stream", "model", "store")]
    for folder in [f for p in parts for f in (p, *sorted(inner.parent for inner in p.glob("*/__init__.py")))]:
        indent = "  " * len(folder.relative_to(root).parts)
        lines.append(f"{indent}{folder.name + '/':<22}{_summary(folder / '__init__.py')}".rstrip())
        for path in sorted(p for p in folder.glob("*.py") if p.stem != "__init__"):
            lines.append(f"{indent}  {path.name:<22}{_summary(path)}")
    return head + "```\n" + "\n".join(lines) + "\n```" + tail


def _summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    first = text.split(". ")[0].rstrip(".")
    return first if len(first) <= 150 else first[:147] + "..."


def _commands(group: Any, path: str) -> list[tuple[str, Any]]:
    out = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            out += _commands(command, f"{path} {name}")
        else:
            out.append((f"{path} {name}", command))
    return out


def _notes(kind: type[Any]) -> dict[str, str]:
    """The text under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    out = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            out[field.target.id] = " ".join(str(text.value.value).split()).replace("|", "\\|")
    return out


if __name__ == "__main__":
    (DOCS / "commands.md").write_text(commands())
    (DOCS / "settings.md").write_text(settings())
    (DOCS / "architecture.md").write_text(architecture())
