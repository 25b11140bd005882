"""No key of a row as it was, or as it is, is left in a cache after its change."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import pytest
import redis

import millstream as ms
from millstream.cdc import Unchanged, sync
from servers import RedisServer

from ..following import change, put, shape, until

USERS = shape(("id", "int"), ("email", "text"), ("bio", "text"))
KEYS = ["user:{id}", "email:{email}"]


def row(id: Any, email: Any, bio: Any = "") -> dict[str, Any]:
    return {"id": id, "email": email, "bio": bio}


def follow(log: ms.Log, cache: ms.CacheInvalidation) -> None:
    followers = sync(log, "users", cache, start=False)
    followers.catch_up()
    assert followers.parked() == []


@pytest.fixture
def client(redis_server: RedisServer) -> Any:
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    client.flushall()
    yield client
    client.close()


def fill(client: Any, *keys: str) -> None:
    for key in keys:
        client.set(key, "cached")


def test_keys_of_the_row_before_and_after_are_deleted(log: ms.Log, client: Any, redis_server: RedisServer) -> None:
    fill(client, "user:1", "email:old", "email:new", "user:2", "email:bob", "user:9", "other")
    put(log, USERS, change("UPDATE", row(1, "old"), row(1, "new"), USERS))
    put(log, USERS, change("DELETE", row(2, "bob"), None, USERS))
    put(log, USERS, change("INSERT", None, row(9, None), USERS))
    follow(log, ms.CacheInvalidation(redis_server.url, keys=KEYS))
    assert client.keys() == ["other"]


def test_many_keys_go_in_one_round_trip(log: ms.Log, client: Any, redis_server: RedisServer) -> None:
    fill(client, *(f"user:{i}" for i in range(900)))
    put(log, USERS, *(change("INSERT", None, row(i, f"e{i}"), USERS) for i in range(900)))
    before = client.info("commandstats").get("cmdstat_unlink", {}).get("calls", 0)
    follow(log, ms.CacheInvalidation(redis_server.url, keys=KEYS))
    assert client.info("commandstats")["cmdstat_unlink"]["calls"] == before + 1
    assert client.dbsize() == 0


def test_a_truncate_deletes_all_that_the_templates_can_make(
    log: ms.Log, client: Any, redis_server: RedisServer
) -> None:
    fill(client, "user:1", "user:ä ö", "email:x", "users:1", "[odd]*:1", "odd:1")
    put(log, USERS, change("TRUNCATE", None, None, USERS))
    follow(log, ms.CacheInvalidation(redis_server.url, keys=[*KEYS, "[odd]*:{id}"]))
    assert sorted(client.keys()) == ["odd:1", "users:1"]


def test_deleted_keys_are_told_on_a_channel(log: ms.Log, client: Any, redis_server: RedisServer) -> None:
    with client.pubsub() as subscriber:
        subscriber.subscribe("stale")
        assert subscriber.get_message(timeout=5)["type"] == "subscribe"
        put(log, USERS, change("INSERT", None, row(1, "ä"), USERS))
        follow(log, ms.CacheInvalidation(redis_server.url, keys=KEYS, publish="stale"))
        message = subscriber.get_message(timeout=5)
        assert json.loads(message["data"]) == {"table": "users", "keys": ["user:1", "email:ä"]}


def test_a_server_that_is_away_is_waited_for(log: ms.Log) -> None:
    if RedisServer.program is None:
        pytest.skip("there is no redis-server here")
    server = RedisServer()
    try:
        with redis.Redis.from_url(server.url) as client:
            cache = ms.CacheInvalidation(server.url.replace("//", "//:secret@").replace(":secret@", ""), keys=KEYS)
            server.stop()
            put(log, USERS, change("INSERT", None, row(1, "a"), USERS))
            with sync(log, "users", cache) as followers:
                until(lambda: followers.errors)
                [error] = followers.errors.values()
                assert isinstance(error, ms.SinkUnavailable)
                server.start()
                client.set("user:1", "stale")
                until(lambda: not client.exists("user:1"))
            assert followers.parked() == []
    finally:
        server.close()


def test_credentials_are_never_shown() -> None:
    cache = ms.CacheInvalidation("redis://ann:secret@127.0.0.1:1/3?password=secret", keys=KEYS, name=None)
    assert cache.name == "cache:redis://127.0.0.1:1/3"


def test_a_cache_in_this_process(log: ms.Log) -> None:
    cached = OrderedDict.fromkeys(["user:1", "email:old", "email:new", "user:2", "other"], "cached")
    put(log, USERS, change("UPDATE", row(1, "old"), row(1, "new"), USERS))
    put(log, USERS, change("TRUNCATE", None, None, USERS))
    follow(log, ms.CacheInvalidation(cached, keys=KEYS))
    assert list(cached) == ["other"]


def test_keys_made_by_functions_and_caches_that_only_delete(log: ms.Log) -> None:
    deleted: list[str] = []

    class Memo:
        def delete(self, key: str) -> None:
            deleted.append(key)

    emptied: list[bool] = []
    put(log, USERS, change("UPDATE", row(1, "a@x"), row(1, "a@y"), USERS))
    put(log, USERS, change("TRUNCATE", None, None, USERS))
    by_domain = [lambda row: f"domain:{row['email'].partition('@')[2]}", lambda row: [f"a{row['id']}", f"b{row['id']}"]]
    follow(log, ms.CacheInvalidation(Memo(), keys=by_domain, on_truncate=lambda: emptied.append(True)))
    assert deleted == ["domain:x", "domain:y", "a1", "b1"]
    assert emptied == [True]


def test_a_value_that_was_not_told_is_that_of_the_row_before(log: ms.Log) -> None:
    cached = {"bio:b": 1, "user:1": 1, "email:a": 1}
    cache = ms.CacheInvalidation(cached, keys=[*KEYS, "bio:{bio}"])
    put(log, USERS, change("UPDATE", row(1, "a", "b"), row(1, "a", Unchanged), USERS))
    follow(log, cache)
    assert cached == {}
    # And when that was not told either, no key can be made.
    put(log, USERS, change("UPDATE", None, row(2, "a", Unchanged), USERS))
    followers = sync(log, "users", cache, start=False)
    followers.catch_up()
    assert "does not tell column 'bio'" in followers.parked()[0].error


def test_a_source_that_tells_only_the_key_of_the_row_before(log: ms.Log) -> None:
    cached = {"user:1": 1, "email:a": 1, "email:new": 1}
    put(log, USERS, change("UPDATE", {"id": 1}, row(1, "new"), USERS), change("DELETE", {"id": 2}, None, USERS))
    follow(log, ms.CacheInvalidation(cached, keys=KEYS))
    assert cached == {"email:a": 1}


def test_unusable_caches_and_templates_are_refused() -> None:
    for keys in ([], "user:{id}", ["user"], ["user:{}"], ["user:{id"], ["user:{id:>8}"], ["{id!r}"]):
        with pytest.raises(ms.UsageError):
            ms.CacheInvalidation({}, keys=keys)
    for cache in (7, "http://localhost", "cache"):
        with pytest.raises(ms.UsageError):
            ms.CacheInvalidation(cache, keys=KEYS)
    with pytest.raises(ms.UsageError, match="publish"):
        ms.CacheInvalidation({}, keys=KEYS, publish="stale")
