"""The state of a graph written as plainly as possible: sets and sorting over the whole log at once."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
import xxhash

from freshet.store.attributes import KEY_MAX
from freshet.store.columns import ProductAttributes, UserAttributes
from freshet.store.graph import GraphLimits
from freshet.stream.events import Product, Profile, Purchase, Session, View

MASK = 2**64 - 1
Entry = tuple[int, int, str | None, float, int]
"""(time, key, neighbour, value or NaN, flag)"""


def mix(a: int, b: int) -> int:
    z = a ^ (((b << 31) | (b >> 33)) & MASK)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def key3(a: int, b: int, c: int) -> int:
    return mix(mix((a + 0x9E3779B97F4A7C15) & MASK, b), c)


def h(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def content_key(record: Product | Profile) -> int:
    bare = msgspec.structs.replace(record, timestamp=None)
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(bare))


def join(entries: list[Entry], keep: int) -> list[Entry]:
    """One entry for each (time, key), flags OR-ed and the greatest value kept; then the `keep` greatest."""
    joined: dict[tuple[int, int], Entry] = {}
    for time, key, nbr, value, flag in entries:
        old = joined.get((time, key))
        if old is not None:
            value = max((v for v in (value, old[3]) if v == v), default=float("nan"))
            flag |= old[4]
            nbr = None if old[2] is None else nbr
        joined[time, key] = (time, key, nbr, value, flag)
    return sorted(joined.values(), key=lambda e: e[:2], reverse=True)[:keep]


def canonical_of(events: list[Any], limits: GraphLimits) -> bytes:
    """What `freshet.store.canonical` must give after applying `events` in any order."""
    until: dict[str, int] = {}
    for e in events:
        if isinstance(e, Profile) and e.forgotten:
            until[e.user_id] = max(until.get(e.user_id, -1), e.timestamp)
    lists: dict[str, dict[str, list[Entry]]] = {
        name: defaultdict(list) for name in ("purchased", "viewed", "purchased_by", "viewed_by", "pairs")
    }
    sessions: dict[str, dict[str, tuple[int, int, Session]]] = defaultdict(dict)
    registers: dict[str, dict[str, tuple[int, int, Any]]] = {"user": {}, "product": {}}
    users, products, latest = set(), set(), -1
    for e in events:
        if isinstance(e, View):
            users.add(e.user_id)
            latest = max(latest, e.timestamp)
            dwell = float("nan") if e.dwell_time_s is None else e.dwell_time_s
            _interaction(lists, until, "viewed", e, e.product_id, dwell, 0)
        elif isinstance(e, Purchase):
            users.add(e.user_id)
            latest = max(latest, e.timestamp)
            _order(lists, until, e, limits)
        elif isinstance(e, Session):
            users.add(e.user_id)
            latest = max(latest, e.timestamp)
            if e.timestamp > until.get(e.user_id, -1):
                key = key3(h(e.event_id), h(e.user_id), h(e.session_id))
                new = (e.timestamp, key, e)
                old = sessions[e.user_id].get(e.session_id)
                if old is None or new[:2] > old[:2]:
                    sessions[e.user_id][e.session_id] = new
        elif isinstance(e, Profile):
            users.add(e.user_id)
            _write(registers["user"], e.user_id, e, None if e.forgotten else _user(e))
        elif isinstance(e, Product):
            products.add(e.product_id)
            _write(registers["product"], e.product_id, e, None if e.withdrawn else _product(e))
    for user, time in until.items():
        old = registers["user"].get(user)
        if old is None or old[:2] < (time, KEY_MAX):
            registers["user"][user] = (time, KEY_MAX, None)
    return msgspec.msgpack.encode(_state(users, products, until, lists, sessions, registers, latest, limits))


def _interaction(lists, until, relation, e, product, value, flag) -> int:  # type: ignore[no-untyped-def]
    key = key3(h(e.event_id), h(e.user_id), h(product))
    gone = e.timestamp <= until.get(e.user_id, -1)
    if not gone:
        lists[relation][e.user_id].append((e.timestamp, key, product, value, flag))
    user = None if gone else e.user_id
    lists[relation + "_by"][product].append((e.timestamp, key, user, value, 1 if gone else flag))
    return key


def _order(lists, until, e: Purchase, limits: GraphLimits) -> None:  # type: ignore[no-untyped-def]
    merged: dict[str, tuple[float, int]] = {}
    lines = (
        [(e.product_id, e.quantity, False)]
        if e.items is None
        else [(i.product_id, i.quantity, i.cancelled) for i in e.items]
    )
    for product, quantity, cancelled in lines:
        q = float("nan") if quantity is None else float(np.float32(quantity))
        flag = int(cancelled or e.cancelled)
        if product in merged:
            old, old_flag = merged[product]
            q = old if q != q else q if old != old else old + q
            flag |= old_flag
        merged[product] = (q, flag)
    keyed = [(_interaction(lists, until, "purchased", e, p, q, flag), p, flag) for p, (q, flag) in merged.items()]
    circle = sorted(keyed)
    take = min(limits.partners_max, len(circle) - 1)
    for i, (key, product, flag) in enumerate(circle):
        for step in range(1, take + 1):
            _, other, other_flag = circle[(i + step) % len(circle)]
            pair = (e.timestamp, mix(key, h(other)), other, float("nan"), flag | other_flag)
            lists["pairs"][product].append(pair)


def _write(registers, name, e, value) -> None:  # type: ignore[no-untyped-def]
    key = KEY_MAX if value is None else content_key(e)
    if name not in registers or (e.timestamp, key) > registers[name][:2]:
        registers[name] = (e.timestamp, key, value)


def _user(e: Profile) -> UserAttributes:
    day = None if e.signup_date is None else int(np.datetime64(e.signup_date, "D").astype(np.int64))
    return UserAttributes(age_bucket=e.age_bucket, geo=e.geo, signup_day=day)


def _product(e: Product) -> ProductAttributes:
    return ProductAttributes(e.category, e.brand, e.price, e.description, e.description_emb)


def _state(users, products, until, lists, sessions, registers, latest, limits) -> Any:  # type: ignore[no-untyped-def]
    def packed(entries: list[Entry], keep: int) -> list[Any]:
        return [[t, k, n, np.float32(v).tobytes(), f] for t, k, n, v, f in join(entries, keep)]

    out_users, out_forgotten = [], []
    for user in sorted(users):
        own = sorted(sessions[user].values(), key=lambda s: s[:2], reverse=True)[: limits.sessions_max]
        register = registers["user"].get(user)
        content = lists["purchased"][user] or lists["viewed"][user] or own
        if user in until and not content and (register is None or register[2] is None):
            out_forgotten.append([h(user), until[user]])
            continue
        out_users.append(
            [
                user,
                until.get(user, -1),
                list(register) if register else [],
                packed(lists["purchased"][user], limits.purchased_max),
                packed(lists["viewed"][user], limits.viewed_max),
                [_session(t, k, s, limits) for t, k, s in own],
            ]
        )
    out_products = []
    known = products | set(lists["purchased_by"]) | set(lists["viewed_by"]) | set(lists["pairs"])
    for product in sorted(known):
        register = registers["product"].get(product)
        row = [
            product,
            list(register) if register else [],
            packed(lists["purchased_by"][product], limits.purchased_by_max),
            packed(lists["viewed_by"][product], limits.viewed_by_max),
            packed(lists["pairs"][product], limits.co_purchased_max),
        ]
        out_products.append(row)
    return {
        "users": out_users,
        "products": out_products,
        "forgotten": sorted(out_forgotten),
        "event_time_max": latest,
    }


def _session(time: int, key: int, s: Session, limits: GraphLimits) -> list[Any]:
    items = list(s.items)[-limits.session_items_max :]
    duration = np.float32(np.nan if s.duration_s is None else s.duration_s)
    return [
        time,
        key,
        h(s.session_id),
        s.device,
        duration.tobytes(),
        [i.product_id for i in items],
        [-1 if i.position is None else i.position for i in items],
        [-1 if i.click is None else int(i.click) for i in items],
    ]
