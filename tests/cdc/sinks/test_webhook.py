"""Webhooks arrive in order, signed; what their receiver answers decides what comes next."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

import millstream as ms
from millstream.cdc import sync

from ..following import NOON, change, put, shape, until
from .endpoints import Receiver

USERS = shape(("id", "int"), ("email", "text"))
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def insert(id: int, email: str = "a") -> ms.Change:
    return change("INSERT", None, {"id": id, "email": email}, USERS)


def follow(log: ms.Log, hook: ms.Webhook) -> Any:
    followers = sync(log, "users", hook, start=False)
    followers.catch_up()
    return followers


def test_each_change_is_posted_in_order_with_its_position(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1, "naïve 漢"), change("DELETE", {"id": 1, "email": "b"}, None, USERS))
    follow(log, ms.Webhook(receiver.url))
    assert receiver.delivered == [
        {
            "position": 1, "operation": "INSERT", "table": "users", "before": None,
            "after": {"id": 1, "email": "naïve 漢"}, "timestamp": "2024-01-15T12:00:00Z",
        },
        {
            "position": 2, "operation": "DELETE", "table": "users", "before": {"id": 1, "email": "b"},
            "after": None, "timestamp": "2024-01-15T12:00:00Z",
        },
    ]  # fmt: skip
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == ["users:1", "users:2"]
    assert "webhook-signature" not in receiver.requests[0][0]


def test_the_signature_is_that_of_the_standard_webhooks_specification(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1))
    follow(log, ms.Webhook(receiver.url, secret=SECRET, headers={"Authorization": "Bearer x"}))
    headers, body = receiver.requests[0]
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["Authorization"] == "Bearer x"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert ms.verify_webhook(SECRET, headers, body) == "users:1"


def test_the_specifications_own_example_verifies() -> None:
    headers = {
        "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "Webhook-Timestamp": "1614265330",
        "Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    body = b'{"test": 2432232314}'
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert ms.verify_webhook(secret, headers, body, now=1614265330) == headers["Webhook-Id"]


def test_what_is_forged_stale_or_incomplete_is_refused(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1))
    follow(log, ms.Webhook(receiver.url, secret=[SECRET, "an older one"]))
    headers, body = receiver.requests[0]
    assert ms.verify_webhook("an older one", headers, body)
    assert ms.verify_webhook(["the newest", SECRET], headers, body)
    now = int(headers["webhook-timestamp"])
    for secret, changes, content, at in (
        ("another", {}, body, now),
        (SECRET, {}, body + b" ", now),
        (SECRET, {"webhook-id": "users:2"}, body, now),
        (SECRET, {"webhook-timestamp": str(now + 1)}, body, now),
        (SECRET, {"webhook-timestamp": "soon"}, body, now),
        (SECRET, {"webhook-signature": ""}, body, now),
        (SECRET, {"webhook-signature": "v1,ä"}, body, now),
        (SECRET, {}, body, now + 301),
        (SECRET, {}, body, now - 301),
    ):
        with pytest.raises(ms.InvalidWebhook):
            ms.verify_webhook(secret, {**headers, **changes}, content, now=at)
    with pytest.raises(ms.InvalidWebhook, match="no webhook-signature"):
        ms.verify_webhook(SECRET, {"webhook-id": "x", "webhook-timestamp": "1"}, body)
    assert ms.verify_webhook(SECRET, headers, body, now=now + 3_000, tolerance="1h")


def test_several_changes_go_in_one_request(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, *(insert(i) for i in range(5)))
    follow(log, ms.Webhook(receiver.url, size=2))
    assert [[c["after"]["id"] for c in body] for body in receiver.delivered] == [[0, 1], [2, 3], [4]]
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == ["users:1-2", "users:3-4", "users:5"]


def test_debeziums_envelope_tells_a_change_of_the_key_as_two(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, change("UPDATE", {"id": 1, "email": "a"}, {"id": 2, "email": "a"}, USERS))
    follow(log, ms.Webhook(receiver.url, envelope="debezium"))
    assert [(body["op"], body["before"], body["after"]) for body in receiver.delivered] == [
        ("d", {"id": 1, "email": "a"}, None),
        ("c", None, {"id": 2, "email": "a"}),
    ]
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == ["users:1", "users:1:2"]


def test_an_overloaded_receiver_is_asked_again_and_nothing_is_parked(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1))
    receiver.answers = [(status, {"retry-after": "0"}, b"") for status in (429, 503, 408, 425, 502, 504)]
    followers = sync(log, "users", ms.Webhook(receiver.url, retries=0), start=False)
    for _ in range(6):
        with pytest.raises(ms.SinkUnavailable):
            followers.catch_up()
    followers.catch_up()
    assert followers.parked() == []
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == ["users:1"]


def test_retry_after_is_believed(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1))
    receiver.answers = [(429, {"retry-after": "17"}, b""), (503, {"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}, b"")]
    followers = sync(log, "users", ms.Webhook(receiver.url), start=False)
    with pytest.raises(ms.SinkUnavailable) as failed:
        followers.catch_up()
    assert failed.value.after == 17
    with pytest.raises(ms.SinkUnavailable) as failed:
        followers.catch_up()
    assert failed.value.after > 1e9  # type: ignore[operator]


def test_what_is_refused_is_parked_and_what_the_receiver_fails_at_is_tried_again(
    log: ms.Log, receiver: Receiver
) -> None:
    put(log, USERS, *(insert(i, e) for i, e in enumerate(("ok", "refused", "fails", "ok"))))
    receiver.refuse = lambda body: 422 if b"refused" in body else 500 if b"fails" in body else None
    followers = sync(log, "users", ms.Webhook(receiver.url, retries=1), start=False)
    with pytest.raises(ms.SinkError, match="500"):
        followers.catch_up()
    followers.catch_up()
    assert [(p.position, p.attempts) for p in followers.parked()] == [(2, 1), (3, 2)]
    assert [body["position"] for body in receiver.delivered] == [1, 4]
    receiver.refuse = lambda body: None
    followers.retry()
    followers.catch_up()
    assert [body["position"] for body in receiver.delivered] == [1, 4, 2, 3]


def test_a_receiver_that_is_gone_ends_the_follower(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1))
    receiver.answers = [(410, {}, b"")]
    followers = sync(log, "users", ms.Webhook(receiver.url))
    until(lambda: followers.errors)
    with pytest.raises(ms.SinkGone):
        followers.stop()
    assert receiver.requests == []


def test_redirects_are_not_followed(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1))
    receiver.answers = [(302, {"location": "http://127.0.0.1:1/"}, b"")]
    with pytest.raises(ms.SinkUnavailable, match="redirect"):
        follow(log, ms.Webhook(receiver.url))


def test_a_receiver_that_hangs_or_refuses_connections_holds_up_no_other_sink(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hangs = ms.Webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.2, name="hangs")
        closed = ms.Webhook("http://127.0.0.1:1/", name="closed")
        with sync(log, "users", hangs, closed, ms.Webhook(receiver.url, name="fine")) as followers:
            until(lambda: receiver.requests and {"hangs", "closed"} <= followers.errors.keys())
            assert "does not answer within" in str(followers.errors["hangs"])
            assert "cannot be reached" in str(followers.errors["closed"])
        assert followers.parked() == []


def test_neither_names_nor_errors_show_the_address(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1))
    url = receiver.url.replace("//", "//zoe:pass@") + "?token=abc"
    hook = ms.Webhook(url)
    other = ms.Webhook(url + "d")
    assert hook.name != other.name
    for text in (hook.name, str(_failure(log, ms.Webhook("http://zoe:pass@127.0.0.1:1/secret-path?token=abc")))):
        assert not any(secret in text for secret in ("secret-path", "zoe", "pass", "token"))


def _failure(log: ms.Log, hook: ms.Webhook) -> Exception:
    with pytest.raises(ms.SinkUnavailable) as failed:
        follow(log, hook)
    return failed.value


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ms.UsageError):
        ms.Webhook("ftp://example.org/")
    with pytest.raises(ms.UsageError):
        ms.Webhook("http://:0:0/")
    with pytest.raises(ms.UsageError, match="base64"):
        ms.Webhook("http://localhost/", secret="whsec_%%")
    with pytest.raises(ms.UsageError, match="envelope"):
        ms.Webhook("http://localhost/", envelope="avro")  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="size"):
        ms.Webhook("http://localhost/", size=0)


def test_huge_values_arrive(log: ms.Log, receiver: Receiver) -> None:
    put(log, USERS, insert(1, "x" * 8_000_000))
    follow(log, ms.Webhook(receiver.url, secret=SECRET))
    headers, body = receiver.requests[0]
    assert len(json.loads(body)["after"]["email"]) == 8_000_000
    assert ms.verify_webhook(SECRET, headers, body)
    assert NOON.year == 2024
