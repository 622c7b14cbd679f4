"""A bundle: everything that a frozen model is, as a folder. NumPy only, so that serving needs no torch.

bundle.json            what it is: versions, configuration, cut, a checksum of every file
weights.safetensors    the weights, float32, matrices [in, out]
vocabulary.json        product ids of the rows of `product.id`, bucket borders
copurchase.safetensors co-purchase counts of the history up to the cut, over the ids in vocabulary.json
popular.json           [product id, popularity at the cut], most popular first
ranker.json            the final ranker: coefficients, and what products add that are bought again
card.json, card.html   how it was made and how well it ranks, for programs and for people
parity.json, parity.safetensors   a small event log and the embeddings it must come to
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as dump_tensors

from freshet.errors import FreshetError
from freshet.model import bundle_check
from freshet.model.config import FeatureConfig, TowerConfig
from freshet.model.features import Vocabulary
from freshet.store import columns
from freshet.store.columns import F32, I32, I64, EventColumns, ProductAttributes, UserAttributes
from freshet.store.copurchase import FrozenCounts
from freshet.store.popularity import FrozenPopularity
from freshet.store.ranker import Ranker, RankerCorrupt, dump_ranker, load_ranker

FORMAT_VERSION = 4
PARITY_ATOL = 1e-5
HEAD_BYTES_MAX = 1024 * 1024
"""Longest bundle.json."""

Kind = Literal["trained", "dayzero"]

FILES = {
    "weights.safetensors", "vocabulary.json", "copurchase.safetensors", "popular.json", "ranker.json", "card.json",
    "card.html", "parity.json", "parity.safetensors",
}  # fmt: skip
"""What a bundle may consist of beside its head; nothing else is opened, whatever the head names."""


class BundleError(FreshetError):
    """A bundle that cannot be read or written; the message names the file and what is wrong with it."""


class Interns(Protocol):
    """What `frozen_counts` needs of a graph store."""

    def intern_products(self, ids: list[str]) -> I32: ...


@dataclass(frozen=True)
class FrozenPairs:
    """Co-purchase counts over a numbering of the bundle's own.

    `product` lists the ids; `ptr` [products + 1] int64, `nbr` [n] int32 and `count` [n] float32 are a CSR
    over their places in that list, `orders` [products] float32 says in how many orders each was.
    """

    product: list[str]
    ptr: I64
    nbr: I32
    count: F32
    orders: F32

    @staticmethod
    def none() -> FrozenPairs:
        """No history."""
        none = np.zeros(0, np.float32)
        return FrozenPairs([], np.zeros(1, np.int64), np.zeros(0, np.int32), none, none)


@dataclass(frozen=True)
class Fixture:
    """A small log and what it must come to: `user_embedding` [len(users), D], `product_embedding`
    [len(products), D], both float32."""

    events: EventColumns
    users: list[str]
    products: list[str]
    user_embedding: F32
    product_embedding: F32


@dataclass(frozen=True)
class Bundle:
    """A frozen model. `weights` hold float32 arrays by name (see `weights.weight_shapes`); `cut_ms` is the time
    up to which purchases are counted in `pairs`; `popular` are popularities at the cut, greatest first; `ranker`
    ranks what the towers find with what the user bought. `card` and `page` say how well, as JSON and HTML; they are no
    part of the version."""

    kind: Kind
    config: TowerConfig
    features: FeatureConfig
    weights: Mapping[str, F32]
    vocabulary: Vocabulary
    cut_ms: int
    pairs: FrozenPairs = field(default_factory=FrozenPairs.none)
    popular: list[tuple[str, float]] = field(default_factory=list)
    ranker: Ranker = field(default_factory=Ranker)
    card: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""
    fixture: Fixture | None = None
    model_version: str = ""

    def __post_init__(self) -> None:
        if not self.model_version:
            object.__setattr__(self, "model_version", self._version())

    def frozen_counts(self, graph: Interns) -> FrozenCounts:
        """The co-purchase counts in the numbers of `graph`, which learns the products it did not know."""
        if not self.pairs.product:
            return FrozenCounts(self.cut_ms, np.zeros(1, np.int64), self.pairs.nbr, self.pairs.count, self.pairs.orders)
        number = graph.intern_products(self.pairs.product)
        sizes = np.zeros(int(number.max()) + 1, dtype=np.int64)
        sizes[number] = np.diff(self.pairs.ptr)
        ptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        place = np.repeat(ptr[number] - self.pairs.ptr[:-1], np.diff(self.pairs.ptr))
        place += np.arange(self.pairs.nbr.shape[0])
        nbr, count = np.empty_like(self.pairs.nbr), np.empty_like(self.pairs.count)
        nbr[place], count[place] = number[self.pairs.nbr], self.pairs.count
        orders = np.zeros(sizes.shape[0], dtype=np.float32)
        orders[number] = self.pairs.orders
        return FrozenCounts(self.cut_ms, ptr, nbr, count, orders)

    def frozen_popularity(self, graph: Interns) -> FrozenPopularity:
        """Popularity at the cut in the numbers of `graph`, which learns the products it did not know."""
        number = graph.intern_products([product for product, _ in self.popular])
        value = np.zeros(int(number.max(initial=-1)) + 1, dtype=np.float32)
        value[number] = [popularity for _, popularity in self.popular]
        return FrozenPopularity(self.cut_ms, value)

    def with_ranker(self, ranker: Ranker) -> Bundle:
        """The same model with another ranker, and so with another version."""
        return replace(self, ranker=ranker, model_version="")

    def thin(self, products: list[str]) -> Bundle:
        """The same model that knows the co-purchases and the popularity of `products` only: the parity fixture's,
        so that checking it costs milliseconds and not a pass over the catalogue."""
        wanted = {p: i for i, p in enumerate(products)}
        place = np.array([wanted.get(p, -1) for p in self.pairs.product], dtype=np.int32)
        source = np.repeat(place, np.diff(self.pairs.ptr))
        nbr = place[self.pairs.nbr]
        kept = np.flatnonzero((source >= 0) & (nbr >= 0))
        kept = kept[np.argsort(source[kept], kind="stable")]
        ptr = np.zeros(len(products) + 1, dtype=np.int64)
        np.cumsum(np.bincount(source[kept], minlength=len(products)), out=ptr[1:])
        orders = np.zeros(len(products), dtype=np.float32)
        orders[place[place >= 0]] = self.pairs.orders[place >= 0]
        pairs = FrozenPairs(list(products), ptr, nbr[kept], self.pairs.count[kept], orders)
        return replace(self, pairs=pairs, popular=[(p, n) for p, n in self.popular if p in wanted], fixture=None)

    def save(self, path: str | Path) -> None:
        """Write the bundle to the folder `path`, whole or not at all; a bundle already there is replaced.

        Raises BundleError when the folder cannot be written (it names the space needed when the disk is full).
        """
        target = Path(path)
        files = self._files()
        size = sum(len(data) for data in files.values())
        temporary = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            temporary.chmod(0o755)
            for name, data in files.items():
                _write(temporary / name, data)
            _swap(temporary, target)
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BundleError(
                    f"no space left for the bundle at {target}: it needs {size / 2**20:.1f} MiB; "
                    "free some space or name another folder"
                ) from e
            raise BundleError(f"cannot write the bundle at {target}: {e.strerror or e}") from e
        finally:
            if temporary is not None and temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)

    @staticmethod
    def load(path: str | Path, check_parity: Callable[[Bundle, Fixture], tuple[F32, F32]] | None = None) -> Bundle:
        """Read and check a bundle.

        `check_parity` encodes the fixture's users and products with the path that will serve, and with the
        `thin` bundle it is given; what it returns must equal the stored embeddings to 1e-5.
        Raises BundleError for a missing file, another format version, a wrong checksum, content that cannot be
        understood, and a fixture that does not come out.
        """
        bundle = _load(Path(path))
        if check_parity is not None and bundle.fixture is not None:
            found = check_parity(bundle.thin(bundle.fixture.products), bundle.fixture)
            _compare(Path(path), bundle.fixture, found)
        return bundle

    def _files(self) -> dict[str, bytes]:
        files = self._content() | {"card.json": _json(self.card)}
        if self.page:
            files["card.html"] = self.page.encode()
        if self.fixture is not None:
            files |= _dump_fixture(self.fixture)
        head = self._head() | {
            "model_version": self.model_version,
            "blake2b": {name: _digest(data) for name, data in files.items()},
        }
        head["self_blake2b"] = _digest(_json(head))
        return files | {"bundle.json": json.dumps(head, indent=2, sort_keys=True).encode()}

    def _head(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "config": asdict(self.config),
            "features": asdict(self.features),
            "cut_ms": self.cut_ms,
        }

    def _content(self) -> dict[str, bytes]:
        rows = sorted(self.vocabulary.row_of, key=self.vocabulary.row_of.__getitem__)
        return {
            "weights.safetensors": dump_tensors({k: np.ascontiguousarray(v) for k, v in self.weights.items()}),
            "vocabulary.json": _json(
                {
                    "product_id": rows,
                    "copurchase_product": self.pairs.product,
                    "price_edges": self.vocabulary.price_edges,
                    "signup_edges": self.vocabulary.signup_edges,
                }
            ),
            "copurchase.safetensors": dump_tensors(
                {name: getattr(self.pairs, name) for name in ("ptr", "nbr", "count", "orders")}
            ),
            "popular.json": _json(self.popular),
            "ranker.json": dump_ranker(self.ranker),
        }

    def _version(self) -> str:
        """A name that is a function of the content: two bundles with one version encode alike."""
        digest = hashlib.blake2b(_json(self._head()), digest_size=6)
        for data in self._content().values():
            digest.update(hashlib.blake2b(data).digest())
        return f"{self.kind}-{digest.hexdigest()}"


def _load(path: Path) -> Bundle:
    head = _read_head(path)
    data = {name: _read(path, name, digest) for name, digest in head["blake2b"].items()}
    try:
        bundle = _understood(head, data)
        bundle_check.check(bundle)
        return bundle
    except KeyError as e:
        raise BundleError(f"the bundle at {path} lacks {e.args[0]}; write it again") from e
    except (TypeError, ValueError, OverflowError, RecursionError, SafetensorError, RankerCorrupt) as e:
        raise BundleError(f"the bundle at {path} cannot be understood: {e}") from e


def _understood(head: dict[str, Any], data: Mapping[str, bytes]) -> Bundle:
    """The bundle that its files hold, not yet checked."""
    words, popular, card = (_object(data, name) for name in ("vocabulary.json", "popular.json", "card.json"))
    pairs = load_tensors(data["copurchase.safetensors"])
    if head["kind"] not in ("trained", "dayzero") or type(head["cut_ms"]) is not int:
        raise ValueError(f"kind is {head['kind']!r} and cut_ms {head['cut_ms']!r}")
    return Bundle(
        kind=head["kind"],
        config=bundle_check.converted(head["config"], TowerConfig, "config"),
        features=bundle_check.converted(head["features"], FeatureConfig, "features"),
        weights=load_tensors(data["weights.safetensors"]),
        vocabulary=Vocabulary(
            {p: i + 1 for i, p in enumerate(words["product_id"])},
            tuple(words["price_edges"]),
            tuple(words["signup_edges"]),
        ),
        cut_ms=head["cut_ms"],
        pairs=FrozenPairs(words["copurchase_product"], pairs["ptr"], pairs["nbr"], pairs["count"], pairs["orders"]),
        popular=[(p, n) for p, n in popular],
        ranker=load_ranker(data["ranker.json"]),
        card=card,
        page=data["card.html"].decode() if "card.html" in data else "",
        fixture=_load_fixture(data) if "parity.json" in data else None,
        model_version=head["model_version"],
    )


def _object(data: Mapping[str, bytes], name: str) -> Any:
    """The JSON in a file; a list where there is `popular`, else an object."""
    found, kind = json.loads(data[name]), list if name == "popular.json" else dict
    if not isinstance(found, kind):
        raise ValueError(f"{name} holds no JSON {'list' if kind is list else 'object'}")
    return found


def _read_head(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(_read(path, "bundle.json", None))
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{path / 'bundle.json'} is not JSON: {e}; the bundle is damaged") from e
    version = head.get("format_version") if isinstance(head, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path / 'bundle.json'} has format version {version}, this version of Freshet reads "
            f"{FORMAT_VERSION}; train the bundle again, or use the Freshet that wrote it"
        )
    claimed = head.pop("self_blake2b", None)
    if claimed != _checksum(head):
        raise BundleError(f"{path / 'bundle.json'} does not match its checksum; the bundle is damaged")
    named = head.get("blake2b")
    if not isinstance(named, dict):
        raise BundleError(f"{path / 'bundle.json'} lacks the checksums of its files")
    if unknown := sorted(set(named) - FILES):
        raise BundleError(f"{path / 'bundle.json'} names {unknown[0][:64]!r}, which is no file of a bundle")
    found: dict[str, Any] = head
    return found


def _checksum(head: dict[str, Any]) -> str | None:
    """Of a head without its own checksum; None of what we would never have written."""
    try:
        return _digest(_json(head))
    except ValueError:  # a lone surrogate
        return None


def _read(path: Path, name: str, digest: str | None) -> bytes:
    try:
        # A device or a pipe in the place of a file would never end. Links are fine: volumes are mounted so.
        status = (path / name).stat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path / name} is no file: {path} is not a whole bundle")
        if digest is None and status.st_size > HEAD_BYTES_MAX:
            raise BundleError(f"{path / name} has {status.st_size} bytes: it is no head of a bundle")
        data = (path / name).read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path / name} is missing: {path} is not a whole bundle") from None
    except OSError as e:
        raise BundleError(f"cannot read {path / name}: {e.strerror or e}") from e
    if digest is not None and _digest(data) != digest:
        raise BundleError(f"{path / name} does not match its checksum; the bundle is damaged")
    return data


def _compare(path: Path, fixture: Fixture, found: tuple[F32, F32]) -> None:
    expected = (fixture.user_embedding, fixture.product_embedding)
    for what, ids, want, got in zip(("user", "product"), (fixture.users, fixture.products), expected, found):
        if want.shape != got.shape:
            raise BundleError(f"{path}: the parity fixture has {what} shape {want.shape}, got {got.shape}")
        if not want.size:
            continue
        error = np.nan_to_num(np.abs(want - got), nan=np.inf).max(axis=1)
        worst = int(error.argmax())
        if error[worst] > PARITY_ATOL:
            raise BundleError(
                f"{path}: the parity fixture fails: {what} {ids[worst]!r} is off by {error[worst]:.2g} "
                f"(allowed {PARITY_ATOL:g}); the weights and this version of Freshet do not belong together"
            )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` in the place of `target`."""
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(old / "bundle")
    try:
        temporary.rename(target)
    except OSError:
        if old is not None:
            (old / "bundle").rename(target)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _dump_fixture(fixture: Fixture) -> dict[str, bytes]:
    texts: dict[str, Any] = {"users": fixture.users, "products": fixture.products, "events": {}}
    arrays: dict[str, NDArray[Any]] = {
        "user_embedding": fixture.user_embedding,
        "product_embedding": fixture.product_embedding,
    }
    for table in fields(EventColumns):
        rows = getattr(fixture.events, table.name)
        for column in fields(rows):
            value = getattr(rows, column.name)
            if isinstance(value, np.ndarray):
                arrays[f"{table.name}.{column.name}"] = np.ascontiguousarray(value)
            else:
                plain = [asdict(v) if is_dataclass(v) else v for v in value]  # type: ignore[arg-type]
                texts["events"].setdefault(table.name, {})[column.name] = plain
    return {"parity.json": _json(texts), "parity.safetensors": dump_tensors(arrays)}


