"""Requests with an id: decided once, whoever asks again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..conversion import ready
from ..errors import IdReused, MillstreamError, UsageError
from ..storage.base import Receipt
from .staging import check_label

if TYPE_CHECKING:
    from .log import Log


def once(log: Log, id: str, digest: bytes, decide: Callable[[], Receipt]) -> Receipt:
    """The receipt of the first commit with this id, or else what ``decide`` commits under it.

    Raises:
        IdReused: The id stands for something else.
    """
    done = receipt_of(log, check_label(id, "append id"), digest)
    if done is not None:
        return done
    try:
        return decide()
    except MillstreamError:
        # The same request may have been decided beside this one, which is why this one was refused.
        done = receipt_of(log, id, digest)
        if done is None:
            raise
        return done


def digest_of(command: object, name: str = "") -> bytes:
    """SHA-256 of a command's type and content: what an id stands for.

    Args:
        name: Who is to decide it, where commands of one type may be decided by several.
    """
    try:
        content = msgspec.json.encode(command, order="deterministic")
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"the command {type(command).__name__} cannot be written as JSON: {error}",
            hint="An id needs a command of JSON-like values, Decimal, datetime, UUID, enums and structs",
        ) from error
    parts = [type(command).__name__.encode(), content]
    return hashlib.sha256(b"\0".join([name.encode(), *parts] if name else parts)).digest()


def receipt_of(log: Log, id: str, digest: bytes) -> Receipt | None:
    """The receipt of a commit with this id, if there was one.

    Raises:
        IdReused: The id stands for something else.
    """
    row = log.store.append_row(id)
    if row is None:
        return None
    if row.digest != digest:
        raise IdReused(id, row.last)
    return msgspec.json.decode(row.result, type=ready(Receipt))
