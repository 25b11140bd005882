"""A warehouse in a folder: files of history, and one of the present rows, that appear whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import msgspec
import polars as pl

from ...conversion import ready
from ...errors import SinkUnavailable
from ...log.files import make_folder, whole
from ..change import Row, SchemaChanged, SnapshotCompleted
from ..shape import Shape, shape_of
from ..values import decode_row
from .base import Changes
from .columns import frame
from .held import Claim, Held
from .history import history_frame
from .net import Exact, Move, Net, Step, by_shape, fold

if TYPE_CHECKING:
    from ...log import Log, Recorded

_HISTORY_ROWS = 200_000
"""So many changes are written without waiting for their time."""
_CURRENT_ROWS = 200_000
"""So many changed rows, or a quarter of all, are brought into the file of the present rows."""
_SHARE = 10
"""The present rows are written at most for one part in so many of the time."""


class Files(Protocol):
    """How the two are kept."""

    def history_position(self) -> int:
        """The position up to which the history goes."""

    def current_position(self) -> int:
        """The position of which the present rows are."""

    def add_history(self, rows: pl.DataFrame, first: int, last: int, position: int) -> None:
        """Add rows of history, of changes between two positions; from now on it goes up to a position."""

    def known(self, positions: Sequence[int]) -> set[int]:
        """Those of some positions whose changes are in the history."""

    def read_current(self) -> pl.DataFrame | None:
        """The present rows."""

    def write_current(self, rows: pl.DataFrame, position: int) -> None:
        """Put others in their place."""

    def read_history(self) -> pl.DataFrame | None:
        """All of the history, in any order."""


class Lake:
    """Changes are gathered in memory, and written from time to time. A position is held when its change is in both."""

    def __init__(self, place: str, table: str | None, kinds: dict[str, str], format: str, refresh: float) -> None:
        if format == "delta":
            from .delta import check_path, require_delta

            require_delta()
            check_path(place)
        self.location = place
        self._table, self._kinds, self._format, self._refresh = table, kinds, format, refresh
        self._claim = Claim(f"warehouse:{place}")
        self._folder = ""
        self._forget()

    def _forget(self) -> None:
        self._history: list[pl.DataFrame] = []
        self._history_rows = 0
        self._steps: list[Step] = []
        self._touched = 0
        self._shape: Shape | None = None
        self._position = self._history_to = self._current_to = 0
        self._height = 0
        self._write_history_at = self._write_current_at = 0.0

    # --- the folder ---------------------------------------------------------------------------------------

    def open(self, log: Log, stream: str) -> int:
        """Find what is written. What was only gathered before is asked for again."""
        name = self._table or stream
        safe = quote(name, safe=" -_+=@.") if name not in (".", "..") else name.replace(".", "%2E")
        if self._format == "delta":
            safe = safe.replace("~", "%7E").replace("%", "~")  # Delta takes a path for an address, and decodes it
        self._folder = os.path.join(self.location, safe)
        self._forget()
        with _written(self.location):
            make_folder(os.path.abspath(self._folder))
            self._claim.open(self, log.id, stream)
            self._files: Files
            if self._format == "delta":
                from .delta import DeltaFiles

                self._files = DeltaFiles(self._folder, f"millstream:{log.id}:{stream}")
            else:
                from .parquet import ParquetFiles

                self._files = ParquetFiles(self._folder)
            self._history_to = self._files.history_position()
            self._current_to = self._files.current_position()
        self._claim.position = self._position = min(self._history_to, self._current_to)
        self._write_history_at = self._write_current_at = time.monotonic() + self._refresh
        return self._position

    def close(self) -> None:
        """Forget what was gathered and not written."""
        self._claim.release()
        self._forget()

    def held(self, stream: str) -> Held | None:
        """Who has opened the folder last. The position stands in the files themselves."""
        try:
            with open(self._state, "rb") as file:
                return msgspec.json.decode(file.read(), type=ready(Held))
        except FileNotFoundError:
            return None

    def hold(self, stream: str, held: Held) -> None:
        """Say so."""
        with whole(self._state) as path, open(path, "wb") as file:
            file.write(msgspec.json.encode(held))

    @property
    def _state(self) -> str:
        return os.path.join(self._folder, "millstream.json")

    # --- changes ------------------------------------------------------------------------------------------

    def apply(self, changes: Changes) -> None:
        """Gather changes. One that is tried again, behind others that are written, is written at once."""
        late = changes[0][1].position <= self._position
        # All that may be refused comes first: what is refused comes again, in parts.
        gathered = []
        for shape, some in by_shape(changes):
            fold([], (change for change, _ in some), shape.key)
            gathered.append((shape, some, self._of_history(some, shape, late)))
        with _written(self.location):
            if late:
                self._write_history()
            for shape, some, rows in gathered:
                if rows is not None and late:
                    # A file for each, so that one which comes once more takes the place of its like.
                    for one in rows.iter_slices(1):
                        position = int(one["position"][0])
                        self._history_to = max(self._history_to, position)
                        self._files.add_history(one, position, position, self._history_to)
                elif rows is not None:
                    self._history.append(rows)
                    self._history_rows += rows.height
                new = [change for change, recorded in some if late or recorded.position > self._current_to]
                if (
                    new
                    and self._shape is not None
                    and (shape.key, shape.columns) != (self._shape.key, self._shape.columns)
                ):
                    self._write_current()
                fold(self._steps, new, shape.key)
                self._shape = shape
                self._touched += len(new)
                self._position = max(self._position, some[-1][1].position)
            if self._history_rows >= _HISTORY_ROWS:
                self._write_history()
            if late or self._touched >= max(_CURRENT_ROWS, self._height // 4):
                self._write_history()
                self._write_current()

    def _of_history(self, changes: Changes, shape: Shape, late: bool) -> pl.DataFrame | None:
        """The rows of those changes that the history does not have yet."""
        if late:
            known = self._files.known([recorded.position for _, recorded in changes])
            changes = [pair for pair in changes if pair[1].position not in known]
        else:
            changes = [pair for pair in changes if pair[1].position > self._history_to]
        return history_frame(changes, shape, self._kinds) if changes else None

    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None:
        """Rename, drop and fill columns of the present rows, with all changes before in them."""
        shape = shape_of(recorded.run.schema)
        if isinstance(event, SchemaChanged) and shape is not None and recorded.position > self._current_to:
            with _written(self.location):
                self._write_history()
                self._write_current()
                rows = self._files.read_current()
            if rows is not None:
                rows = rows.rename({old: new for old, new in event.renamed.items() if old in rows.columns})
                rows = rows.drop([name for name in event.dropped if name in rows.columns])
                added = [c for c in shape.columns if c.name in event.added and c.name not in rows.columns]
                values = decode_row(event.added, shape)
                ones = frame([values], added, self._kinds)
                if added and rows.height:
                    rows = rows.join(ones, how="cross")
                with _written(self.location):
                    self._files.write_current(rows, recorded.position)
                self._current_to = recorded.position
        self._position = max(self._position, recorded.position)

    def settle(self, last: bool) -> None:
        """Write what has waited long enough; all, the last time."""
        now = time.monotonic()
        with _written(self.location):
            if last or now >= self._write_history_at:
                self._write_history()
            if last or now >= self._write_current_at:
                self._write_current()

    # --- files --------------------------------------------------------------------------------------------

    def _write_history(self) -> None:
        if self._history:
            self._claim.move(self, self._position)
            last = max(int(rows["position"][-1]) for rows in self._history)
            for rows in self._joined():
                self._files.add_history(rows, int(rows["position"][0]), int(rows["position"][-1]), last)
            self._history_to = last
            self._history, self._history_rows = [], 0
        self._write_history_at = time.monotonic() + self._refresh

    def _joined(self) -> list[pl.DataFrame]:
        """The gathered rows of history, in frames of one shape each."""
        found: list[pl.DataFrame] = []
        for rows in self._history:
            if found and found[-1].schema == rows.schema:
                found[-1] = pl.concat([found[-1], rows])
            else:
                found.append(rows)
        return found

    def _write_current(self) -> None:
        begun = time.monotonic()
        if self._steps and self._shape is not None:
            self._claim.move(self, self._position)
            rows = self._files.read_current()
            for step in self._steps:
                rows = _apply(rows, step, self._shape, self._kinds)
            if rows is None:
                rows = frame([], self._shape.columns, self._kinds)
            self._current_to = max(self._position, self._current_to)
            self._files.write_current(rows, self._current_to)
            self._steps, self._touched, self._height = [], 0, rows.height
        now = time.monotonic()
        self._write_current_at = now + max(self._refresh, _SHARE * (now - begun))

    def current(self) -> pl.DataFrame:
        """The present rows."""
        rows = self._files.read_current()
        return rows if rows is not None else pl.DataFrame()

    def history(self) -> pl.DataFrame:
        """All changes."""
        rows = self._files.read_history()
        return rows.sort("position") if rows is not None else pl.DataFrame()


@contextmanager
def _written(location: str) -> Iterator[None]:
    """What fails at the folder has nothing to do with the changes. All that was gathered is asked for again then."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SinkUnavailable(f"{location} cannot be written: {error}", hint="Check the disk and its rights") from error


