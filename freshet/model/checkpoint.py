"""Training that was interrupted goes on where it was: its state in one file.

Batches, draws and dropout are functions of seed, epoch and step, so the state is the weights, the optimizer's moments
and the place: a run that was interrupted ends with the bytes of one that was not.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freshet.errors import FreshetError

FORMAT = 1
"""Of the file. Raised when its content changes."""

ANEW = "begin anew with freshet train --restart"


class CheckpointError(FreshetError):
    """A checkpoint that cannot be read, or is of another training."""


@dataclass(frozen=True)
class CheckpointFile:
    """`path` holds the state of one training; `configuration` is all that its course depends on, by name."""

    path: Path
    configuration: Mapping[str, Any]

    def load(self) -> dict[str, Any] | None:
        """The state, None where there is no file. Raises CheckpointError for one of another training."""
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise CheckpointError(f"the checkpoint {self.path} cannot be read: {e.strerror or e}") from e
        except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as e:
            raise CheckpointError(f"the checkpoint {self.path} cannot be read, it is torn: {ANEW}") from e
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise CheckpointError(f"the checkpoint {self.path} is of another version of Freshet: {ANEW}")
        theirs = found["configuration"]
        names = sorted(set(theirs) | set(self.configuration))
        differing = [
            f"{name} ({theirs.get(name)!r} there, {self.configuration.get(name)!r} here)"
            for name in names
            if theirs.get(name) != self.configuration.get(name)
        ]
        if differing:
            raise CheckpointError(
                f"the checkpoint {self.path} is of another training: it differs in {', '.join(differing[:5])}"
                f"{' and more' if len(differing) > 5 else ''}; go on with what it was made with, or {ANEW}"
            )
        state: dict[str, Any] = found["state"]
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the file in one step. Raises CheckpointError where that is not possible."""
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            torch.save({"format": FORMAT, "configuration": dict(self.configuration), "state": dict(state)}, part)
            os.replace(part, self.path)
        except (OSError, RuntimeError) as e:
            raise CheckpointError(f"the checkpoint {self.path} cannot be written: {e}") from e

    def remove(self) -> None:
        """What it was kept for is done."""
        self.path.unlink(missing_ok=True)


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as one level, `prefix.name.name`; what is neither number nor text as its text."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(f"{prefix}.{name}", value)
        else:
            out[f"{prefix}.{name}"] = value if isinstance(value, (int, float, str, bool)) else repr(value)
    return out


def digest_of(arrays: Iterable[np.ndarray | None]) -> str:
    """Of the bytes of what a training reads: two with one digest read alike."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        if array is not None:
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
