"""Named moments of a capture at which a test may let the process die; see `millstream.testing.crash_at`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Point = Literal["before-commit", "after-commit", "after-acknowledge", "put-ahead", "in-chunk", "in-snapshot"]
"""Before and after the commit that takes changes into the log; when the source was told; in the middle of a large
transaction that goes ahead into the log; with a chunk or a page of a snapshot in hand."""

_hook: Callable[[Point], None] | None = None


def reach(point: Point) -> None:
    """Say that a moment has come."""
    if _hook is not None:
        _hook(point)


def set_hook(hook: Callable[[Point], None] | None) -> None:
    """Call a function at every named moment; None: no longer."""
    global _hook
    _hook = hook
