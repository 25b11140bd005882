"""Notifications: each change, signed, to an address on the web.

Headers, signature and secret are those of the Standard Webhooks specification, so that its libraries verify them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import msgspec

from ...errors import InvalidWebhook, Rejected, SinkError, SinkGone, SinkUnavailable, UsageError
from ...time import Duration, duration_micros
from ..change import Change
from ..debezium import debezium_events
from ..shape import shape_of
from ..values import encode_any, encode_row
from .base import RETRIES, Changes, SinkBase
from .http import Address, Client, require_httpx

if TYPE_CHECKING:
    from ...log import Recorded
    from ...storage.database import Database

Envelope = Literal["plain", "debezium"]

_GONE = 410
_encode = msgspec.json.Encoder().encode


class Webhook(SinkBase):
    """Posts changes to an address, in order, as JSON, signed; see the guide for what a receiver has to know.

    What is promised: each change is delivered at least once, in the order of its table. ``webhook-id`` is the same
    whenever a request is repeated (``stream:position``), so a receiver tells a repeat from a new one.

    What an answer means: 2xx, delivered; 408, 425, 429, 502, 503, 504, none in time or no connection, tried again for
    as long as it takes, after the pause that ``Retry-After`` asks for; 410, the follower ends with `SinkGone`; any
    other 4xx, the change is parked; other 5xx, tried again `retries` times, then parked. Redirects are not followed.

    Args:
        url: Where to post. It is never shown: errors and the name have its host alone.
        secret: What the receiver verifies with, ``whsec_`` and base64, or any text; several, while one takes the place
            of another; None to sign nothing.
        envelope: ``"plain"``, a change as it stands in the log with its position; or ``"debezium"``.
        size: How many changes go into a request. With more than one, the body is an array.
        headers: More headers, such as one for authorization.
        timeout: The longest time for a request.
        name: Names the follower; by default made of the host and a hash of the URL.
        retries: As in `SinkBase`.

    Raises:
        UsageError: The URL or the secret cannot be used.
        MissingExtra: The extra ``http`` is not installed.

    Example:
        >>> import millstream as ms
        >>> ms.Webhook("https://example.org/hooks/users", secret="whsec_c2VjcmV0", name="partner").name
        'partner'
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | Sequence[str] | None = None,
        envelope: Envelope = "plain",
        size: int = 1,
        headers: Mapping[str, str] | None = None,
        timeout: Duration | float = 10.0,
        name: str | None = None,
        retries: int | None = RETRIES,
    ) -> None:
        require_httpx()
        if envelope not in ("plain", "debezium"):
            raise UsageError(f"{envelope!r:.40} is no envelope", hint='Write "plain" or "debezium"')
        if size < 1:
            raise UsageError(f"size={size} is no number of changes", hint="Give 1 or more")
        self._address = Address(url)
        self._secrets = [_key(one) for one in _each(secret)] if secret is not None else []
        self._envelope = envelope
        self._headers = dict(headers or {})
        seconds = float(timeout) if isinstance(timeout, int | float) else duration_micros(timeout) / 1e6
        self._client = Client(self._address, seconds)
        self.size = size
        self.retries = retries
        self.name = name or f"webhook:{self._address.origin}#{hashlib.sha256(url.encode()).hexdigest()[:8]}"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def apply(self, changes: Changes, db: Database | None) -> None:
        """Post changes in one request."""
        bodies = [body for change, recorded in changes for body in self._bodies(change, recorded)]
        first, last = changes[0][1], changes[-1][1]
        # What is signed has dots between its parts, so that an id has none.
        id = f"{quote(first.stream, safe='').replace('.', '%2E')}:{first.position}"
        if self.size > 1:
            content = b"[" + b",".join(bodies) + b"]"
            self._post(f"{id}-{last.position}" if last is not first else id, content)
            return
        for number, body in enumerate(bodies):
            self._post(id if number == 0 else f"{id}:{number + 1}", body)

    def _bodies(self, change: Change, recorded: Recorded) -> list[bytes]:
        if self._envelope == "debezium":
            return [_encode(event) for event in debezium_events(recorded)]
        return [_encode(_plain(change, recorded))]

    def _post(self, id: str, body: bytes) -> None:
        now = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "user-agent": "millstream",
            **self._headers,
            "webhook-id": id,
            "webhook-timestamp": now,
        }
        if self._secrets:
            headers["webhook-signature"] = " ".join(_sign(key, id, now, body) for key in self._secrets)
        answer = self._client.send("POST", self._address.url, body, headers)
        status = answer.status_code
        if 200 <= status < 300:
            return
        said = f"{self._address.origin} answers {status}"
        if status == _GONE:
            raise SinkGone(
                f"{said}: it wants no more", hint="Remove this follower, or give the webhook its new address"
            )
        if 300 <= status < 400:
            raise SinkUnavailable(f"{said}, a redirect", hint="Give the webhook the address that it leads to")
        if status < 500:
            raise Rejected(f"{said}: {answer.text[:200]}")
        raise SinkError(f"{said}: {answer.text[:200]}", hint="Look into the receiver's log")


