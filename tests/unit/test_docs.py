"""Documentation is tested: commands and settings are all there, and what the README names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from freshet.stream.settings import from_environment, variables
from tools import reference

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VARIABLE = re.compile(r"FRESHET_[A-Z0-9_]*[A-Z0-9]\b")


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


def test_every_variable_that_the_code_reads_is_documented() -> None:
    code = {name for path in (ROOT / "freshet").rglob("*.py") for name in VARIABLE.findall(path.read_text())}
    text = "".join(page.read_text() for page in PAGES)
    examples = {"FRESHET_RIPPLE_RIPPLE_SHARE"}  # in a docstring
    assert not code - examples - set(VARIABLE.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_variable_that_a_page_names_is_accepted(page: Path) -> None:
    defaults = {name: "" if default is None else str(default) for name, (default, _) in variables().items()}
    for name in set(VARIABLE.findall(page.read_text())):
        from_environment({name: defaults.get(name, "x")})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:freshet|tests|docs|bench|tools|examples)/[\w./-]+)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]
