"""The page of a card in a real browser: it draws, complains of nothing, and asks nobody for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from freshet.stream.modelling import dayzero_bundle
from freshet.stream.progress import Bars
from tests.conftest import lacking
from tests.unit.query_logs import shop, write_log

CHROMIUM = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-first-run", "--enable-logging=stderr")  # fmt: skip


def test_a_browser_draws_the_page_of_a_card(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        lacking("chromium is not on the PATH: install the package chromium of the distribution")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    dayzero_bundle(write_log(tmp_path / "log", shop(days=60)), tmp_path / "bundle", "2025-07-25", Bars.silent())
    page, picture = tmp_path / "bundle" / "card.html", tmp_path / "page.png"
    done = subprocess.run(
        [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2400", f"--screenshot={picture}",
         page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not re.findall(r".*(?:CONSOLE|Failed to load|ERR_).*", done.stderr)
    pixels = pyplot.imread(picture)[:, :, :3]
    assert pixels.shape[:2] == (2400, 1200)
    inked = (np.abs(pixels - pixels[0, 0]).max(axis=2) > 0.2).any(axis=1)
    assert inked[:600].sum() > 100, "tables"
    assert inked[600:].sum() > 300, "figures"
    colours = {tuple(c) for c in (pixels[::3, ::3] * 7).round().astype(int).reshape(-1, 3).tolist()}
    assert len({c for c in colours if max(c) - min(c) >= 3}) >= 2, "lines of different systems have their own colours"
