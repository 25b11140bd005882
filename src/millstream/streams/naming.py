"""What streams there are, and what columns a source has, for who has misspelt one: a flow reads no more of them than it
asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from ..errors import StreamNotFound
from ..frames import schema_columns
from ..storage.base import category_of
from .errors import MissingColumn
from .tree import Source

if TYPE_CHECKING:
    from ..log.log import Log

_RUNS = 64
"""So many runs of a source are looked at."""


def check_there(log: Log, sources: Sequence[Source]) -> None:
    """Refuse to look into a past of which no source is there; or one of several is not, and looks misspelt.

    Of several, one that nobody has written to yet is not strange. It looks misspelt where the log knows no stream of
    its category, but others of one like it. In an empty log nothing is strange.

    Raises:
        StreamNotFound: It is so; names the stream or category that is like it.
    """
    absent = [source for source in sources if next(log.streams(source.stream), None) is None]
    if not absent or not log.head:
        return
    known = {category_of(stream.name) for stream in log.streams()}
    for source in absent:
        category = category_of(source.stream.removesuffix("*"))
        close = get_close_matches(category, known - {category}, 1)
        # Of a category all streams are meant; of a single one there is none like it in another category.
        meant = close[0] + "*" * close[0].endswith("-") if close and category not in known else None
        if len(absent) == len(sources) or meant is not None:
            raise StreamNotFound(source.stream, meant)


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
