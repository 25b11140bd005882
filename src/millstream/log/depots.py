"""Depots: where files are kept by name, a folder or an object store. Archives are in them, and copies off the machine.

A depot is given by its address, which is shown and kept, so that it never holds credentials: those come from the
environment. Errors are told in words of our own, for a driver's may hold secrets.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from ..errors import (
    DepotError,
    DepotFileMissing,
    DepotUnavailable,
    DiskFull,
    InvalidDepot,
    MissingExtra,
    StorageError,
)
from ..time import now_micros
from .files import make_folder, sync_folder, whole

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
TIMEOUT = 30.0
"""How long an object store may take to answer a request, in seconds, unless told otherwise."""

_ACCOUNT = ("abfs", "abfss")
"""Schemes in which what stands before an ``@`` is no secret but the name of a container."""
_CONNECT = 10.0
_RETRIES = 2
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")
"""How object stores say that it is not the file that is missing."""
_STATUS = re.compile(r"status code: (\d{3})")
_DENIED = ("PermissionDeniedError", "UnauthenticatedError")
_WRONG = ("UnknownConfigurationKeyError", "InvalidPathError", "NotSupportedError", "ValueError")
_PASSING = (408, 425, 429)
"""What a store answers to a request that it may take later, other than that it has failed itself (500 and up)."""
_ENVIRONMENT = "Give credentials in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class Entry(msgspec.Struct, frozen=True):
    """A file in a depot."""

    name: str
    size: int
    """In bytes."""
    age: float
    """Seconds since it was written."""


class Depot(Protocol):
    """Keeps files by name. Names are relative, with ``/`` between their parts.

    Every method raises `DepotUnavailable` if it does not answer, so that the same may succeed later, and `DepotError`
    if it refuses.
    """

    location: str
    """Its address, as `check_location` gives it."""

    def put(self, name: str, content: bytes | Path) -> None:
        """Keep bytes, or what is in a file: there whole and for good when this returns, else as it was before.

        Raises:
            DiskFull: There is no room for it.
        """

    def get(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            DepotFileMissing: There is none of that name.
        """

    def local(self, name: str) -> Path | None:
        """Where a file lies on this machine, not to be changed there; None if it is not on this machine.

        Raises:
            DepotFileMissing: There is none of that name.
        """

    def list(self, folder: str = "", *, after: str = "") -> Iterator[Entry]:
        """The files in a folder of it and below, in order of their names, those that sort after a name.

        Also what a `put` that was killed has left: names that end in ``.part``.
        """

    def delete(self, name: str) -> None:
        """Delete a file; none is no fault."""


def is_depot(place: str) -> bool:
    """Whether a place, as it is given, is a depot and not a log: an object store, or a folder."""
    scheme = place.partition("://")[0] if "://" in place else ""
    return scheme in (*SCHEMES, "file") or place.endswith("/") or os.path.isdir(place)


def check_location(location: object) -> str:
    """The address of a depot in the one form that is kept: an absolute path, or a URL.

    Raises:
        InvalidDepot: It is neither, or it holds credentials or options.
    """
    if isinstance(location, os.PathLike):
        location = os.fspath(location)
    if not isinstance(location, str) or not location or not location.isprintable():
        raise InvalidDepot(
            f"{location!r:.60} is not the address of a depot", hint="Give a folder, or a URL such as s3://bucket/prefix"
        )
    if "://" not in location:
        return os.path.abspath(location)
    try:
        url = urlsplit(location)
    except ValueError:
        url = urlsplit("")
    # From here on nothing of the text is repeated: it may hold a secret.
    if url.scheme == "file" and not url.netloc and url.path:
        return os.path.abspath(url.path)
    if url.scheme not in SCHEMES or not url.netloc.rpartition("@")[2]:
        raise InvalidDepot(
            "the URL is not the address of a depot",
            hint=f"Give a folder, or a URL that begins with {', '.join(SCHEMES)} and names a bucket",
        )
    if (url.scheme not in _ACCOUNT and "@" in url.netloc) or ":" in url.netloc or url.query or url.fragment:
        raise InvalidDepot(
            "the address of a depot is kept and shown, so that it must hold no credentials or options",
            hint=_ENVIRONMENT,
        )
    return location.rstrip("/")


def open_depot(location: str, *, timeout: float = TIMEOUT) -> Depot:
    """The depot at an address.

    Args:
        location: ``s3://bucket/prefix`` (credentials, region and endpoint come from the environment, as ``AWS_…``),
            ``gs://…``, ``az://…``, or the path of a folder, which its first `Depot.put` makes.
        timeout: How long an object store may take to answer a request, in seconds.

    Raises:
        MissingExtra: An object store, and obstore is not installed.
        InvalidDepot: The address cannot be used.
    """
    location = check_location(location)
    return Objects(location, timeout) if "://" in location else Folder(location)


