"""Redis: the only file that imports its client.

A script compares `seq` and writes, a few hundred values a call and many calls a round trip. Repeating a call is
harmless, which is what makes retries after a timeout safe.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import redis
from numpy.typing import NDArray
from redis.backoff import NoBackoff
from redis.retry import Retry

from freshet.errors import FreshetError
from freshet.store.embeddings import StoreUnavailable, check_lengths
from freshet.store.redis_settings import RedisSettings
from freshet.store.value import SEQ_CHARS, SEQ_DIGITS, SEQ_PLACE, Seq

T = TypeVar("T")

CALLS_PER_TRIP = 64
"""Calls sent before an answer is waited for: bounds the memory of a large write to a few tens of MB."""
SCAN_KEYS = 1_000
"""Keys that the server looks at in one step of a scan."""

_SEQ_IN_LUA = f"^{'%d' * SEQ_DIGITS}%.{'%d' * SEQ_DIGITS}$"
"""What is no `seq` guards nothing: a damaged value is written over, and does not stop a worker for good."""

_HELD = f"""
  local held, guard = redis.call('GETRANGE', key, {SEQ_PLACE}, {SEQ_PLACE + SEQ_CHARS - 1}), nil
  if held == '' then
    guard = guards .. redis.sha1hex(key)
    held = redis.call('GET', guard) or ''
  end
"""
"""The `seq` that a write has to pass: of the value, else of the deletion; with the latter, the key that holds it.

