"""A folder of images that several processes use: what is in use stays, what is left over or too much goes."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from typing import NamedTuple

KEPT = 8
"""How many images are kept of one version of a projection."""

BYTES = 1 << 30
"""How large all images in a folder may be together, beside the one that was made last."""

GONE = 3600.0
"""How long, in seconds, images are kept that nobody asks for, when another version of the projection has some."""

MAKING = ".making"
"""How the names end of those that are being made, or belong to one who asks."""

_CLAIM = ".use"
_NAME = re.compile(r"(?P<names>.+)-(?P<mark>[0-9a-f]{16})-\d+\.(?P<suffix>db|duckdb)")
_ENDS = ("", "-wal", "-shm", "-journal", ".wal", ".part")


class Claim:
    """Says that a file is in use, to all processes, until it is freed or its process dies.

    The lock is on a file beside it: SQLite and DuckDB have locks of their own on theirs.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: str, *, alone: bool = False, wait: bool = True) -> Claim | None:
        """Claim a file, which need not be there yet.

        Args:
            alone: Nobody else may use it.
            wait: Wait for those who are in the way; else None is the answer then.
        """
        kind = (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
        while True:
            try:
                descriptor = os.open(path + _CLAIM, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                with suppress(FileExistsError):  # as exist_ok= says, but for when it is deleted again meanwhile
                    os.makedirs(os.path.dirname(path))  # the folder may be deleted at any time
                continue
            try:
                fcntl.flock(descriptor, kind)
                found = os.stat(path + _CLAIM)
                if os.path.samestat(found, os.fstat(descriptor)):
                    return cls(path, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass  # whoever had it has removed it: what was locked is a file without a name
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def free(self) -> None:
        """Say that it is not in use any more. Idempotent."""
        if self._descriptor < 0:
            return
        with suppress(BlockingIOError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                os.unlink(self._path + _CLAIM)
        os.close(self._descriptor)
        self._descriptor = -1


class _Found(NamedTuple):
    used: float
    size: int
    name: str
    family: tuple[str, str]
    mark: str


def sweep(folder: str, made: str) -> None:
    """Remove from a folder what nobody uses and is left over, or is too much: what was used last stays.

    Args:
        made: The name of the image that was made last, which stays.
    """
    images: list[_Found] = []
    left: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match is not None:
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    family = (match["names"], match["suffix"])
                    images.append(_Found(stat.st_mtime, stat.st_size, entry.name, family, match["mark"]))
            elif MAKING in entry.name:
                left.add(entry.name[: entry.name.rindex(MAKING)] + MAKING)
            elif entry.name.endswith(_CLAIM):
                left.add(entry.name.removesuffix(_CLAIM))
    for name in left - {image.name for image in images}:
        _remove(folder, name)
    for image in _too_many(images, made):
        _remove(folder, image.name)


def _too_many(images: list[_Found], made: str) -> list[_Found]:
    now = time.time()
    newest = {image.family: image.mark for image in images if image.name == made}
    kept: dict[tuple[tuple[str, str], str], int] = {}
    size = 0
    found = []
    for image in sorted(images, key=lambda image: (image.name == made, image.used), reverse=True):
        count = kept[image.family, image.mark] = kept.get((image.family, image.mark), 0) + 1
        gone = newest.get(image.family, image.mark) != image.mark and now - image.used > GONE
        if image.name != made:
            size += image.size
            if count > KEPT or gone or size > BYTES:
                found.append(image)
                size -= image.size
    return found


def _remove(folder: str, name: str) -> None:
    path = os.path.join(folder, name)
    claim = Claim.take(path, alone=True, wait=False)
    if claim is None:
        return  # somebody uses it
    try:
        for end in _ENDS:
            with suppress(FileNotFoundError):
                os.unlink(path + end)
    finally:
        claim.free()
