"""Compiled loops, where Numba is installed: the extra ``fast``. Without it the same is done by whole arrays."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import Any

_LOG = logging.getLogger("millstream.streams")

ROWS = 16_384
"""Rows of a batch from which on loops are worth calling."""

SOON = 5_000_000
"""Rows in such batches after which they are asked for: to load Numba takes as long as they save in some more."""

_seen = 0


@cache
def loops() -> Any:
    """The module `loops`, or None without a Numba that works."""
    try:
        return importlib.import_module(".loops", __package__)
    except ImportError:
        return None
    except Exception:
        # Such as a Numba that does not go with this numpy: a flow does not need it.
        _LOG.warning("Numba cannot be used, so that sums go by arrays", exc_info=True)
        return None


def saw(rows: int) -> None:
    """Count the rows of a batch that loops could go through."""
    global _seen
    if rows >= ROWS:
        _seen += rows


def worth_it(rows: int) -> bool:
    """Whether so many rows are gone through by loops, if they can be."""
    return rows >= ROWS and _seen >= SOON and loops() is not None
