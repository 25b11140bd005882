"""Cache invalidation: keys that a changed row had, or has now, are deleted."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import msgspec

from ...errors import MissingExtra, Rejected, SinkError, SinkUnavailable, UsageError
from ..change import Change, Row
from ..values import Unchanged
from .base import RETRIES, Changes, SinkBase

if TYPE_CHECKING:
    from ...storage.database import Database

Template = str | Callable[[Row], str | Iterable[str] | None]
"""How a row's key in the cache is made: ``"user:{id}"``, or a function of the row that gives one, several or none."""


class Cache(Protocol):
    """What keys are deleted from."""

    location: str

    def delete(self, keys: Sequence[str]) -> None:
        """Delete some keys; those that are not there do not matter."""

    def clear(self, patterns: Sequence[str] | None) -> None:
        """Delete the keys that fit patterns of ``*``; all, for None."""

    def publish(self, channel: str, message: str) -> None:
        """Tell subscribers."""

    def close(self) -> None:
        """Disconnect."""


class CacheInvalidation(SinkBase):
    """Deletes from a cache what a change has made stale.

    For each change, the keys of the row before and of the row after are deleted, many in one round trip. A change that
    comes again deletes what is not there: that does no harm, and so nothing here needs an order. A TRUNCATE deletes all
    keys that the templates can make.

    The row before must be known to delete a key that is made of a column that changes: of PostgreSQL, that takes
    ``REPLICA IDENTITY FULL``, or keys made of the primary key alone.

    Args:
        cache: ``redis://host:6379/0`` (also ``rediss://``, ``unix://``; Redis or Valkey, extra ``redis``); or an object
            in this process: a dictionary, or something else with ``pop(key, None)`` or ``delete(key)``.
        keys: The templates. Columns stand in braces; a template of which a column is NULL makes no key. A function is
            given the row.
        publish: A channel of Redis on which the deleted keys are told, for caches within other processes: a JSON
            object with the table and the keys.
        on_truncate: What to do instead when a table is emptied. Needed if a key is made by a function and the cache
            cannot be cleared.
        name: Names the follower; by default made of where the cache is.
        retries: As in `SinkBase`.

    Raises:
        UsageError: The cache or a template cannot be used.

    Example:
        >>> import millstream as ms
        >>> cached = {"user:1": "Ann", "user:2": "Bob"}
        >>> ms.CacheInvalidation(cached, keys=["user:{id}"], name="cache").name
        'cache'
    """

    ordered = False

    def __init__(
        self,
        cache: str | MutableMapping[Any, Any] | object,
        *,
        keys: Sequence[Template],
        publish: str | None = None,
        on_truncate: Callable[[], object] | None = None,
        name: str | None = None,
        size: int = 1_000,
        retries: int | None = RETRIES,
    ) -> None:
        if isinstance(keys, str) or not keys:
            raise UsageError("keys= is no list of templates", hint='Write keys=["user:{id}"]')
        self._templates = [_Template(key) if isinstance(key, str) else key for key in keys]
        self._cache: Cache = _RedisCache(cache) if isinstance(cache, str) else _LocalCache(cache)
        if publish is not None and not isinstance(cache, str):
            raise UsageError("publish= needs a server", hint="Give the URL of a Redis as the cache")
        self._publish = publish
        self._on_truncate = on_truncate
        self.name = name or f"cache:{self._cache.location}"
        self.size = size
        self.retries = retries

    def close(self) -> None:
        """Disconnect."""
        self._cache.close()

    def apply(self, changes: Changes, db: Database | None) -> None:
        """Delete the keys of changes."""
        keys: dict[str, None] = {}
        for change, _ in changes:
            if change.operation == "TRUNCATE":
                self._truncate()
            else:
                keys.update(dict.fromkeys(self._keys(change)))
        if keys:
            self._cache.delete(list(keys))
            if self._publish is not None:
                told = {"table": changes[0][0].table, "keys": list(keys)}
                self._cache.publish(self._publish, msgspec.json.encode(told).decode())

    def _keys(self, change: Change) -> Iterable[str]:
        before, after = change.before, change.after
        if after is not None and before is not None:
            after = {name: before.get(name, v) if v is Unchanged else v for name, v in after.items()}
        for template in self._templates:
            if before is not None and (isinstance(template, _Template) and not template.told(before)):
                yield from self._render(template, after)  # a source that tells only the key of the row before
                continue
            yield from self._render(template, before)
            yield from self._render(template, after)

    def _render(self, template: _Template | Callable[[Row], Any], row: Row | None) -> Iterable[str]:
        if row is None:
            return ()
        made = template(row)
        return () if made is None else (made,) if isinstance(made, str) else made

    def _truncate(self) -> None:
        if self._on_truncate is not None:
            self._on_truncate()
            return
        patterns = [t.pattern for t in self._templates if isinstance(t, _Template)]
        self._cache.clear(patterns if len(patterns) == len(self._templates) else None)
        if self._publish is not None:
            self._cache.publish(self._publish, msgspec.json.encode({"patterns": patterns}).decode())


