"""Redis as other programs meet it: reads beside writes, faults in the middle, and the documented five lines."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from freshet.store.embeddings import StoreUnavailable
from freshet.store.memory_store import MemoryEmbeddingStore
from freshet.store.redis_settings import RedisSettings
from freshet.store.redis_store import RedisStore
from freshet.store.value import Seq, decode_value, encode_value
from freshet.stream.embedded import EmbeddedRedis

ROOT = Path(__file__).parents[2]
USERS = [f"user-{i}" for i in range(300)]
DIM = 64


def value(fence: int, step: int) -> bytes:
    """A value whose every part tells its step, so that one mixed of two is found out."""
    row = np.full(DIM, step, dtype="<f4").tobytes()
    seen, own = [(f"p{step}", "view", step)] * (step % 20), [(f"p{step}", step, step, step + 0.5)] * (step % 9)
    return encode_value(row, DIM, "v1", Seq(fence, step), step, step, ("views", 0, step), seen, own)


def assert_whole(raw: bytes) -> int:
    """Decode and check that all parts are of one write; returns its step."""
    found = decode_value(raw)
    step = found.seq.step
    assert (found.vector == step).all()
    assert (found.event_ts, found.written_ts, found.src) == (step, step, ("views", 0, step))
    assert found.recent == [(f"p{step}", "view", step)] * (step % 20)
    assert found.bought == [(f"p{step}", step, step, step + 0.5)] * (step % 9)
    return step


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    made = RedisStore(RedisSettings(url=redis_url, keys_per_call=64))
    yield made
    made.close()


class Repeating(threading.Thread):
    """Repeats an action until `stop`, which raises what it raised."""

    def __init__(self, action: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.count, self._action, self._over = 0, action, threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._action()
                self.count += 1
        except BaseException as e:
            self._error = e

    def stop(self) -> None:
        self._over.set()
        self.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Repeating:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def test_a_reader_sees_whole_values_that_never_go_back(store: RedisStore, redis_url: str) -> None:
    reader = RedisStore(RedisSettings(url=redis_url))
    store.upsert("v1", USERS, [value(1, 0)] * len(USERS))
    seen = np.zeros(len(USERS), dtype=np.int64)

    def read() -> None:
        steps = np.array([assert_whole(raw or b"") for raw in reader.get("v1", USERS)])
        assert (steps >= seen).all()
        seen[:] = steps

    with Repeating(read) as reads:
        step = 0
        while step < 40 or (reads.count < 5 and reads.is_alive()):
            step += 1
            store.upsert("v1", USERS, [value(1, step)] * len(USERS))
    read()
    assert (seen == step).all()
    reader.close()


def test_the_script_may_be_forgotten_at_any_moment(store: RedisStore, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as other, Repeating(other.script_flush) as flushes:
        step = 0
        while step < 60 or (flushes.count < 20 and flushes.is_alive()):
            step += 1
            insist(lambda at=step: store.upsert("v1", USERS, [value(1, at)] * len(USERS)))
    assert {assert_whole(raw or b"") for raw in store.get("v1", USERS)} == {step}


def insist(write: Callable[[], Any]) -> Any:
    """Repeat a write while the store is away, as a worker does."""
    while True:
        try:
            return write()
        except StoreUnavailable:
            time.sleep(0.01)


def test_a_server_that_is_killed_and_restarted_again_and_again_gets_everything_in_the_end() -> None:
    with EmbeddedRedis() as server:
        store = RedisStore(RedisSettings(url=server.url, keys_per_call=16, retry_ms=1))
        step = 0

        def write() -> None:
            nonlocal step
            step += 1
            assert not insist(lambda: store.upsert("v1", USERS, [value(1, step)] * len(USERS))).any()

        with Repeating(write) as writes:
            for _ in range(3):
                before = writes.count
                while writes.count < before + 3 and writes.is_alive():
                    time.sleep(0.001)
                server.kill()
                server.start()
        write()
        assert {assert_whole(raw or b"") for raw in store.get("v1", USERS)} == {step}
        store.close()


def test_a_large_batch_is_written_whole_and_its_refusals_are_exact(store: RedisStore) -> None:
    users = [f"{i:06d}-" + "é" * 124 + "x" for i in range(30_000)]
    assert {len(user.encode()) for user in users[:9]} == {256}
    ahead = np.random.default_rng(5).random(len(users)) < 0.3
    store.upsert("v1", [u for u, a in zip(users, ahead, strict=True) if a], [value(2, 1)] * int(ahead.sum()))
    np.testing.assert_array_equal(store.upsert("v1", users, [value(1, 9)] * len(users)), ahead)
    steps = np.array([assert_whole(raw or b"") for raw in store.get("v1", users)])
    np.testing.assert_array_equal(steps, np.where(ahead, 1, 9))
    assert set(store.user_ids("v1")) == set(users)
    np.testing.assert_array_equal(store.delete("v1", users, Seq(2, 0)), ahead)
    assert not store.delete("v1", users, Seq(2, 2)).any()
    assert list(store.user_ids("v1")) == []


def test_a_token_grows_also_after_everything_was_lost(store: RedisStore, redis_url: str) -> None:
    before = store.next_fence("worker", 1_763_900_000_000)
    with redis.Redis.from_url(redis_url) as other:
        other.flushall()
    assert store.next_fence("worker", 1_763_900_000_500) > before


def test_a_server_that_is_kept_busy_by_a_script_is_waited_for() -> None:
    with EmbeddedRedis(options=("--busy-reply-threshold", "20")) as server:
        store = RedisStore(RedisSettings(url=server.url, attempts=2, retry_ms=1))
        assert not store.upsert("v1", USERS[:1], [value(1, 1)]).any()
        with redis.Redis.from_url(server.url) as other, redis.Redis.from_url(server.url) as third:
            loop = threading.Thread(target=run_until_killed, args=(other,))
            loop.start()
            while answers(third):
                time.sleep(0.005)
            with pytest.raises(StoreUnavailable, match="busy with somebody's script"):
                store.upsert("v1", USERS[:1], [value(1, 2)])
            third.script_kill()
            loop.join()
        assert not store.upsert("v1", USERS[:1], [value(1, 2)]).any()
        store.close()


@pytest.mark.parametrize("damaged", [b"", b"\x00", b"\xff" * 60, value(9, 9)[:30], value(9, 9).replace(b"9.", b"9:")])
def test_a_damaged_value_is_written_over(store: RedisStore, redis_url: str, damaged: bytes) -> None:
    twin = MemoryEmbeddingStore()
    twin.upsert("v1", ["a"], [damaged])
    with redis.Redis.from_url(redis_url) as other:
        other.set("freshet:v1:user:a", damaged)
        other.set("freshet:v1:popular", damaged)
    for each in (store, twin):
        assert not each.upsert("v1", ["a"], [value(1, 1)]).any()
        assert each.get("v1", ["a"]) == [value(1, 1)]
    assert store.put_blob("v1:popular", Seq(1, 1), b"good")
    assert store.get_blob("v1:popular") == b"good"


def run_until_killed(client: redis.Redis) -> None:
    """Run a script that never ends by itself."""
    with pytest.raises(redis.ResponseError):
        client.eval("while true do end", 0)


def answers(client: redis.Redis) -> bool:
    """Whether the server does more than say that it is busy."""
    try:
        return bool(client.ping())
    except redis.ResponseError as e:
        assert "BUSY" in str(e)
        return False


@pytest.mark.parametrize("page", ["docs/reading.md", "README.md"])
def test_the_five_documented_lines_read_an_embedding(
    store: RedisStore, redis_url: str, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert("v1", ["900"], [value(1, 7)])
    store.set_current("v1")
    code = next(c for c in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S) if "frombuffer" in c)
    assert len(code.strip().splitlines()) == 5
    client = redis.Redis.from_url(redis_url)
    monkeypatch.setattr(redis, "Redis", lambda: client)  # the lines connect to the default port
    names: dict[str, Any] = {}
    exec(code, names)
    client.close()
    assert names["version"] == "v1"
    np.testing.assert_array_equal(names["vector"], np.full(DIM, 7, dtype=np.float32))
    assert names["value"]["recent"] == [["p7", "view", 7]] * 7
    assert names["value"]["bought"] == [["p7", 7, 7, 7.5]] * 7


def test_the_documented_place_of_a_blob_is_where_it_is(store: RedisStore, redis_url: str) -> None:
    store.put_blob("v1:popular", Seq(1, 1), msgspec.msgpack.encode([("tea", 0.5)]))
    with redis.Redis.from_url(redis_url) as client:
        raw: Any = client.get("freshet:v1:popular")
    assert msgspec.msgpack.decode(raw[33:]) == [["tea", 0.5]]
