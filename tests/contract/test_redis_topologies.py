"""Redis as more than one server: what a cluster and sentinels ask of the store beyond the contract."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest
import redis

from freshet.errors import FreshetError
from freshet.store.embeddings import StoreUnavailable
from freshet.store.redis_client import slot_of, tags
from freshet.store.redis_settings import RedisSettings
from freshet.store.redis_store import RedisStore
from freshet.store.value import Seq
from freshet.stream.embedded import EmbeddedRedis, free_port
from tests.contract.test_embedding_store import ODD_IDS, value
from tests.redis_topologies import SERVICE, ClusterOfServers, WatchedByASentinel, asked, until

BRACED_IDS = ["{x}", "a{b}c", "{}", "{", "}", "}{", "{{a}}", "a{}{b}", "{gone}", *ODD_IDS]
"""Ids that choose their own slot, or look as if they did."""


def store_of(url: str, **settings: object) -> closing[RedisStore]:
    return closing(RedisStore(RedisSettings(url=url, retry_ms=10, **settings)))  # type: ignore[arg-type]


def within(seconds: float, call: Callable[[], object]) -> int:
    """Call until the store is available again; how often it was not."""
    end, away = time.monotonic() + seconds, 0
    while True:
        try:
            call()
            return away
        except StoreUnavailable:
            away += 1
            assert time.monotonic() < end, f"the store was not usable within {seconds} s"
            time.sleep(0.05)


# --- a cluster ----------------------------------------------------------------------------------


def test_every_slot_has_a_tag_of_its_own() -> None:
    found = tags()
    assert len(set(found)) == 16_384
    assert all(slot_of(f"anything:{{{tag}}}{{x}}") == slot for slot, tag in enumerate(found))
    assert max(map(len, found)) <= 6


def test_the_keys_of_a_cluster_are_those_of_the_contract(
    redis_cluster: str, shared_cluster: ClusterOfServers
) -> None:
    with store_of(redis_cluster) as store:
        users = ["ann", *BRACED_IDS]
        store.upsert("v1", users, [value(7, 8, i) for i in range(len(users))])
        keys = [f"freshet:v1:user:{user}" for user in users]
        assert shared_cluster.keys() == {key.encode() for key in keys}
        assert not store.delete("v1", users, Seq(7, 9)).any()
        guards = {
            f"freshet:v1:gone:{{{tags()[slot_of(key)]}}}{hashlib.sha1(key.encode()).hexdigest()}".encode(): key
            for key in keys
        }
        any_guard = {f"freshet:v1:gone:{{{tags()[slot_of(key)]}}}any".encode() for key in keys}
        assert shared_cluster.keys() == set(guards) | any_guard, "nothing of an id stays"
        assert all(slot_of(guard.decode()) == slot_of(key) for guard, key in guards.items())
        assert {slot_of(key.decode()) for key in any_guard} == {slot_of(key) for key in keys}
        assert store.upsert("v1", users, [value(7, 8)] * len(users)).all(), "a late write does not pass"
        assert not store.upsert("v1", users, [value(7, 10)] * len(users)).any()
        assert shared_cluster.keys() == {key.encode() for key in keys} | any_guard


def test_many_users_are_spread_and_found_again(redis_cluster: str, shared_cluster: ClusterOfServers) -> None:
    users = [f"u{i}" for i in range(3000)] + [f"{{shop}}{i}" for i in range(100)]  # the latter share a slot
    values = [value(1, 1, i) for i in range(len(users))]
    with store_of(redis_cluster, keys_per_call=16) as store:
        assert not store.upsert("v1", users, values).any()
        assert store.get("v1", users) == values
        assert sorted(store.user_ids("v1")) == sorted(users)
        ahead = users[::7]
        store.upsert("v1", ahead, [value(2, 1)] * len(ahead))
        stale = store.upsert("v1", users, [value(1, 2)] * len(users))
        assert [u for u, refused in zip(users, stale, strict=True) if refused] == ahead
    for server in shared_cluster.primaries:
        assert asked(server, "DBSIZE") > 800


def test_writers_that_race_on_a_cluster_leave_the_greatest_seq(redis_cluster: str) -> None:
    users, errors = [f"u{i}" for i in range(40)], []
    with store_of(redis_cluster, keys_per_call=8) as store:

        def write(fence: int) -> None:
            try:
                for step in range(1, 20):
                    store.upsert("v1", users, [value(fence, step)] * len(users))
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=write, args=(fence,)) for fence in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert store.get("v1", users) == [value(3, 19)] * len(users)


def test_a_slot_that_moves_is_followed(redis_cluster: str, shared_cluster: ClusterOfServers) -> None:
    """First key by key (ASK), then for good (MOVED)."""
    user, other = "{moving}a", "{moving}b"
    slot = slot_of(f"freshet:v1:user:{user}")
    source = next(s for s in shared_cluster.primaries if asked(s, "CLUSTER COUNTKEYSINSLOT", slot) is not None
                  and any(start <= slot <= end for start, end in _ranges(s)))  # fmt: skip
    target = next(s for s in shared_cluster.primaries if s is not source)
    ids = {server: asked(server, "CLUSTER MYID") for server in (source, target)}
    with store_of(redis_cluster) as store:
        store.upsert("v1", [user], [value(1, 1)])
        try:
            asked(target, "CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
            asked(source, "CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
            asked(source, "MIGRATE", target.host, target.port, f"freshet:v1:user:{user}", 0, 5000)
            assert store.get("v1", [user]) == [value(1, 1)]
            assert not store.upsert("v1", [user], [value(1, 2)]).any()
            assert asked(source, "CLUSTER COUNTKEYSINSLOT", slot) == 0
        finally:
            for server in (target, source, *shared_cluster.primaries):
                asked(server, "CLUSTER SETSLOT", slot, "NODE", ids[target])
        assert store.get("v1", [user, "elsewhere"]) == [value(1, 2), None]
        assert not store.upsert("v1", [user, other], [value(1, 3)] * 2).any()
        assert store.upsert("v1", [user, other], [value(1, 2)] * 2).all()
        assert sorted(store.user_ids("v1")) == [user, other]


def _ranges(server: EmbeddedRedis) -> list[tuple[int, int]]:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        nodes = str(client.execute_command("CLUSTER", "NODES"))
    mine = next(line for line in nodes.splitlines() if "myself" in line)
    found = [part.split("-") for part in mine.split()[8:] if not part.startswith("[")]
    return [(int(part[0]), int(part[-1])) for part in found]


def test_a_failover_in_a_cluster_is_waited_for(tmp_path: object) -> None:
    users = [f"u{i}" for i in range(300)]
    with ClusterOfServers(primaries=3, replicas=1, timeout_ms=2000) as servers, store_of(servers.url) as store:
        store.upsert("v1", users, [value(1, 1)] * len(users))
        store.set_current("v1")
        fence = store.next_fence("w", 5)
        before = store.incarnation()
        for server in servers.primaries:
            assert asked(server, "WAIT", 1, 5000) == 1
        servers.servers[0].kill()  # the first that the URL names
        with pytest.raises(StoreUnavailable):
            store.upsert("v1", users, [value(1, 2)] * len(users))
        with pytest.raises(StoreUnavailable):
            store.incarnation()
        assert within(60, lambda: store.upsert("v1", users, [value(1, 2)] * len(users))) > 0
        assert store.get("v1", users) == [value(1, 2)] * len(users)
        assert sorted(store.user_ids("v1")) == sorted(users)
        assert store.current() == "v1"
        assert store.next_fence("w", 5) == fence + 1
        after = store.incarnation()
        assert after != before
        assert len(set(after.split(",")) & set(before.split(","))) == 2, "the other two are the same"
        until(lambda: len(servers.primaries) == 3, "three primaries")
        with store_of(servers.url) as late:  # the URL still names the dead one
            assert late.current() == "v1"


def test_a_primary_of_a_cluster_that_was_demoted_is_left() -> None:
    """In order, and alive: nothing breaks that would tell."""
    with ClusterOfServers(primaries=3, replicas=1) as servers, store_of(servers.url) as store:
        users = [f"u{i}" for i in range(60)]
        store.upsert("v1", users, [value(1, 1)] * len(users))
        before = store.incarnation()
        asked(servers.servers[3], "CLUSTER", "FAILOVER")
        until(lambda: asked(servers.servers[0], "INFO", "replication")["role"] == "slave", "the first was demoted")
        within(30, store.incarnation)
        assert len(set(store.incarnation().split(",")) - set(before.split(","))) == 1
        within(30, lambda: store.upsert("v1", users, [value(1, 2)] * len(users)))
        assert store.get("v1", users) == [value(1, 2)] * len(users)
        assert sorted(store.user_ids("v1")) == sorted(users)


def test_a_cluster_that_was_away_altogether(redis_cluster: str) -> None:
    nodes = ClusterOfServers(primaries=1)
    with nodes as servers, store_of(f"{servers.url},127.0.0.1:{free_port()}") as store:
        store.set_current("v1")
        before = store.incarnation()
        servers.servers[0].kill()
        for call in (store.current, store.incarnation, lambda: store.get("", ["a"]), lambda: list(store.user_ids(""))):
            with pytest.raises(StoreUnavailable, match=r"redis\+cluster://127"):
                call()
        servers.servers[0].start()  # it remembers its slots, and nothing else
        within(30, store.current)
        assert store.current() is None
        assert store.incarnation() != before


def test_what_a_cluster_cannot_take_is_named(redis_cluster: str, valkey: str) -> None:
    with store_of(redis_cluster, namespace="{shop}") as store:
        with pytest.raises(FreshetError, match=r"'\{shop\}:v1:user:'.*may not have a \{"):
            store.get("v1", ["a"])
        assert store.current() is None
    with store_of(valkey.replace("redis://", "redis+cluster://")) as store:
        with pytest.raises(FreshetError, match="is no cluster: name it as redis://") as caught:
            store.get("v1", ["a"])
        assert not isinstance(caught.value, StoreUnavailable)


# --- behind sentinels ---------------------------------------------------------------------------


def test_a_failover_behind_a_sentinel_is_waited_for() -> None:
    users = [f"u{i}" for i in range(300)]
    with WatchedByASentinel(down_ms=1000) as servers:
        url = servers.url.replace("redis+sentinel://", f"redis+sentinel://127.0.0.1:{free_port()},")  # one is away
        with store_of(url) as store:
            store.upsert("v1", users, [value(1, 1)] * len(users))
            store.set_current("v1")
            before = store.incarnation()
            assert asked(servers.primary, "WAIT", 1, 5000) == 1
            servers.primary.kill()
            with pytest.raises(StoreUnavailable):
                store.upsert("v1", users, [value(1, 2)] * len(users))
            assert within(60, lambda: store.upsert("v1", users, [value(1, 2)] * len(users))) > 0
            assert store.get("v1", users) == [value(1, 2)] * len(users)
            assert store.current() == "v1"
            assert sorted(store.user_ids("v1")) == sorted(users)
            assert store.incarnation() != before
            assert asked(servers.replica, "ROLE")[0] == "master"


def test_a_primary_that_was_demoted_is_left(redis_sentinel: str) -> None:
    with WatchedByASentinel(down_ms=15_000) as servers, store_of(servers.url) as store:
        store.upsert("v1", ["a"], [value(1, 1)])
        before = store.incarnation()
        until(lambda: bool(asked(servers.sentinel, "SENTINEL FAILOVER", SERVICE)), "the replica is good enough")
        until(lambda: asked(servers.replica, "ROLE")[0] == "master", "the replica was promoted")
        within(30, lambda: store.upsert("v1", ["a"], [value(1, 2)]))
        until(lambda: store.incarnation() != before, "another server answers")
        within(30, lambda: store.upsert("v1", ["a"], [value(1, 3)]))
        with redis.Redis(port=servers.replica.port) as promoted:
            assert promoted.get("freshet:v1:user:a") == value(1, 3)


def test_servers_and_sentinels_have_passwords_of_their_own() -> None:
    with WatchedByASentinel(password="servers-pw", own_password="sentinels-pw") as servers:
        both = {"password": "servers-pw", "sentinel_password": "sentinels-pw"}
        with store_of(servers.url, **both) as store:
            store.set_current("v1")
        with store_of(servers.url.replace("://", "://:servers-pw@"), sentinel_password="sentinels-pw") as store:
            assert store.current() == "v1"
        rule = ("reset", "on", ">users-pw", "-@all", "+sentinel|masters")
        asked(servers.sentinel, "ACL", "SETUSER", "freshet", *rule, password="sentinels-pw")
        named = {"password": "servers-pw", "sentinel_username": "freshet", "sentinel_password": "users-pw"}
        with store_of(servers.url, **named) as store:
            assert store.current() == "v1"
        for wrong in ({"password": "bad-pw"}, {"sentinel_password": "bad-pw"}, {"sentinel_password": None}):
            with store_of(servers.url, **{**both, **wrong}) as store:
                with pytest.raises(FreshetError, match="refuses the login") as caught:
                    store.current()
                assert not isinstance(caught.value, StoreUnavailable)
                assert "-pw" not in str(caught.value)


def test_a_service_that_the_sentinels_do_not_know(redis_sentinel: str) -> None:
    store = RedisStore(RedisSettings(url=redis_sentinel.replace(SERVICE, "other"), attempts=1))
    with closing(store), pytest.raises(StoreUnavailable, match=r"sentinels know no primary.*'other'"):
        store.current()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+cluster://", "no name"),
        ("redis+cluster://h:1,", "no name"),
        ("redis+cluster://h:1/2", "database 0 alone"),
        ("redis+cluster://h:port", "cannot be used"),
        ("redis+cluster://h?ssl=true", "takes no options"),
        ("redis+sentinel://h:1", "name the service"),
        ("redis+sentinel://h:1/shop/x", "not the number of a database"),
        ("redis+sentinel://h:1/shop/0/1", "not the number of a database"),
        ("redis+ring://h:1", "no scheme"),
        ("h:1", "no scheme"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, why: str) -> None:
    with pytest.raises(FreshetError, match=rf"cannot be used.*{why}|{why}"):
        RedisStore(RedisSettings(url=url))


def test_a_url_of_many_hosts_is_read() -> None:
    found = RedisSettings(url="rediss+sentinel://ann:p%40ss@h1:1,h2,[::1]:3/shop/2").address()
    assert found == (
        "sentinel", "rediss+sentinel://ann:p%40ss@h1:1,h2,[::1]:3/shop/2", True,
        (("h1", 1), ("h2", 26379), ("::1", 3)), "shop", 2, "ann", "p@ss",
    )  # fmt: skip