class _Template:
    """A key with columns in braces."""

    def __init__(self, text: str) -> None:
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UsageError(f"template {text!r:.80} is not understood: {error}", hint='Write "user:{id}"') from error
        self.text = text
        self.columns = [name for _, name, _, _ in parsed if name is not None]
        if not self.columns or any(name == "" or form or turned for _, name, form, turned in parsed):
            raise UsageError(f"template {text!r:.80} names no column", hint='Write "user:{id}"')
        self._parts = [(literal, name) for literal, name, _, _ in parsed]

    @property
    def pattern(self) -> str:
        """All keys that it can make."""
        return "".join(_escaped(literal) + ("*" if name is not None else "") for literal, name in self._parts)

    def told(self, row: Row) -> bool:
        """Whether a row has all columns of it."""
        return all(row.get(name, Unchanged) is not Unchanged for name in self.columns)

    def __call__(self, row: Row) -> str | None:
        found = []
        for literal, name in self._parts:
            found.append(literal)
            if name is None:
                continue
            value = row.get(name, Unchanged)
            if value is None:
                return None
            if value is Unchanged:
                raise Rejected(f"the change does not tell column {name!r}, which key {self.text!r} is made of")
            found.append(value.decode(errors="replace") if isinstance(value, bytes) else str(value))
        return "".join(found)


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


class _LocalCache:
    """An object of this process."""

    def __init__(self, cache: Any) -> None:
        if not hasattr(cache, "pop") and not hasattr(cache, "delete"):
            raise UsageError(
                f"{type(cache).__name__} is no cache that can be invalidated",
                hint="Give a dictionary, an object with pop(key, None) or delete(key), or the URL of a Redis",
            )
        self._cache = cache
        self.location = type(cache).__name__

    def delete(self, keys: Sequence[str]) -> None:
        """Take each out."""
        for key in keys:
            if hasattr(self._cache, "pop"):
                self._cache.pop(key, None)
            else:
                self._cache.delete(key)

    def clear(self, patterns: Sequence[str] | None) -> None:
        """Take out what fits, if its keys can be listed; or all."""
        if patterns is not None and isinstance(self._cache, MutableMapping):
            for key in [key for key in list(self._cache) if isinstance(key, str)]:
                if any(fnmatchcase(key, pattern) for pattern in patterns):
                    self._cache.pop(key, None)
        elif hasattr(self._cache, "clear"):
            self._cache.clear()
        else:
            raise Rejected("the table was emptied, and the cache cannot be; give on_truncate=")

    def publish(self, channel: str, message: str) -> None:
        """Nobody else is here."""

    def close(self) -> None:
        """Nothing to close."""


class _RedisCache:
    """A server of Redis or Valkey."""

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in ("redis", "rediss", "unix", "valkey", "valkeys"):
            raise UsageError("the URL of the cache is not understood", hint="Write redis://host:6379/0")
        try:
            import redis
        except ImportError as error:
            raise MissingExtra("redis", "redis") from error
        parts = urlsplit(url.replace("valkey", "redis", 1) if url.startswith("valkey") else url)
        self._redis = redis
        self._url = parts.geturl()
        port = f":{parts.port}" if parts.port else ""
        self.location = f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The connection."""
        if self._client is None:
            self._client = self._redis.Redis.from_url(
                self._url, socket_timeout=10, socket_connect_timeout=10, retry=None, decode_responses=True
            )
        return self._client

    def delete(self, keys: Sequence[str]) -> None:
        """One round trip."""
        with self._faults():
            self.client.unlink(*keys)

    def clear(self, patterns: Sequence[str] | None) -> None:
        """Look for what fits, and delete it page by page, without holding up the server."""
        if patterns is None:
            raise Rejected("the table was emptied, and the keys are made by functions; give on_truncate=")
        with self._faults():
            for pattern in patterns:
                found: list[str] = []
                for key in self.client.scan_iter(match=pattern, count=1_000):
                    found.append(key)
                    if len(found) >= 1_000:
                        self.client.unlink(*found)
                        found = []
                if found:
                    self.client.unlink(*found)

    def publish(self, channel: str, message: str) -> None:
        """Tell subscribers."""
        with self._faults():
            self.client.publish(channel, message)

    def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _faults(self) -> _Faults:
        return _Faults(self._redis, self.location)


class _Faults:
    """Turns the driver's exceptions raised inside into typed ones."""

    def __init__(self, redis: Any, location: str) -> None:
        self._redis = redis
        self._location = location

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        redis = self._redis
        away = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ReadOnlyError)
        if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
            raise UsageError(f"{self._location} refuses these credentials", hint="Check the URL's") from error
        if isinstance(error, away):
            raise SinkUnavailable(f"{self._location} does not answer ({type(error).__name__})") from error
        if isinstance(error, redis.RedisError):
            raise SinkError(f"{self._location}: {error}", hint="Look into the server's log") from error
