"""The keys of users and of what readers share, and the scripts that write them.

A script compares `seq` and writes, a few hundred values a call and many calls a round trip. Repeating a call is
harmless, which is what makes retries after a timeout safe.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.embeddings import Landing, check_lengths
from freshet.store.redis_client import Command, RedisClient, slot_of, tags
from freshet.store.redis_settings import RedisSettings
from freshet.store.value import SEQ_CHARS, SEQ_DIGITS, SEQ_PLACE, Seq

T = TypeVar("T")

CALLS_PER_TRIP = 64
"""Full calls sent before an answer is waited for: bounds the memory of a large write to a few tens of MB."""

_SEQ_IN_LUA = f"^{'%d' * SEQ_DIGITS}%.{'%d' * SEQ_DIGITS}$"
"""What is no `seq` guards nothing: a damaged value is written over, and does not stop a worker for good."""

_HELD = f"""
  local held, guard = taken[key], nil
  if not held then held = redis.call('GETRANGE', key, {SEQ_PLACE}, {SEQ_PLACE + SEQ_CHARS - 1}) end
  if held == '' then
    if guarded == nil then guarded = redis.call('GET', guards .. 'any') ~= false end
    if guarded then
      guard = guards .. redis.sha1hex(key)
      held = redis.call('GET', guard) or ''
    end
  end
"""
"""The `seq` that a write has to pass: of the value (that this call is about to write, or the held one), else of the
deletion; with the latter, the key that holds it.

