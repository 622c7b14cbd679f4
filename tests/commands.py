"""The command line within the test's process: what `freshet WORDS` would print and end with, without its start."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from freshet.stream.cli import main


def freshet(*words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `freshet WORDS` with these variables on top of the environment. A traceback is raised, not printed."""
    command = ["freshet", *map(str, words)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        with (
            patch.object(sys, "argv", command),
            patch.dict(os.environ, env or {}),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        signal.signal(signal.SIGTERM, terminated)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def freshet_process(*words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, for what decides at its start, such as which packages there are."""
    return subprocess.run(
        [sys.executable, "-m", "freshet.stream.cli", *map(str, words)],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **(env or {})},
    )  # fmt: skip
