"""Compiled loops, where Numba is installed: the extra ``fast``. Without it the same is done by whole arrays."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

ROWS = 16_384
"""Rows of a batch from which on loops are asked for: to have them ready takes as long as some steps."""


@cache
def loops() -> Any:
    """The module `loops`, or None without Numba."""
    try:
        return importlib.import_module(".loops", __package__)
    except ImportError:
        return None


def worth_it(rows: int) -> bool:
    """Whether so many rows are gone through by loops, if they can be."""
    return rows >= ROWS and loops() is not None
