"""Small inputs that ask for much memory or time get neither, and one clear error."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.fuzz.bombs import CPU_S


def test_no_input_breaks_through_the_limits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.bombs"], capture_output=True, text=True, timeout=2 * CPU_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 200
    assert not {name: came_to for name, came_to in found.items() if came_to.startswith(("BROKE", "SLOW"))}
    refused = [name for name, came_to in found.items() if came_to.startswith("refused")]
    assert len(refused) > len(found) // 2
