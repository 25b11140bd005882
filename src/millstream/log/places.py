"""Where archives are: a folder, or a bucket of an object store. Files appear in them whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from ..errors import ArchiveFileMissing, ArchiveUnreachable, InvalidArchive, MissingExtra, StorageError
from ..time import now_micros

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
_RETRIES = 2
_KEPT_BYTES = 1_000_000_000
"""How much of what was fetched is kept on disk until the log is closed."""


class Entry(msgspec.Struct, frozen=True):
    """A file in a place."""

    name: str
    size: int
    age: float
    """Seconds since it was written."""


class Place(Protocol):
    """Where an archive is. Names are relative, with ``/`` between their parts."""

    location: str

    def put(self, name: str, source: Path) -> None:
        """Put a file there: whole and durable when this returns, or not at all."""

    def fetch(self, name: str) -> Path:
        """A local file with the content of one that is there. It is not to be changed.

        Raises:
            ArchiveFileMissing: It is not there.
        """

    def list(self, prefix: str) -> Iterator[Entry]:
        """The files in a folder of the place and below it."""

    def delete(self, name: str) -> None:
        """Delete a file; none is no fault."""

    def close(self) -> None:
        """Let go of what was fetched."""


def check_location(location: object) -> str:
    """A location in the form in which the log keeps it: an absolute path, or a URL without credentials.

    Raises:
        InvalidArchive: It is something else.
    """
    if isinstance(location, os.PathLike):
        location = os.fspath(location)
    if not isinstance(location, str) or not location or not location.isprintable():
        raise InvalidArchive(
            f"{location!r:.60} is not a place for an archive", hint="Give a folder, or a URL such as s3://bucket/prefix"
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
        raise InvalidArchive(
            "the URL is not a place for an archive",
            hint=f"Give a folder, or a URL that begins with {', '.join(SCHEMES)} and names a bucket",
        )
    if (url.scheme != "abfs" and url.scheme != "abfss" and "@" in url.netloc) or url.query or url.fragment:
        raise InvalidArchive(
            "the URL of an archive is kept in the log, so that it must hold no credentials or options",
            hint="Give credentials in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return location.rstrip("/")


def place_of(location: str, timeout: float) -> Place:
    """The place at a location that `check_location` has checked."""
    return Bucket(location, timeout) if "://" in location else Folder(location)


class Folder:
    """A folder of this machine."""

    def __init__(self, path: str) -> None:
        self.location = path
        self._root = Path(path)

    def put(self, name: str, source: Path) -> None:
        target = self._root / name
        with self._told():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                with open(partial, "wb") as out, open(source, "rb") as data:
                    while piece := data.read(1 << 20):
                        out.write(piece)
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
            for folder in {target.parent, target.parent.parent, self._root}:
                _sync(folder)

    def fetch(self, name: str) -> Path:
        path = self._root / name
        with self._told():
            if not path.is_file():
                raise ArchiveFileMissing(self.location, name)
        return path

    def list(self, prefix: str) -> Iterator[Entry]:
        now = now_micros() / 1e6
        with self._told():
            for path in sorted((self._root / prefix).rglob("*")):
                if path.is_file():
                    stat = path.stat()
                    yield Entry(path.relative_to(self._root).as_posix(), stat.st_size, max(now - stat.st_mtime, 0.0))

    def delete(self, name: str) -> None:
        with self._told():
            (self._root / name).unlink(missing_ok=True)

    def close(self) -> None:
        pass

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArchiveUnreachable(
                self.location, error.strerror or type(error).__name__, "Check the folder, its permissions and its room"
            ) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Bucket:
    """A bucket of an object store. What was fetched is kept in a temporary folder until the log is closed."""

    def __init__(self, location: str, timeout: float) -> None:
        self.location = location
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
            "connect_timeout": f"{max(round(min(timeout, 10.0) * 1000), 1)}ms",
            "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes"),
        }
        retries: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=timeout)}
        with self._told(""):
            self._store = cast(Any, from_url)(location, client_options=options, retry_config=retries)
        self._mutex = threading.Lock()
        self._folder: str | None = None
        self._fetched: dict[str, Path] = {}
        self._fetching: dict[str, threading.Lock] = {}
        self._bytes = 0

    def put(self, name: str, source: Path) -> None:
        with self._told(name):
            self._api.put(self._store, name, source)
        with self._mutex:
            self._fetched.pop(name, None)

    def fetch(self, name: str) -> Path:
        with self._mutex:
            one_at_a_time = self._fetching.setdefault(name, threading.Lock())
        with one_at_a_time:
            with self._mutex:
                found = self._fetched.get(name)
            if found is not None and found.exists():
                return found
            with self._told(name):
                data = bytes(self._api.get(self._store, name).bytes())
            try:
                return self._keep(name, data)
            except OSError as error:
                raise StorageError(
                    f"what was fetched from {self.location} cannot be kept: {error.strerror}",
                    hint="See that there is room; TMPDIR says where such files are kept",
                ) from error

    def _keep(self, name: str, data: bytes) -> Path:
        with self._mutex:
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix="millstream-archive-")
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            descriptor, path = tempfile.mkstemp(dir=self._folder, suffix=".parquet")
            with open(descriptor, "wb") as out:
                out.write(data)
            self._fetched[name] = Path(path)
            self._bytes += len(data)
            while self._bytes > _KEPT_BYTES and len(self._fetched) > 1:
                oldest = self._fetched.pop(next(iter(self._fetched)))
                self._bytes -= oldest.stat().st_size
                oldest.unlink()  # whoever reads it has it open
            return Path(path)

    def list(self, prefix: str) -> Iterator[Entry]:
        now = now_micros() / 1e6
        with self._told(prefix):
            for page in self._api.list(self._store, prefix):
                for item in page:
                    yield Entry(item["path"], item["size"], max(now - item["last_modified"].timestamp(), 0.0))

    def delete(self, name: str) -> None:
        try:
            with self._told(name):
                self._api.delete(self._store, name)
        except ArchiveFileMissing:
            pass
        with self._mutex:
            self._fetched.pop(name, None)

    def close(self) -> None:
        with self._mutex:
            self._fetched.clear()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Failures of the driver as errors of the library, in words of our own: the driver's may hold secrets."""
        try:
            yield
        except self._failures as error:
            text = str(error)
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text and name:
                raise ArchiveFileMissing(self.location, name) from error
            raise ArchiveUnreachable(self.location, *_reason(error, text, self._timeout)) from error


def _reason(error: Exception, text: str, timeout: float) -> tuple[str, str]:
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket", "Create the bucket, or correct the location"
    if "TimedOut" in text or "Timeout" in text:
        return f"it did not answer within {timeout:g} s", "Try again, or allow more time with log.archives.timeout"
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
        return "it refuses the credentials", "Check the credentials in the environment and what they may do"
    if "kind: Connect" in text:
        return "no connection can be made", "Check the network, and AWS_ENDPOINT_URL if the store is not Amazon's"
    if "BadScheme" in text:
        return "its endpoint is plain HTTP", "Set AWS_ALLOW_HTTP=true if that is meant"
    hint = "Check the location, and the credentials and options in the environment"
    return f"the object store fails ({type(error).__name__})", hint
