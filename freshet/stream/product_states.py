"""First-layer states of products, from the worker of items to those of users: the topic `freshet.state.products`.

A record's key is `{model_version}:{product_id}`, so that two versions stand in the compacted topic beside each other.
Its value is a MessagePack map of `seq`, which only grows, and of what user embeddings read of the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from freshet.errors import FreshetError
from freshet.model.frozen import FrozenTowers
from freshet.store.columns import F32, I32
from freshet.store.value import Seq
from freshet.stream.records import Outgoing, Record

NOTHING: I32 = np.zeros(0, dtype=np.int32)


class StateCorrupt(FreshetError):
    """A record of the topic of product states that is none."""


class _State(msgspec.Struct, gc=False):
    """`x`, feature vector, and `h`, first-layer state in the user tower: little-endian float32."""

    seq: str
    x: bytes
    h: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_State)


def state_records(topic: str, model_version: str, names: Sequence[str], seq: Seq, x: F32, h: F32) -> list[Outgoing]:
    """A record for each of n products; `x` and `h` [n, dim]. One record a product is what the contract asks for."""
    rows_x, rows_h = np.ascontiguousarray(x, dtype="<f4"), np.ascontiguousarray(h, dtype="<f4")
    text = seq.text()
    return [
        Outgoing(
            topic, f"{model_version}:{name}".encode(),
            _encoder.encode(_State(text, rows_x[i].tobytes(), rows_h[i].tobytes())),
        )
        for i, name in enumerate(names)
    ]  # fmt: skip


class ProductStates:
    """What a worker of users has been told of products. Of two records of one product the greater `seq` counts."""

    def __init__(self, towers: FrozenTowers) -> None:
        self.towers = towers
        self._prefix = f"{towers.bundle.model_version}:"
        self._seq: dict[str, str] = {}

    def take(self, records: Sequence[Record]) -> I32:
        """Give the towers the states in these records; returns the products told of, unique. Raises StateCorrupt."""
        newest: dict[str, _State] = {}
        for record in records:  # one record a product
            name = self._product(record)
            if name is None or record.value is None:
                continue
            state = self._decoded(record)
            if state.seq >= self._seq.get(name, ""):
                self._seq[name] = state.seq
                newest[name] = state
        if not newest:
            return NOTHING
        products = self.towers.graph.intern_products(list(newest))
        x = np.stack([np.frombuffer(state.x, dtype="<f4") for state in newest.values()])
        h = np.stack([np.frombuffer(state.h, dtype="<f4") for state in newest.values()])
        self.towers.give_states(products, x, h)
        return products

    def _product(self, record: Record) -> str | None:
        try:
            key = (record.key or b"").decode()
        except UnicodeDecodeError:
            return None
        return key[len(self._prefix) :] if key.startswith(self._prefix) else None

    def _decoded(self, record: Record) -> _State:
        try:
            state = _decoder.decode(record.value or b"")
        except msgspec.MsgspecError as e:
            raise StateCorrupt(self._where(record, str(e))) from e
        if len(state.x) != 4 * self.towers.dim or len(state.h) != 4 * self.towers.dim:
            raise StateCorrupt(self._where(record, f"its states are not of {self.towers.dim} dimensions"))
        return state

    def _where(self, record: Record, what: str) -> str:
        return (
            f"{record.topic}, partition {record.partition}, offset {record.offset} is no state of a product ({what}): "
            "only `freshet worker --role items` of the same version may write there"
        )
