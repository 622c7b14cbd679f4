"""The cache of answered plans: a folder for each, named by the log's identity and what of a query decides the model."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import msgspec

from freshet.model.bundle import FORMAT_VERSION, Bundle, BundleError
from freshet.store.graph import GraphLimits
from freshet.stream.query.encoded import Encoded
from freshet.stream.query.language import Query
from freshet.stream.query.plan import Trial

KEEP_VERSION = 1
"""Changes with the layout of a folder, or with how models are chosen."""
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Kept:
    """A chosen model and what it comes to. `bundle` is the folder it was saved in, `again` whether this was read from
    the cache, `made_s` how long it took to make; `schema` and `notes` say what the log holds."""

    encoded: Encoded
    candidate: str
    reasons: list[str]
    trials: list[Trial]
    schema: list[str]
    notes: list[str]
    model_version: str
    kind: str
    made_s: float
    bundle: Path | None = None
    again: bool = False


class _Plan(msgspec.Struct):
    candidate: str
    reasons: list[str]
    trials: list[Trial]
    schema: list[str]
    notes: list[str]
    model_version: str
    kind: str
    made_s: float


class Keep:
    """The cache in `folder`; None keeps nothing. It may be deleted at any time."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def key(self, log: Path, query: Query, bundle_version: str | None, limits: GraphLimits) -> str:
        """A name for all that decides the model: the log's files, USING, WITHIN, AS OF or the bundle, and how much of
        a history nodes hold."""
        files = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in log.iterdir() if f.is_file())
        plan = (
            KEEP_VERSION, FORMAT_VERSION, str(log.resolve()), files, sorted(query.tables), query.within_s,
            query.as_of_ms, bundle_version, asdict(limits), version("freshet"),
        )  # fmt: skip
        return hashlib.blake2b(msgspec.json.encode(plan), digest_size=10).hexdigest()

    def load(self, key: str) -> Kept | None:
        """What was kept under a key; None where nothing was, or where it is damaged."""
        if self.folder is None:
            return None
        folder = self.folder / key
        try:
            plan = msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=_Plan)
            encoded = Encoded.load(folder)
        except (OSError, ValueError, KeyError, EOFError, msgspec.MsgspecError):
            return None
        return Kept(encoded=encoded, bundle=folder / "bundle", again=True, **msgspec.structs.asdict(plan))

    def save(self, key: str, made: Kept, model: Bundle) -> Kept:
        """Keep it, whole or not at all. A folder that cannot be written is no failure: a note says so."""
        if self.folder is None:
            return made
        temporary: str | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.mkdtemp(prefix=f".{key}.", dir=self.folder)
            made.encoded.save(Path(temporary))
            model.save(Path(temporary) / "bundle")
            plan = _Plan(**{name: getattr(made, name) for name in _Plan.__struct_fields__})
            (Path(temporary) / PLAN_FILE).write_bytes(msgspec.json.encode(plan))
            shutil.rmtree(self.folder / key, ignore_errors=True)
            os.rename(temporary, self.folder / key)
        except (OSError, BundleError) as e:
            return replace(made, notes=[*made.notes, f"the result could not be kept in {self.folder}: {e}"])
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return replace(made, bundle=self.folder / key / "bundle")
