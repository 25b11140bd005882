"""A flow's source as frames, with types that do not depend on where a batch ends.

Events that are objects have no declared columns: what a field holds is seen from its values. The type of a column
is that of all its values *so far*, row by row; where it widens (an integer column meets a fraction, or text), the
rows up to there are one frame and the rows from there on another. A field that was absent or null so far widens
nothing: its rows are null either way. Frames say what their columns are; where that differs from what came before, in
objects or in the frames of another stream, the same rule holds. A column without a value so far has the type that the
class of its events says, if there is one and it does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import polars as pl

from ..frames import Columns
from ..log.framing import ENVELOPE, alike, enveloped
from ..log.objects import columns_of, frame_of_objects, shaped, union, values_one_by_one
from ..log.quick import quick_frame
from ..log.records import Run
from ..log.shapes import types_said
from ..log.singles import Singles

_INT64 = (-(1 << 63), (1 << 63) - 1)
_EXACT = 1 << 53


def frames_of(
    runs: Iterable[Run | Singles],
    known: Columns,
    wanted: frozenset[str] | None,
    envelope: Collection[str] = tuple(ENVELOPE),
) -> Iterator[pl.DataFrame]:
    """The rows of runs with the log's envelope, in as few frames as their types allow.

    Args:
        runs: The runs, in the order of the log.
        known: The columns so far.
        wanted: The fields to read; None for all.
        envelope: The columns of the log's envelope that are wanted.
    """
    held: list[tuple[pl.DataFrame | list[dict[str, Any]], pl.DataFrame]] = []
    for group in _begun(alike(runs), known):
        about = enveloped(group, pl.DataFrame(height=sum(run.count for run in group)), envelope)
        first = group[0]
        if isinstance(first, Run) and first.is_frame:
            part = first.frame(None if wanted is None else sorted(wanted))
            columns = _said(_with_frame(known, part), first)
            if held and not grows(known, columns):
                yield _framed(held, known)
                held = []
            known = columns
            held.append((part, about))
            continue
        typed = _said(known, first)
        quick = quick_frame(group, typed, wanted)
        if quick is not None:
            known = typed
            held.append((quick, about))
            continue
        rows = _values(group, wanted)
        start = 0
        for end, columns in _steps(known, rows, first):
            if end > start:
                held.append((rows[start:end], about[start:end]))
            if held and not grows(known, columns):
                yield _framed(held, known)
                held = []
            known, start = columns, end
        held.append((rows[start:], about[start:]))
    if held:
        yield _framed(held, known)


def _with_frame(known: Columns, part: pl.DataFrame) -> Columns:
    """The columns so far and those of a frame as one; text where a float would not be the same number."""
    columns = union(known, dict(part.schema))
    for name, dtype in part.schema.items():
        if isinstance(columns[name], pl.Float64) and isinstance(dtype, pl.Int64) and not _is_exact(part[name]):
            columns[name] = pl.String()
    return columns


def _is_exact(numbers: pl.Series) -> bool:
    """Whether each of some whole numbers is one that a float can be."""
    low, high = numbers.min(), numbers.max()
    return not (isinstance(low, int) and isinstance(high, int)) or (low >= -_EXACT and high <= _EXACT)


def _begun(groups: Iterable[list[Run | Singles]], known: Columns) -> Iterator[list[Run | Singles]]:
    """The groups; while no column is known, a first run of objects by itself, so that the rest goes the quick way."""
    for group in groups:
        if not known and len(group) > 1 and not group[0].is_frame:
            yield group[:1]
            yield group[1:]
        else:
            yield group


def _framed(held: list[tuple[pl.DataFrame | list[dict[str, Any]], pl.DataFrame]], columns: Columns) -> pl.DataFrame:
    frames = []
    for part, about in held:
        frame = shaped(part, columns) if isinstance(part, pl.DataFrame) else frame_of_objects(part, columns)
        frames.append(frame.hstack(about.get_columns()) if columns else about)
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def _values(group: Sequence[Run | Singles], wanted: frozenset[str] | None) -> list[dict[str, Any]]:
    first = group[0]
    lines = [line for run in group for line in run.lines()]
    rows = values_one_by_one(lines, first.decodes_as, first.position)
    return rows if wanted is None else [{name: row[name] for name in row if name in wanted} for row in rows]


def _said(columns: Columns, run: Run | Singles) -> Columns:
    """The columns, of which those without a value so far have the type that the class of a run says."""
    if pl.Null not in columns.values() or run.decodes_as is None:
        return columns
    said = types_said(run.decodes_as)
    return {name: said.get(name, dtype) if dtype == pl.Null else dtype for name, dtype in columns.items()}


def _steps(known: Columns, rows: list[dict[str, Any]], run: Run | Singles) -> Iterator[tuple[int, Columns]]:
    """Where the columns so far change: the index of the row that changes them, and the columns from there on.

    Args:
        known: The columns so far.
        rows: The rows.
        run: The first of the runs that they are of.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    start = 0
    if run.decodes_as is not None:
        first = union(known, columns_of(rows[:1]))
        typed = _said(first, run)
        if typed != first:
            known, start = typed, 1
            yield 0, known
    while start < len(rows):
        # What the first rows have widened, the rest may fit.
        rest = rows[start:] if start else rows
        loose = [name for name in names if name not in known or not _fits([row.get(name) for row in rest], known[name])]
        if not loose:
            return
        for index, row in enumerate(rest, start):
            more = columns_of([{name: row[name] for name in loose if name in row}])
            columns = _said(union(known, more), run)
            if columns != known:
                known, start = columns, index + 1
                yield index, known
                break
        else:
            return


def _fits(values: list[Any], dtype: pl.DataType) -> bool:
    """Whether values leave a column's type as it is, as far as that is cheap to tell."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds or isinstance(dtype, pl.String):
        return True
    if isinstance(dtype, pl.Struct):
        return kinds == {dict} and _objects_fit([value for value in values if value is not None], dtype)
    if isinstance(dtype, pl.Int64 | pl.Float64) and kinds <= ({int} if isinstance(dtype, pl.Int64) else {int, float}):
        integers = [value for value in values if type(value) is int]
        return not integers or (min(integers) >= _INT64[0] and max(integers) <= _INT64[1])
    return isinstance(dtype, pl.Boolean) and kinds == {bool}


def _objects_fit(objects: list[dict[str, Any]], dtype: pl.Struct) -> bool:
    """Whether objects leave a type as it is. One without fields has no type of its own, and would make it text."""
    fields = {field.name: field.dtype for field in dtype.fields}
    if not all(objects) or not all(map(fields.keys().__ge__, map(dict.keys, objects))):
        return False
    return all(_fits([value.get(name) for value in objects], inner) for name, inner in fields.items())  # type: ignore[arg-type]


def grows(known: Columns, columns: Columns) -> bool:
    """Whether columns differ only by what was absent or null before."""
    return all(_grows(dtype, columns[name]) for name, dtype in known.items())


def _grows(old: pl.DataType, new: pl.DataType) -> bool:
    if old == new or isinstance(old, pl.Null):
        return True
    if isinstance(old, pl.List) and isinstance(new, pl.List):
        return _grows(old.inner, new.inner)  # type: ignore[arg-type]
    if isinstance(old, pl.Struct) and isinstance(new, pl.Struct):
        more = {field.name: field.dtype for field in new.fields}
        return all(_grows(field.dtype, more[field.name]) for field in old.fields)  # type: ignore[arg-type]
    return False
