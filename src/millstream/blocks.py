"""Things that are had within a ``with`` block alone, and say so where the ``with`` was forgotten."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UsageError

T = TypeVar("T")


class Block(AbstractContextManager[T]):
    """Gives what another context manager gives.

    Args:
        inner: The other one.
        written: How it is written, for whoever asks for more than a block outside of one.
    """

    def __init__(self, inner: AbstractContextManager[T], written: str) -> None:
        self._inner = inner
        self._written = written

    def __enter__(self) -> T:
        return self._inner.__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        return self._inner.__exit__(*raised)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            raise UsageError(f"there is no {name!r} outside of a block", hint=f"Write `with {self._written}:`")