class Folder:
    """A folder of this machine."""

    def __init__(self, path: str) -> None:
        self.location = path
        self._root = path
        self._made = False

    def put(self, name: str, content: bytes | Path) -> None:
        with self._told():
            folders = self._folders(name)
            with whole(os.path.join(self._root, name)) as partial, open(partial, "wb") as out:
                if isinstance(content, bytes):
                    out.write(content)
                else:
                    with open(content, "rb") as source:
                        shutil.copyfileobj(source, out, 1 << 20)
            for folder in folders:
                sync_folder(folder)

    def _folders(self, name: str) -> list[str]:
        """The folders above that of a file, up to the root; all of them are made if they are not there."""
        if not self._made:
            # Once, not with each put: a disk that has gone is a fault, and no reason to begin anew beneath it.
            make_folder(self._root)
            self._made = True
        folders = [self._root]
        for part in name.split("/")[:-1]:
            folders.append(os.path.join(folders[-1], part))
            with suppress(FileExistsError):
                os.mkdir(folders[-1])
        return folders[:-1]

    def get(self, name: str) -> bytes:
        with self._told():
            try:
                with open(os.path.join(self._root, name), "rb") as file:
                    return file.read()
            except FileNotFoundError as error:
                raise DepotFileMissing(self.location, name) from error

    def local(self, name: str) -> Path:
        path = Path(self._root, name)
        with self._told():
            if not path.is_file():
                raise DepotFileMissing(self.location, name)
        return path

    def list(self, folder: str = "", *, after: str = "") -> Iterator[Entry]:
        with self._told():
            names = sorted(name for name in self._names(os.path.join(self._root, folder)) if name > after)
        now = now_micros() / 1e6
        for name in names:
            with self._told():
                try:
                    stat = os.stat(os.path.join(self._root, name))
                except FileNotFoundError:  # deleted meanwhile
                    continue
            yield Entry(name, stat.st_size, max(now - stat.st_mtime, 0.0))

    def _names(self, folder: str) -> Iterator[str]:
        with suppress(FileNotFoundError):  # a folder without files need not be there
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._names(entry.path)
                elif entry.is_file():
                    yield os.path.relpath(entry.path, self._root)

    def delete(self, name: str) -> None:
        with self._told(), suppress(FileNotFoundError):
            os.remove(os.path.join(self._root, name))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(self.location) from error
            reason = error.strerror or type(error).__name__
            raise DepotError(self.location, reason, hint="Check the folder and its permissions") from error


class Objects:
    """A prefix in a bucket of an object store, through obstore.

    Plain HTTP is spoken to an endpoint that is given as ``http://…`` (AWS_ENDPOINT_URL), unless AWS_ALLOW_HTTP is
    ``false``; and wherever that is ``true``.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        self.location = url
        self._timeout = timeout
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtra("objects", "obstore") from error
        self._api: Any = obstore
        self._failures: tuple[type[Exception], ...] = (BaseError, OSError, ValueError)
        options: dict[str, Any] = {
            "timeout": f"{max(round(timeout * 1000), 1)}ms",
            "connect_timeout": f"{max(round(min(timeout, _CONNECT) * 1000), 1)}ms",
            "allow_http": _plain_http(),
        }
        retries: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=timeout)}
        try:
            self._store: Any = cast(Any, from_url)(url, client_options=options, retry_config=retries)
        except self._failures as error:
            raise DepotError(
                url, "the settings are wrong", hint="Check the address, and the options in the environment"
            ) from error

    def put(self, name: str, content: bytes | Path) -> None:
        with self._told():
            self._api.put(self._store, name, content)

    def get(self, name: str) -> bytes:
        with self._told(name):
            return bytes(self._api.get(self._store, name).bytes())

    def local(self, name: str) -> None:
        return None

    def list(self, folder: str = "", *, after: str = "") -> Iterator[Entry]:
        now = now_micros() / 1e6
        # Object stores list by name, but not all of them promise it.
        with self._told():
            pages = self._api.list(self._store, folder or None, offset=after or None)
            found = sorted((item for page in pages for item in page), key=lambda item: item["path"])
        for item in found:
            if item["path"] > after:
                yield Entry(item["path"], item["size"], max(now - item["last_modified"].timestamp(), 0.0))

    def delete(self, name: str) -> None:
        with suppress(DepotFileMissing), self._told(name):
            self._api.delete(self._store, name)

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """Failures of the driver as errors of the library.

        Args:
            name: The file that is asked for, if it is one.
        """
        try:
            yield
        except self._failures as error:
            raise self._error(error, name) from error

    def _error(self, error: Exception, name: str) -> StorageError:
        place, kind, text = self.location, type(error).__name__, str(error)
        # The driver has classes for some of what a store answers, and for some requests only.
        found = _STATUS.search(text)
        status = int(found[1]) if found else 0
        if any(mark in text for mark in _NO_BUCKET):
            return DepotError(place, "there is no such bucket", hint="Create the bucket, or correct the address")
        if isinstance(error, FileNotFoundError) or kind == "NotFoundError" or status == 404:
            return DepotFileMissing(place, name) if name else DepotError(place, "there is no such place")
        if isinstance(error, PermissionError) or kind in _DENIED or status in (401, 403):
            hint = "Check the credentials in the environment and what they may do"
            return DepotError(place, "it refuses the credentials", hint=hint)
        if "BareRedirect" in text:
            return DepotError(place, "it is in another region", hint="Set AWS_REGION to the region of the bucket")
        if "BadScheme" in text:
            hint = "Give an https:// endpoint, or set AWS_ALLOW_HTTP=true if plain HTTP is meant"
            return DepotError(place, "its endpoint is plain HTTP", hint=hint)
        if kind in _WRONG or (400 <= status < 500 and status not in _PASSING):
            hint = "Check the address, and the options in the environment"
            return DepotError(place, f"it does not take the request ({status or kind})", hint=hint)
        if "TimedOut" in text or "Timeout" in text or isinstance(error, TimeoutError):
            hint = "Try again later; for archives, log.archives.timeout allows more time"
            return DepotUnavailable(place, f"it did not answer within {self._timeout:g} s", hint=hint)
        if "kind: Connect" in text:
            hint = "Check the network, and AWS_ENDPOINT_URL if the store is not Amazon's"
            return DepotUnavailable(place, "no connection can be made", hint=hint)
        hint = "Try again later; check the credentials and options in the environment"
        return DepotUnavailable(place, f"it fails ({status or kind})", hint=hint)


def _plain_http() -> bool:
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower()
    if allowed:
        return allowed in ("1", "true", "yes")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return endpoint.startswith("http://")
