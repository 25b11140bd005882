"""HTTP as sinks use it: one client, and what an answer, or none, means for the changes that were sent."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ...errors import MissingExtra, SinkUnavailable, UsageError

if TYPE_CHECKING:
    import httpx

AGAIN = frozenset({408, 425, 429, 502, 503, 504})
"""Answers that say: not now."""


class Address:
    """Where to send to, with the credentials apart.

    Attributes:
        url: The URL without credentials.
        origin: Scheme and host: all that is shown, since paths and queries of such URLs often hold secrets.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError as error:
            raise UsageError("the URL is not understood", hint="Write https://host/path") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("the URL is not understood", hint="Write https://host/path")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.origin = f"{parts.scheme}://{host}{port}"
        self.url = urlunsplit((parts.scheme, host + port, parts.path, parts.query, ""))
        self.auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None


class Client:
    """Sends requests to one address. Its connections are kept open between them."""

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._client: httpx.Client | None = None

    def send(self, method: str, url: str, content: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        """The answer to a request.

        Raises:
            SinkUnavailable: There is none, or it says to come again later.
        """
        httpx = _httpx()
        if self._client is None:
            self._client = httpx.Client(timeout=self.timeout, auth=self.address.auth, follow_redirects=False)
        origin = self.address.origin
        try:
            answer = self._client.request(method, url, content=content, headers=headers)
        except httpx.TimeoutException as error:
            raise SinkUnavailable(f"{origin} does not answer within {self.timeout:g} seconds") from error
        except httpx.HTTPError as error:
            raise SinkUnavailable(f"{origin} cannot be reached ({type(error).__name__})") from error
        if answer.status_code in AGAIN:
            raise SinkUnavailable(f"{origin} answers {answer.status_code}", after=_retry_after(answer.headers))
        return answer

    def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            self._client.close()
            self._client = None


def require_httpx() -> None:
    """See that the extra is there.

    Raises:
        MissingExtra: It is not.
    """
    _httpx()


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingExtra("http", "httpx") from error
    return httpx


def _retry_after(headers: Any) -> float | None:
    text = headers.get("retry-after", "")
    if text.isdigit():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return None