def _apply(rows: pl.DataFrame | None, step: Step, shape: Shape, kinds: dict[str, str]) -> pl.DataFrame | None:
    """The rows after a step."""
    columns = shape.columns
    if rows is not None:
        rows = pl.concat([rows, frame([], columns, kinds)], how="diagonal_relaxed")
    if isinstance(step, Exact):
        return _exact(rows, step, shape, kinds)
    if isinstance(step, Move):
        known = _find(rows, shape, [step.old], kinds) or _find(rows, shape, [step.new], kinds)
        kept = _without(rows, shape, [step.old, step.new], kinds)
        told = frame([step.row], [c for c in columns if c.name in step.row], kinds).to_dicts()[0]
        return _with(kept, frame([{**(known[0] if known else {}), **told}], columns, kinds))
    assert isinstance(step, Net)
    if step.truncate:
        rows = None
    gone = [*step.gone.values(), *(key for key, _ in step.rows.values())]
    whole_rows = frame(step.whole, columns, kinds)
    parts = []
    if step.partial:
        found = _find(rows, shape, [key for key, _ in step.parts], kinds)
        by_key = {tuple(row[name] for name in shape.key): row for row in found}
        for _, row in step.parts:
            told = frame([row], [c for c in columns if c.name in row], kinds).to_dicts()[0]
            known_row = by_key.get(tuple(told[name] for name in shape.key))
            if known_row is not None:
                parts.append({**known_row, **told})
    rows = _without(rows, shape, gone, kinds)
    rows = _with(rows, whole_rows)
    return _with(rows, pl.DataFrame(parts, schema=rows.schema)) if parts and rows is not None else rows