def _load_fixture(data: Mapping[str, bytes]) -> Fixture:
    texts, arrays = _object(data, "parity.json"), load_tensors(data["parity.safetensors"])
    tables: dict[str, Any] = {}
    if not isinstance(texts["events"], dict):
        raise ValueError("the events of parity.json are no JSON object")
    for table, kind in _TABLES.items():
        values = dict(texts["events"].get(table, {}))
        for name in values:
            if name == "attributes":
                values[name] = [_attributes(table, v) for v in values[name]]
        prefix = f"{table}."
        values |= {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        tables[table] = kind(**values)
    return Fixture(
        EventColumns(**tables), texts["users"], texts["products"], arrays["user_embedding"],
        arrays["product_embedding"],
    )  # fmt: skip


_TABLES: dict[str, type[Any]] = {
    "views": columns.ViewColumns,
    "purchases": columns.PurchaseColumns,
    "sessions": columns.SessionColumns,
    "products": columns.ProductColumns,
    "profiles": columns.ProfileColumns,
}


def _attributes(table: str, raw: Any) -> ProductAttributes | UserAttributes | None:
    if raw is None:
        return None
    if table == "profiles":
        return bundle_check.converted(raw, UserAttributes, "attributes of a profile")
    return bundle_check.converted(raw, ProductAttributes, "attributes of a product")