Only a user without a value costs a second look-up, and only while any deletion is held. The key of a deletion is a
digest, made here so that the usual write pays nothing for it: a forgotten user's id may not stay.
"""

UPSERT = f"""
local ttl, guards, stale, guarded, taken, sets, n = tonumber(ARGV[1]), ARGV[2], {{}}, nil, {{}}, {{}}, 0
for i, key in ipairs(KEYS) do
  local value = ARGV[i + 2]
  local new = string.sub(value, {SEQ_PLACE + 1}, {SEQ_PLACE + SEQ_CHARS})
  {_HELD}
  if held < new or (held > new and not string.find(held, '{_SEQ_IN_LUA}')) then
    if ttl > 0 then
      redis.call('SET', key, value, 'EX', ttl)
    else
      n = n + 2
      sets[n - 1], sets[n] = key, value
    end
    taken[key] = new
    if guard and held ~= '' then redis.call('DEL', guard) end
  elseif held > new then
    stale[#stale + 1] = i
  end
end
if n > 0 then redis.call('MSET', unpack(sets)) end
return stale
"""

DELETE = f"""
local ttl, guards, new, stale, guarded, taken = tonumber(ARGV[1]), ARGV[2], ARGV[3], {{}}, nil, {{}}
for i, key in ipairs(KEYS) do
  {_HELD}
  if held < new or (held > new and not string.find(held, '{_SEQ_IN_LUA}')) then
    redis.call('DEL', key)
    redis.call('SET', guards .. redis.sha1hex(key), new, 'EX', ttl)
    if redis.call('PTTL', guards .. 'any') < 1000 * ttl then redis.call('SET', guards .. 'any', '1', 'EX', ttl) end
    guarded = true
  elseif held > new then
    stale[#stale + 1] = i
  end
end
return stale
"""

BLOB = f"""
local held = redis.call('GETRANGE', KEYS[1], 0, {SEQ_CHARS - 1})
if held > ARGV[1] and string.find(held, '{_SEQ_IN_LUA}') then return 0 end
if held ~= ARGV[1] then redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2]) end
return 1
"""

FENCE = """
local held = tonumber(redis.call('GET', KEYS[1]) or '0')
local token = math.max(held, tonumber(ARGV[1])) + 1
redis.call('SET', KEYS[1], string.format('%.0f', token))
return token
"""


class Part(NamedTuple):
    """What shares a call: its keys, their places among all, and what keys of deletions begin with (on a cluster a
    hash tag, which makes them fall into the slot of the keys)."""

    keys: Sequence[str]
    places: range | list[int]
    slot: int
    tag: str

    def of(self, values: Sequence[T]) -> Sequence[T]:
        """Its share of what was given for all keys."""
        if isinstance(self.places, range):
            return values[self.places.start : self.places.stop]
        return [values[place] for place in self.places]


class RedisStore:
    """An `EmbeddingStore` and a `ServingState` on Redis or Valkey: a server, a cluster, or behind sentinels.

    Threads may share one.
    """

    def __init__(self, settings: RedisSettings | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings = settings or RedisSettings()
        self._client = RedisClient(self.settings, sleep)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # --- EmbeddingStore -------------------------------------------------------------------------

    def upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """See `EmbeddingStore.upsert`."""
        return self.begin_upsert(model_version, user_ids, values)()

    def begin_upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> Landing:
        """See `EmbeddingStore.begin_upsert`. Of a large write the first trip is on its way, on a cluster none is."""
        check_lengths(user_ids, values)
        keys, ttl_s = self._user_keys(model_version, user_ids), self.settings.ttl_s or 0
        guards = self._key(f"{model_version}:gone:")

        def write(part: Part) -> Command:
            # Every call brings the script along, a hundredth of its bytes: no server can have forgotten it.
            return "EVAL", UPSERT, len(part.keys), *part.keys, ttl_s, guards + part.tag, *part.of(values)

        return self._begin(keys, write)

    def get(self, model_version: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """See `EmbeddingStore.get`."""
        keys = self._user_keys(model_version, user_ids)
        found: list[bytes | None] = [None] * len(keys)
        for parts in self._trips(keys):
            answers = self._client.pipelined([(part.slot, ("MGET", *part.keys)) for part in parts])
            for part, values in zip(parts, answers, strict=True):
                for place, value in zip(part.places, values, strict=True):
                    found[place] = value
        return found

    def delete(self, model_version: str, user_ids: Sequence[str], seq: Seq) -> NDArray[np.bool_]:
        """See `EmbeddingStore.delete`."""
        keys, guard_s = self._user_keys(model_version, user_ids), self.settings.guard_s
        guards = self._key(f"{model_version}:gone:")

        def write(part: Part) -> Command:
            return "EVAL", DELETE, len(part.keys), *part.keys, guard_s, guards + part.tag, seq.text()

        return self._begin(keys, write)()

    def user_ids(self, model_version: str) -> Iterator[str]:
        """See `EmbeddingStore.user_ids`."""
        prefix = self._key(f"{model_version}:user:")
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", prefix) + "*"
        for key in self._client.scan(pattern):
            yield key.decode()[len(prefix) :]

    # --- ServingState ---------------------------------------------------------------------------

    def current(self) -> str | None:
        """See `ServingState.current`."""
        return self._text("current")

    def set_current(self, model_version: str) -> None:
        """See `ServingState.set_current`."""
        self._client.call("SET", self._key("current"), model_version)

    def next_fence(self, scope: str, floor: int) -> int:
        """See `ServingState.next_fence`."""
        return int(self._client.call("EVAL", FENCE, 1, self._key(f"fence:{scope}"), floor))

    def fence(self, scope: str) -> int:
        """See `ServingState.fence`."""
        return int(self._text(f"fence:{scope}") or 0)

    def incarnation(self) -> str:
        """See `ServingState.incarnation`."""
        return self._client.incarnation()

    def put_blob(self, name: str, seq: Seq, blob: bytes) -> bool:
        """See `NamedBlobs.put_blob`."""
        return bool(self._client.call("EVAL", BLOB, 1, self._key(name), seq.text(), blob))

    def get_blob(self, name: str) -> bytes | None:
        """See `NamedBlobs.get_blob`."""
        raw: bytes | None = self._client.call("GET", self._key(name))
        return None if raw is None else raw[SEQ_CHARS:]

    # --- parts ----------------------------------------------------------------------------------

    def _key(self, rest: str) -> str:
        return f"{self.settings.namespace}:{rest}"

    def _user_keys(self, model_version: str, user_ids: Sequence[str]) -> list[str]:
        prefix = self._key(f"{model_version}:user:")
        if self._client.slotted and "{" in prefix:
            raise FreshetError(f"{prefix!r} begins every user's key, and on a Redis Cluster it may not have a {{ in it")
        return [prefix + user for user in user_ids]

    def _text(self, rest: str) -> str | None:
        raw: bytes | None = self._client.call("GET", self._key(rest))
        return None if raw is None else raw.decode()

    def _begin(self, keys: Sequence[str], make: Callable[[Part], Command]) -> Landing:
        """Begin calls that answer with the places (from 1) that they refused; the landing returns [keys] bool."""
        trips = list(self._trips(keys))

        def calls(parts: Sequence[Part]) -> list[tuple[int, Command]]:
            return [(part.slot, make(part)) for part in parts]

        begun = self._client.begin(calls(trips[0])) if trips else list

        def land() -> NDArray[np.bool_]:
            stale = np.zeros(len(keys), dtype=np.bool_)
            for i, parts in enumerate(trips):
                answers = self._client.pipelined(calls(parts)) if i else begun()
                for part, refused in zip(parts, answers, strict=True):
                    stale[[part.places[place - 1] for place in refused]] = True
            return stale

        return land

    def _trips(self, keys: Sequence[str]) -> Iterator[list[Part]]:
        """The parts of the keys whose calls share a round trip."""
        trip: list[Part] = []
        room = most = CALLS_PER_TRIP * self.settings.keys_per_call
        for part in self._parts(keys):
            if room < len(part.keys):
                yield trip
                trip, room = [], most
            trip.append(part)
            room -= len(part.keys)
        if trip:
            yield trip

    def _parts(self, keys: Sequence[str]) -> Iterator[Part]:
        """What shares a call: `keys_per_call` keys at most, on a cluster of one slot; in their order."""
        size = self.settings.keys_per_call
        if not self._client.slotted:
            for start in range(0, len(keys), size):
                places = range(start, min(start + size, len(keys)))
                yield Part(keys[start : places.stop], places, 0, "")
            return
        of_slot: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            of_slot.setdefault(slot_of(key), []).append(place)
        for slot, all_places in of_slot.items():
            for start in range(0, len(all_places), size):
                some = all_places[start : start + size]
                yield Part([keys[place] for place in some], some, slot, f"{{{tags()[slot]}}}")