def _with(rows: pl.DataFrame | None, more: pl.DataFrame) -> pl.DataFrame:
    if rows is None or not rows.height:
        return more if rows is None or more.height else rows
    return pl.concat([rows, more], how="diagonal_relaxed") if more.height else rows


def _keys(shape: Shape, keys: Sequence[tuple[Any, ...]], kinds: dict[str, str]) -> pl.DataFrame:
    columns = {c.name: c for c in shape.columns}
    rows: list[Row] = [dict(zip(shape.key, key, strict=True)) for key in keys]
    return frame(rows, [columns[name] for name in shape.key], kinds)


def _matched(rows: pl.DataFrame, keys: pl.DataFrame, how: Any) -> pl.DataFrame:
    names = keys.columns
    same = pl.concat([rows.head(0).select(names), keys], how="vertical_relaxed")
    if same.schema != rows.select(names).schema:
        rows = rows.cast({name: same.schema[name] for name in names})
    return rows.join(same, on=names, how=how, maintain_order="left")


def _without(
    rows: pl.DataFrame | None, shape: Shape, keys: Sequence[tuple[Any, ...]], kinds: dict[str, str]
) -> pl.DataFrame | None:
    if rows is None or not keys or not rows.height:
        return rows
    return _matched(rows, _keys(shape, keys, kinds), "anti")


def _find(
    rows: pl.DataFrame | None, shape: Shape, keys: Sequence[tuple[Any, ...]], kinds: dict[str, str]
) -> list[dict[str, Any]]:
    if rows is None or not rows.height:
        return []
    return _matched(rows, _keys(shape, keys, kinds), "semi").to_dicts()


def _exact(rows: pl.DataFrame | None, step: Exact, shape: Shape, kinds: dict[str, str]) -> pl.DataFrame:
    """Rows without a key: each that goes takes one that equals it."""
    parts = [frame(step.come, shape.columns, kinds), frame(step.gone, shape.columns, kinds)]
    if rows is not None:
        parts.insert(0, rows)
    names = list(shape.names)
    both = pl.concat([part.select(names) for part in parts], how="vertical_relaxed")
    here, gone = both.head(both.height - len(step.gone)), both.tail(len(step.gone))
    number = pl.int_range(pl.len()).over(names).alias("_number")
    counted = gone.group_by(names).agg(pl.len().alias("_gone"))
    left = here.with_columns(number).join(counted, on=names, how="left", nulls_equal=True, maintain_order="left")
    return left.filter(pl.col("_number") >= pl.col("_gone").fill_null(0)).select(names)
