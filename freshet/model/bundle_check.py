"""Does a bundle's content hang together? A checksum says that its files are those that were written, not that the
towers and the compiled loops can be let loose on them: a number of a neighbour that is out of range would read
memory that is not the array's.

Every function raises ValueError, which says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.model.config import NODE_OF_RELATION, FeatureConfig, TowerConfig
from freshet.model.weights import weight_shapes
from freshet.store.columns import EventColumns
from freshet.store.lists import Gather

if TYPE_CHECKING:
    from freshet.model.bundle import Bundle, Fixture, FrozenPairs

DIM_MAX = 65_536
NEIGHBORS_MAX = 65_535
"""Longest list that a graph keeps."""
CODES_MAX = 4_096
"""Most category levels, and words of a description, of one product."""
BUCKETS_MAX = 2**31 - 1
USER_BUCKETS_MAX = 2**21
"""Rows of a table of users' features: the codes of a user fit into one number (`UserCodes.joint`)."""
STEPS_MAX = 1_000_000
TIME_MS_MAX = 253_402_300_799_999
"""9999-12-31, which no event is after."""
NAME_CHARS_MAX = 256

T = TypeVar("T")


def converted(raw: Any, kind: type[T], what: str) -> T:
    """`raw`, as JSON gives it, as a dataclass of this type, its fields of the right types and none unknown."""
    try:
        made = msgspec.convert(raw, kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{what}: {error}") from None
    _known(raw, msgspec.to_builtins(made), what)
    return made


def check(bundle: Bundle) -> None:
    """All of a bundle. What it refuses no bundle of ours holds."""
    _check_text(bundle.model_version, "model_version")
    _require(-1 <= bundle.cut_ms <= TIME_MS_MAX, f"cut_ms is {bundle.cut_ms}")
    check_config(bundle.config, bundle.features)
    products = list(bundle.vocabulary.row_of)
    _check_ids(products, "product_id of the vocabulary")
    rows = sorted(bundle.vocabulary.row_of.values())
    _require(rows == list(range(1, len(products) + 1)), "product_id of the vocabulary names an id twice")
    for name in ("price_edges", "signup_edges"):
        _check_edges(getattr(bundle.vocabulary, name), name)
    _check_weights(bundle.weights, weight_shapes(bundle.config, bundle.features, len(products) + 1))
    _check_pairs(bundle.pairs)
    _check_ids([product for product, _ in bundle.popular], "popular")
    _require(_amounts([n for _, n in bundle.popular]), "popular holds a popularity that is no number from 0")
    if bundle.fixture is not None:
        _check_fixture(bundle.fixture, bundle.config.dim)


def check_config(config: TowerConfig, features: FeatureConfig) -> None:
    """Numbers within the bounds of what can be computed, and relations that are known."""
    _require(2 <= config.dim <= DIM_MAX, f"dim is {config.dim}: it has to be from 2 to {DIM_MAX}")
    for tower in (config.user, config.item):
        for reads in (tower.outer, tower.inner):
            for relation, gather in reads.items():
                _require(relation in NODE_OF_RELATION, f"{relation[:64]!r} is no relation")
                _check_gather(relation, gather)
    if config.popularity is not None:
        p = config.popularity
        sound = 1 <= p.half_life_ms <= TIME_MS_MAX and 1 <= p.tick_ms <= TIME_MS_MAX and 1 <= p.steps <= STEPS_MAX
        _require(sound and _amounts([p.view_weight]), "popularity has a setting out of range")
    for name, value in vars(features).items():
        if name.endswith("_buckets"):
            of_users = name in ("age_buckets", "geo_buckets", "signup_buckets")
            most = USER_BUCKETS_MAX if of_users else BUCKETS_MAX
            _require(3 <= value <= most, f"{name} is {value}: it has to be from 3 to {most}")
        else:
            low = 0 if name == "description_dim" else 1
            _require(low <= value <= CODES_MAX, f"{name} is {value}: it has to be from {low} to {CODES_MAX}")


# --- parts --------------------------------------------------------------------------------------


def _require(holds: Any, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _known(raw: Any, made: Any, what: str) -> None:
    if isinstance(raw, Mapping) and isinstance(made, Mapping):
        for name, value in raw.items():
            _require(name in made, f"{what} has a field {str(name)[:64]!r} that this version of Freshet does not know")
            _known(value, made[name], what)


def _check_gather(relation: str, gather: Gather) -> None:
    _require(0 <= gather.num_neighbors <= NEIGHBORS_MAX, f"{relation} reads {gather.num_neighbors} neighbours")
    _require(_amounts([gather.half_life_ms]), f"{relation} has half_life_ms {gather.half_life_ms}")


def _check_text(text: object, what: str) -> None:
    _require(isinstance(text, str) and 1 <= len(text) <= NAME_CHARS_MAX, f"{what} is no text of 1 to 256 characters")
    assert isinstance(text, str)
    text.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError


def _check_ids(ids: Sequence[object], what: str, distinct: bool = True) -> None:
    _require(all(isinstance(name, str) and name for name in ids), f"{what} holds an id that is no text")
    "".join(ids).encode()  # type: ignore[arg-type]
    _require(not distinct or len(set(ids)) == len(ids), f"{what} names an id twice")


def _amounts(values: Iterable[object]) -> bool:
    """Whether all are finite numbers of 0 or more."""
    return all(
        isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= float(np.finfo(np.float32).max)
        for v in values
    )


def _check_edges(edges: Sequence[object], what: str) -> None:
    numbers = all(isinstance(e, int | float) and not isinstance(e, bool) and abs(e) < 1e300 for e in edges)
    _require(numbers and list(edges) == sorted(edges), f"{what} are no increasing numbers")  # type: ignore[type-var]


def _check_weights(weights: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        _require(name in weights, f"weight {name} is missing")
        _check_array(weights[name], np.float32, shape, f"weight {name}")
        _require(np.isfinite(weights[name]).all(), f"weight {name} holds a number that is not finite")


def _check_array(array: object, dtype: Any, shape: tuple[int, ...], what: str) -> None:
    _require(isinstance(array, np.ndarray) and array.dtype == dtype, f"{what} is not {np.dtype(dtype).name}")
    assert isinstance(array, np.ndarray)
    _require(array.shape == shape, f"{what} has shape {array.shape}, not {shape}")


def _check_starts(starts: NDArray[np.int64], end: int, what: str) -> None:
    """Offsets of a CSR from 0 to `end`, none before the last."""
    _require(starts.shape[0] >= 1 and starts[0] == 0 and starts[-1] == end, f"{what} does not go from 0 to {end}")
    _require((starts[1:] >= starts[:-1]).all(), f"{what} goes backwards")


def _check_pairs(pairs: FrozenPairs) -> None:
    _check_ids(pairs.product, "copurchase_product")
    n, m = len(pairs.product), int(np.asarray(pairs.nbr).size)
    _check_array(pairs.ptr, np.int64, (n + 1,), "copurchase ptr")
    _check_array(pairs.nbr, np.int32, (m,), "copurchase nbr")
    _check_array(pairs.count, np.float32, (m,), "copurchase count")
    _check_array(pairs.orders, np.float32, (n,), "copurchase orders")
    _check_starts(pairs.ptr, m, "copurchase ptr")
    _require(((pairs.nbr >= 0) & (pairs.nbr < n)).all(), "copurchase nbr names a product that is not there")
    for name in ("count", "orders"):
        values = getattr(pairs, name)
        _require((np.isfinite(values) & (values >= 0)).all(), f"copurchase {name} holds a count that is none")


def _check_fixture(fixture: Fixture, dim: int) -> None:
    for name in ("users", "products"):
        _require(isinstance(getattr(fixture, name), list), f"parity {name} is no list")
        _check_ids(getattr(fixture, name), f"parity {name}")
    _check_array(fixture.user_embedding, np.float32, (len(fixture.users), dim), "parity user_embedding")
    _check_array(fixture.product_embedding, np.float32, (len(fixture.products), dim), "parity product_embedding")
    for table in fields(EventColumns):
        _check_table(table.name, getattr(fixture.events, table.name))


_STARTS = {"purchases": "order_start", "sessions": "item_start"}
_OF_ITEMS = {"sessions": ("product", "position", "click")}
"""Columns with a row for each item, in tables where the others have one for each event."""


def _check_table(table: str, rows: Any) -> None:
    kind = type(rows)()
    owner = "product" if table == "products" else "user"
    count = len(getattr(rows, owner))
    items = len(rows.product) if table == "sessions" else count
    for column in fields(rows):
        what, value, empty = f"parity {table}.{column.name}", getattr(rows, column.name), getattr(kind, column.name)
        size = items if column.name in _OF_ITEMS.get(table, ()) else count
        if column.name == _STARTS.get(table):
            _check_array(value, np.int64, (np.asarray(value).size,), what)
            _check_starts(value, items, what)
            _require(table != "sessions" or value.shape[0] == count + 1, f"{what} does not fit")
        elif isinstance(empty, np.ndarray):
            _check_array(value, empty.dtype, (size,), what)
            _check_values(column.name, value, what)
        else:
            _require(isinstance(value, list) and len(value) == size, f"{what} does not have {size} rows")
            if column.name == "device":
                _check_ids([name for name in value if name is not None], what, distinct=False)
            elif column.name != "attributes":
                _check_ids(value, what, distinct=False)


def _check_values(name: str, values: NDArray[Any], what: str) -> None:
    if name == "time":
        _require(((values >= -1) & (values <= TIME_MS_MAX)).all(), f"{what} holds a time that is none")
    elif values.dtype == np.float32:
        _require((np.isnan(values) | ((values >= 0) & np.isfinite(values))).all(), f"{what} holds no amount")
    elif name in ("position", "click"):
        _require((values >= -1).all(), f"{what} is below -1")


