"""Documentation is tested: commands and settings are all there, and what the README names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import reference

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("page", "text"), [("commands.md", reference.commands), ("settings.md", reference.settings)])
def test_the_reference_pages_are_what_the_code_says(page: str, text: object) -> None:
    assert (ROOT / "docs" / page).read_text() == text(), "run `python -m tools.reference`"  # type: ignore[operator]


def test_every_setting_says_what_it_is_or_has_its_unit() -> None:
    bare = re.findall(r"\| `(FRESHET_\w+)` \| `[^`]*` \|  \|", (ROOT / "docs" / "settings.md").read_text())
    units = ("_MS", "_S", "_MAX", "_MIN", "_BYTES", "PARTITIONS", "_LINKS", "_CONSTRUCTION", "_SEARCH")
    names = ("URL", "VIEW", "PURCHASE", "SESSION", "PRODUCTS", "PROFILES", "USERS", "DEADLETTER")
    assert not [name for name in bare if not name.endswith(units + names)]


def test_every_make_target_and_benchmark_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z]+)", README))
    assert targets >= {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    for module in set(re.findall(r"python -m (bench\.\w+|tools\.\w+)", README)):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()


def test_every_page_and_command_that_the_readme_names_exists() -> None:
    for page in set(re.findall(r"`(docs/[\w/]+(?:\.md|/))`", README)):
        assert (ROOT / page).exists(), page
    known = {name for name, _ in reference._commands(reference.typer.main.get_command(reference.app), "freshet")}
    named = set(re.findall(r"^freshet ([a-z]+(?: [a-z]+)?)", README, re.M)) | set(
        re.findall(r"`freshet ([a-z]+(?: [a-z]+)?)", README)
    )
    for words in named:
        options = {f"freshet {words}", f"freshet {words.split()[0]}"}
        assert options & known, words
