"""What columns a source has, for who has misspelt one: a flow reads no more of them than it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from ..frames import schema_columns
from .errors import MissingColumn
from .tree import Source

if TYPE_CHECKING:
    from ..log.log import Log

_RUNS = 64
"""So many runs of a source are looked at."""


@contextmanager
def named(log: Log) -> Iterator[None]:
    """Has an error about a column that a source lacks name those that it has, and not only those that were read."""
    try:
        yield
    except MissingColumn as error:
        if not isinstance(error.source, Source):
            raise
        there = columns_there(log, error.source) or error.columns
        raise MissingColumn(error.column, error.where, there, error.source) from error.__cause__


def columns_there(log: Log, source: Source) -> list[str]:
    """The names of the columns of a source's first rows."""
    names: dict[str, None] = {}
    for run in islice(log.runs(source.stream, types=source.types), _RUNS):
        if run.type == "StreamClosed":
            continue
        found = schema_columns(run.schema) if run.is_frame else msgspec.json.decode(run.lines()[0])
        names.update(dict.fromkeys(found))
    return list(names)
