"""Sources that have had no row yet: their columns are of no type, which few verbs can take."""

from __future__ import annotations

import polars as pl

from .columns import AT, ID, LATE, SEQUENCE, hidden, visible
from .shaping import Filter, Rowwise, Select, Unmet, WithColumns, outputs_of
from .state import Batch
from .tree import Meeting

_BARE = (AT, LATE, SEQUENCE, ID)


def untyped(stage: Rowwise, frame: pl.DataFrame) -> pl.DataFrame | None:
    """What a stage gives of no rows of which a column that it reads has no type yet; None where that cannot be said."""
    if not any(frame.schema.get(name) == pl.Null for name in stage.reads):
        return None
    if isinstance(stage, Filter | Unmet):
        return frame
    names = outputs_of(stage.expressions) if isinstance(stage, WithColumns | Select) else None
    if names is None:
        return None
    kept = frame.select(hidden(frame)) if isinstance(stage, Select) else frame
    made = [frame[name] if name in frame.columns else pl.Series(name, [], pl.Null) for name in names]
    return pl.DataFrame([*made, *kept.get_columns()]) if isinstance(stage, Select) else kept.with_columns(made)


def nothing_of(meeting: Meeting, number: int, batch: Batch) -> pl.DataFrame | None:
    """What comes to a meeting of a source that has had no row, where an operator before it would need the types of its
    columns; None of one that has had rows."""
    frame = batch.frame
    if frame.height or any(frame.schema[name] != pl.Null for name in visible(frame)):
        return None
    keys = {name: pl.Null() for name in meeting.reads(number)}
    return pl.DataFrame(schema={**keys, **{name: frame.schema[name] for name in _BARE if name in frame.columns}})