Only a user without a value costs a second look-up. The key of a deletion is a digest, made here so that the
usual write pays nothing for it: a forgotten user's id may not stay.
"""

UPSERT = f"""
local ttl, guards, stale = tonumber(ARGV[1]), ARGV[2], {{}}
for i, key in ipairs(KEYS) do
  local value = ARGV[i + 2]
  local new = string.sub(value, {SEQ_PLACE + 1}, {SEQ_PLACE + SEQ_CHARS})
  {_HELD}
  if held < new or (held > new and not string.find(held, '{_SEQ_IN_LUA}')) then
    if ttl > 0 then redis.call('SET', key, value, 'EX', ttl) else redis.call('SET', key, value) end
    if guard and held ~= '' then redis.call('DEL', guard) end
  elseif held > new then
    stale[#stale + 1] = i
  end
end
return stale
"""

DELETE = f"""
local ttl, guards, new, stale = ARGV[1], ARGV[2], ARGV[3], {{}}
for i, key in ipairs(KEYS) do
  {_HELD}
  if held < new or (held > new and not string.find(held, '{_SEQ_IN_LUA}')) then
    redis.call('DEL', key)
    redis.call('SET', guards .. redis.sha1hex(key), new, 'EX', ttl)
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

_PASSING = (redis.ConnectionError, redis.TimeoutError)
"""What may pass by itself: the store is away, or loading."""

_PASSING_CODES = {
    "OOM": "it is full: raise its maxmemory, or let values expire with ttl_s",
    "READONLY": "it is a replica: name the primary with --redis",
    "MISCONF": "it cannot save its data and so takes no writes: free its disk, or see its log",
    "NOREPLICAS": "it has too few replicas to take writes: start them, or lower min-replicas-to-write",
    "BUSY": "it is busy with somebody's script: wait, or end that with SCRIPT KILL",
    "MASTERDOWN": "it is a replica that has lost its primary: start the primary",
    "CLUSTERDOWN": "it is a node of a cluster that is not whole: see CLUSTER INFO",
    "TRYAGAIN": "it is moving keys to another node: wait",
}
"""Answers that may pass by themselves or when somebody acts, and how to act."""


class RedisStore:
    """An `EmbeddingStore` and a `ServingState` on Redis or Valkey. Threads may share one."""

    def __init__(self, settings: RedisSettings | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings = settings or RedisSettings()
        self._shown = self.settings.url_shown
        self._sleep = sleep
        seconds = self.settings.timeout_ms / 1e3
        try:
            self._redis: Any = redis.Redis.from_url(
                self.settings.url,
                socket_timeout=seconds,
                socket_connect_timeout=seconds,
                retry=Retry(NoBackoff(), 0),  # `_attempt` repeats, and says so when it gives up
            )
        except ValueError as e:
            raise FreshetError(f"Redis URL {self._shown!r} cannot be used ({e}): redis://HOST:PORT/0 is one") from e

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    # --- EmbeddingStore -------------------------------------------------------------------------

    def upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """See `EmbeddingStore.upsert`."""
        check_lengths(user_ids, values)
        keys, ttl_s = self._user_keys(model_version, user_ids), self.settings.ttl_s or 0
        guards = self._key(f"{model_version}:gone:")

        def write(pipe: Any, part: slice) -> None:
            # Every call brings the script along, a hundredth of its bytes: no server can have forgotten it.
            pipe.eval(UPSERT, part.stop - part.start, *keys[part], ttl_s, guards, *values[part])

        return self._refused(len(keys), write)

    def get(self, model_version: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """See `EmbeddingStore.get`."""
        keys = self._user_keys(model_version, user_ids)
        answers = self._calls(len(keys), lambda pipe, part: pipe.mget(keys[part]))
        return [value for _, values in answers for value in values]

    def delete(self, model_version: str, user_ids: Sequence[str], seq: Seq) -> NDArray[np.bool_]:
        """See `EmbeddingStore.delete`."""
        keys = self._user_keys(model_version, user_ids)
        how = (self.settings.guard_s, self._key(f"{model_version}:gone:"), seq.text())

        def write(pipe: Any, part: slice) -> None:
            pipe.eval(DELETE, part.stop - part.start, *keys[part], *how)

        return self._refused(len(keys), write)

    def user_ids(self, model_version: str) -> Iterator[str]:
        """See `EmbeddingStore.user_ids`."""
        prefix = self._key(f"{model_version}:user:")
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", prefix) + "*"
        cursor = 0

        def step() -> tuple[int, list[bytes]]:
            found: tuple[int, list[bytes]] = self._redis.scan(cursor, match=pattern, count=SCAN_KEYS)
            return found

        while True:
            cursor, keys = self._attempt(step)
            for key in keys:
                yield key.decode()[len(prefix) :]
            if not cursor:
                return

    # --- ServingState ---------------------------------------------------------------------------

    def current(self) -> str | None:
        """See `ServingState.current`."""
        return self._text("current")

    def set_current(self, model_version: str) -> None:
        """See `ServingState.set_current`."""
        self._attempt(lambda: self._redis.set(self._key("current"), model_version))

    def next_fence(self, scope: str, floor: int) -> int:
        """See `ServingState.next_fence`."""
        return int(self._attempt(lambda: self._redis.eval(FENCE, 1, self._key(f"fence:{scope}"), floor)))

    def incarnation(self) -> str:
        """See `ServingState.incarnation`."""
        return str(self._attempt(lambda: self._redis.info("server"))["run_id"])

    def put_blob(self, name: str, seq: Seq, blob: bytes) -> bool:
        """See `NamedBlobs.put_blob`."""
        return bool(self._attempt(lambda: self._redis.eval(BLOB, 1, self._key(name), seq.text(), blob)))

    def get_blob(self, name: str) -> bytes | None:
        """See `NamedBlobs.get_blob`."""
        raw = self._attempt(lambda: self._redis.get(self._key(name)))
        return None if raw is None else raw[SEQ_CHARS:]

    # --- parts ----------------------------------------------------------------------------------

    def _key(self, rest: str) -> str:
        return f"{self.settings.namespace}:{rest}"

    def _user_keys(self, model_version: str, user_ids: Sequence[str]) -> list[str]:
        prefix = self._key(f"{model_version}:user:")
        return [prefix + user for user in user_ids]

    def _text(self, rest: str) -> str | None:
        raw = self._attempt(lambda: self._redis.get(self._key(rest)))
        return None if raw is None else raw.decode()

    def _refused(self, keys: int, make: Callable[[Any, slice], Any]) -> NDArray[np.bool_]:
        """Make calls that answer with the places (from 1) that they refused; [keys] bool."""
        stale = np.zeros(keys, dtype=np.bool_)
        for part, places in self._calls(keys, make):
            stale[[part.start + place - 1 for place in places]] = True
        return stale

    def _calls(self, keys: int, make: Callable[[Any, slice], Any]) -> Iterator[tuple[slice, Any]]:
        """Make calls over parts of so many keys, some a round trip; each part with its answer.

        `make` takes a pipeline and a part. What shares a call is decided here alone: on Redis Cluster it will
        have to be keys of one slot, deletions' included (a hash tag in `gone:` that falls into the slot).
        """
        size = self.settings.keys_per_call
        parts = [slice(start, min(start + size, keys)) for start in range(0, keys, size)]
        for start in range(0, len(parts), CALLS_PER_TRIP):
            trip = parts[start : start + CALLS_PER_TRIP]

            def travel(trip: list[slice] = trip) -> list[Any]:
                pipe = self._redis.pipeline(transaction=False)
                for part in trip:
                    make(pipe, part)
                answers: list[Any] = pipe.execute(raise_on_error=False)  # it would put the script into the error
                for answer in answers:
                    if isinstance(answer, redis.RedisError):
                        raise answer
                return answers

            yield from zip(trip, self._attempt(travel), strict=True)

    def _attempt(self, call: Callable[[], T]) -> T:
        """Make an idempotent call, again if need be. Raises StoreUnavailable, FreshetError."""
        wait_s = self.settings.retry_ms / 1e3
        for left in range(self.settings.attempts - 1, -1, -1):
            try:
                return call()
            except redis.RedisError as e:
                error = self._explained(e)
                if not left or not isinstance(error, StoreUnavailable):
                    raise error from e
                self._sleep(wait_s)
                wait_s *= 2
        raise AssertionError("attempts is at least 1")

    def _explained(self, e: redis.RedisError) -> FreshetError:
        """The error to raise in its place: StoreUnavailable where it may pass."""
        where, code = f"Redis at {self._shown}", _code(e)
        if code in _PASSING_CODES:
            return StoreUnavailable(f"{where} does not take this ({e}): {_PASSING_CODES[code]}")
        if isinstance(e, redis.AuthenticationError) or code == "NOPERM":
            return FreshetError(f"{where} refuses the login: {e}; put user and password into the URL")
        if isinstance(e, _PASSING):
            return StoreUnavailable(
                f"{where} does not take this ({e}): start it (`freshet redis` runs an embedded one), or name another "
                "with --redis"
            )
        if code in ("MOVED", "ASK", "CROSSSLOT"):
            return FreshetError(
                f"{where} is a node of a Redis Cluster, which cannot be used yet ({e}): name a single server"
            )
        if code == "WRONGTYPE":
            return FreshetError(
                f"{where} holds a key under {self.settings.namespace + ':'!r} that Freshet did not write ({e}): "
                "choose another namespace"
            )
        return FreshetError(f"{where}: {e}")


def _code(e: redis.RedisError) -> str:
    """The first word of the server's answer; the client drops it from the text where it has a class for it."""
    return str(getattr(e, "status_code", None) or str(e).split(" ")[0])
