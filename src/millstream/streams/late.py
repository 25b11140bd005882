"""Late rows on their way out: in the order of the log, each with the columns that it had where it was left out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from .columns import SEQUENCE, picked, visible

_KIND, _PLACE = "__kind", "__place"


def put_aside(rows: pl.DataFrame | None, late: list[pl.DataFrame]) -> None:
    """Add rows that an operator has left out, if there are any."""
    if rows is not None:
        late.append(rows.select(*visible(rows), SEQUENCE))


def in_log(late: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """Late rows of several operators in the order of the log; those of one place as the operators stand.

    Neighbours with the same columns are in one frame: what others have had beside them changes none of their values.
    """
    kinds: dict[tuple[tuple[str, pl.DataType], ...], tuple[int, list[pl.DataFrame]]] = {}
    places = []
    for frame in late:
        kind, held = kinds.setdefault(tuple(frame.schema.items()), (len(kinds), []))
        first = sum(each.height for each in held)
        held.append(frame)
        place = pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias(_PLACE)
        places.append(frame.select(SEQUENCE, pl.lit(kind, pl.Int64).alias(_KIND), place))
    if not places:
        return []
    wholes = [pl.concat(held) for _, held in kinds.values()]
    order = pl.concat(places).sort(SEQUENCE, maintain_order=True)
    which, where = order[_KIND].to_numpy(), order[_PLACE].to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(which)]
    runs = [wholes[which[begin]][where[begin:end]] for begin, end in pairwise(bounds) if begin < end]
    return [picked(run, visible(run)) for run in runs]