def verify_webhook(
    secret: str | Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance: Duration = "5m",
    now: float | None = None,
) -> str:
    """See that a request is a webhook signed with the secret, for whoever receives one.

    Args:
        secret: The secret that the sender signs with; or several, of which one must fit.
        headers: The request's headers, in any case.
        body: The request's body, byte for byte.
        tolerance: How far its time may be from now.
        now: The present, in seconds since 1970; by default the system's.

    Returns:
        Its id, which is the same when it is delivered again.

    Raises:
        InvalidWebhook: It is not, or it is too old.

    Example:
        >>> import millstream as ms
        >>> ms.verify_webhook("whsec_c2VjcmV0", {}, b"{}")
        Traceback (most recent call last):
        ...
        millstream.errors.InvalidWebhook: the request has no webhook-id...
    """
    given = {name.lower(): value for name, value in headers.items()}
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if name not in given:
            raise InvalidWebhook(f"the request has no {name}", hint="Refuse it with status 401")
    id, sent = given["webhook-id"], given["webhook-timestamp"]
    if not sent.isascii() or not sent.isdigit():
        raise InvalidWebhook("the time of the request is not understood", hint="Refuse it with status 401")
    away = abs((time.time() if now is None else now) - int(sent))
    if away > duration_micros(tolerance) / 1e6:
        raise InvalidWebhook(
            "the request was signed too long ago, or in the future",
            hint="Refuse it with status 401; if it is genuine, see to the clocks of both machines",
        )
    expected = [_sign(_key(one), id, sent, body).encode() for one in _each(secret)]
    signatures = given["webhook-signature"].encode().split()
    if not any(hmac.compare_digest(one, other) for one in expected for other in signatures):
        raise InvalidWebhook("the signature does not fit", hint="Refuse it with status 401")
    return id


def _plain(change: Change, recorded: Recorded) -> dict[str, Any]:
    shape = shape_of(recorded.run.schema)

    def row(values: dict[str, Any] | None) -> dict[str, Any] | None:
        if values is None:
            return None
        return encode_row(values, shape) if shape is not None else {n: encode_any(v) for n, v in values.items()}

    return {
        "position": recorded.position,
        "operation": change.operation,
        "table": change.table,
        "before": row(change.before),
        "after": row(change.after),
        "timestamp": change.timestamp,
    }


def _each(secret: str | Sequence[str]) -> list[str]:
    return [secret] if isinstance(secret, str) else list(secret)


def _key(secret: str) -> bytes:
    if not secret:
        raise UsageError("the secret is empty", hint="Give the one that the receiver knows")
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError as error:
        raise UsageError("what follows whsec_ in the secret is not base64", hint="Copy it as a whole") from error


def _sign(key: bytes, id: str, sent: str, body: bytes) -> str:
    digest = hmac.digest(key, b"%b.%b.%b" % (id.encode(), sent.encode(), body), "sha256")
    return "v1," + base64.b64encode(digest).decode()
