"""Depots: places that keep named bytes, a folder or an object store, for copies that leave the machine."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..errors import DepotError, DepotUnavailable, DiskFull, MissingExtra, UsageError

TIMEOUT = "20s"
"""How long an object store may take to answer one request."""
SCHEMES = ("s3", "gs", "az", "azure", "http", "https", "memory")
_SECRET = re.compile(r"//[^/@]*@")


class Depot(Protocol):
    """Keeps bytes by name. What `put` has returned is there for good, whole; names sort as text."""

    place: str
    """What it is called in messages."""

    def put(self, name: str, data: bytes) -> None:
        """Keep bytes under a name; what had it before is replaced, whole."""

    def get(self, name: str) -> bytes | None:
        """The bytes of a name, or None."""

    def list(self, after: str = "") -> Iterator[str]:
        """All names that sort after one, in order."""


def is_depot(place: str) -> bool:
    """Whether a place, as it is given, is a depot and not a log: an object store, or a folder."""
    scheme = place.partition("://")[0] if "://" in place else ""
    return scheme in (*SCHEMES, "file") or place.endswith("/") or os.path.isdir(place)


def open_depot(place: str) -> Depot:
    """The depot at a place.

    Args:
        place: ``s3://bucket/prefix`` (credentials, region and endpoint come from the environment, as ``AWS_…``),
            ``gs://…``, ``az://…``, or the path of a folder.

    Raises:
        MissingExtra: An object store, and obstore is not installed.
        UsageError: It cannot be understood.
    """
    if "://" not in place:
        return Folder(place)
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Folder(parts.path)
    if "@" in parts.netloc:
        raise UsageError("an address with credentials in it would be shown to others", hint="Give them in AWS_…")
    return Objects(place)


class Folder:
    """A folder on a disk."""

    def __init__(self, path: str) -> None:
        self.place = path
        self._path = os.path.abspath(path)
        with _told(self.place):
            os.makedirs(self._path, exist_ok=True)

    def put(self, name: str, data: bytes) -> None:
        target = os.path.join(self._path, name)
        partial = f"{target}.{uuid.uuid4().hex[:12]}.part"
        with _told(self.place):
            try:
                with open(partial, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, target)
            finally:
                if os.path.exists(partial):
                    os.remove(partial)
            folder = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def get(self, name: str) -> bytes | None:
        with _told(self.place):
            try:
                with open(os.path.join(self._path, name), "rb") as file:
                    return file.read()
            except FileNotFoundError:
                return None

    def list(self, after: str = "") -> Iterator[str]:
        with _told(self.place):
            names = sorted(entry.name for entry in os.scandir(self._path) if entry.is_file())
        return (name for name in names if name > after and not name.endswith(".part"))


@contextmanager
def _told(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (28, 122):  # no space, quota
            raise DiskFull(place) from error
        raise DepotError(place, error.strerror or str(error), hint="Check the folder and its permissions") from error


class Objects:
    """A prefix in an object store, through obstore. Messages never repeat what the store said: it may hold secrets."""

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore import exceptions, store
        except ImportError as error:
            raise MissingExtra("objects", "obstore") from error
        self._api: Any = obstore
        self._errors: Any = exceptions
        self.place = url.rstrip("/")
        options: Any = {"timeout": TIMEOUT, "connect_timeout": "5s"}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        if endpoint.startswith("http://"):
            options["allow_http"] = True
        retry: Any = {"max_retries": 2}
        with self._told():
            self._store: Any = store.from_url(self.place, client_options=options, retry_config=retry)

    def put(self, name: str, data: bytes) -> None:
        with self._told():
            self._api.put(self._store, name, data)

    def get(self, name: str) -> bytes | None:
        with self._told():
            try:
                return bytes(self._api.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def list(self, after: str = "") -> Iterator[str]:
        # Object stores list by name, but not all of them promise it.
        with self._told():
            found = [meta["path"] for some in self._api.list(self._store, offset=after or None) for meta in some]
        return iter(sorted(name for name in found if name > after and "/" not in name))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, self._errors.NotFoundError) as error:
            raise DepotError(self.place, "there is no such bucket") from error
        except (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError, PermissionError) as error:
            raise DepotError(self.place, "it refuses access", hint="Check the credentials and their rights") from error
        except (self._errors.UnknownConfigurationKeyError, self._errors.InvalidPathError, ValueError) as error:
            raise DepotError(self.place, "the address or the settings are wrong") from error
        except (self._errors.BaseError, OSError, TimeoutError) as error:
            raise DepotUnavailable(self.place, f"it does not answer ({type(error).__name__})") from error
