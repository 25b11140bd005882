"""Rows of SQLite as JSON can hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from math import inf
from typing import Any

from ..values import Row, encode_any

_PLAIN = frozenset({int, str, float, type(None)})


def encode_row(names: Iterable[str], values: tuple[Any, ...]) -> Row:
    """A row as JSON can hold it."""
    if _PLAIN.issuperset(map(type, values)) and inf not in values and -inf not in values:
        return dict(zip(names, values, strict=True))
    return {name: encode_any(value) for name, value in zip(names, values, strict=True)}


def row_encoder(rows: Sequence[tuple[Any, ...]]) -> Callable[[Iterable[str], tuple[Any, ...]], Row]:
    """The cheapest function that does what `encode_row` does for all of these rows: mostly JSON has a word for
    everything, which is found out faster for a page than for each row."""

    def values() -> Iterator[Any]:
        return chain.from_iterable(rows)

    if _PLAIN.issuperset(map(type, values())) and inf not in values() and -inf not in values():
        return _plain_row
    return encode_row


def _plain_row(names: Iterable[str], values: tuple[Any, ...]) -> Row:
    return dict(zip(names, values, strict=True))
