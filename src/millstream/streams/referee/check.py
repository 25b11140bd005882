"""What a flow wrote beside what it should have written, row by row, both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ...frames import Columns
from ...log import checkpoints
from ...log.objects import fitted, union
from ..beginnings import began
from ..columns import visible
from ..errors import CannotCheck
from ..pipeline import Pipeline
from ..replay import played
from ..rows import frames_of
from ..state import widened
from .engine import Engine
from .recompute import Recomputed, recompute

if TYPE_CHECKING:
    from ...log.log import Log
    from ..flow import Flow


class FlowCheck(msgspec.Struct, frozen=True, eq=False):
    """What a check of a flow found.

    Attributes:
        position: Up to which position of the log its rows were taken.
        written: Whether rows of the log were compared, which a run had written; else those of `Flow.over`.
        rows: How many rows the flow gave.
        expected: How many the recomputation gives.
        missing: The rows of the recomputation that the flow did not give, each as often as it is missing.
        excess: The rows of the flow that the recomputation does not give.
        late: How many rows the flow left out as late.
        expected_late: How many should have been.
        close: How many rows agree but for the last digits of floats.
        engine: What recomputed it.
        queries: What SQL it was asked.
    """

    position: int
    written: bool
    rows: int
    expected: int
    missing: pl.DataFrame
    excess: pl.DataFrame
    late: int
    expected_late: int
    close: int
    engine: str
    queries: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether all rows agree, and the number of those that were late."""
        return not self.missing.height and not self.excess.height and self.late == self.expected_late

    def __str__(self) -> str:
        how = "equal" if self.equal else "different"
        about = [f"{self.rows} rows, {self.expected} recomputed"]
        if self.missing.height or self.excess.height:
            about.append(f"{self.missing.height} missing, {self.excess.height} in excess")
        if self.late != self.expected_late:
            about.append(f"{self.late} late where {self.expected_late} should be")
        return f"{how}: {'; '.join(about)}; up to position {self.position}; by {self.engine}"


def check(flow: Flow, log: Log, *, tolerance: float = 1e-9) -> FlowCheck:
    """See `Flow.check`."""
    run = _run_of(flow, log) if flow.sink is not None and flow.sink.stream else None
    if run is None:
        head = log.head
        given, state = played(Pipeline(flow), log, 0, head + 1, final=True)
        return _compared(given, state.late, recompute(flow, log, head + 1, final=True), head, False, tolerance)
    position, head, late = run
    assert flow.sink is not None
    with log.connect() as database:
        since, written = began(database, flow.sink.name)
    runs = log.runs(flow.sink.stream, types=[flow.sink.type], after=written, until_position=head + 1)
    frames = [frame.select(visible(frame)) for frame in frames_of(runs, {}, None)]
    given = widened(frames) if frames else pl.DataFrame()
    expected = recompute(flow, log, position + 1, final=False)
    if since:
        # It went on with the state of another, which had given what there was up to there.
        before = recompute(flow, log, since + 1, final=False)
        rows, _, _ = differences(expected.rows, before.rows, tolerance)
        expected = msgspec.structs.replace(expected, rows=rows)
    return _compared(given, late, expected, position, True, tolerance)


def _run_of(flow: Flow, log: Log) -> tuple[int, int, int] | None:
    """How far a run of the flow is, the log's head when it was there, and how many rows were late; None without one."""
    assert flow.sink is not None
    name = f"flow:{flow.sink.name}"
    with log.connect() as database:
        before = checkpoints.peek(database, name)
        while before is not None:
            # All that it wrote up to its checkpoint stands before this head; more, if it moves on meanwhile.
            head = log.head
            row = database.one(f"select late from {database.own('flow_info')} where flow = ?", (flow.sink.name,))
            after = checkpoints.peek(database, name)
            if after is not None and after.position == before.position:
                return before.position, head, row["late"] if row is not None else 0
            before = after
    return None


def _compared(
    given: pl.DataFrame, late: int, expected: Recomputed, position: int, written: bool, tolerance: float
) -> FlowCheck:
    missing, excess, close = differences(expected.rows, given, tolerance)
    return FlowCheck(
        position, written, given.height, expected.rows.height, missing, excess, late, expected.late, close,
        expected.engine, expected.queries,
    )  # fmt: skip


def differences(wanted: pl.DataFrame, given: pl.DataFrame, tolerance: float) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """The rows of each that the other has not, and how many differ in the last digits of floats alone."""
    rows = given
    if not rows.height and not rows.width:
        rows = wanted.clear()
    if not wanted.height and not wanted.width:
        wanted = rows.clear()
    wanted, rows = _by_value(wanted, rows)
    columns: Columns = union(dict(wanted.schema), dict(rows.schema))
    rows, wanted = _plain(fitted(rows, columns)), _plain(fitted(wanted, columns))
    with Engine() as engine:
        missing, excess = _apart(engine, wanted, rows), _apart(engine, rows, wanted)
    close = 0
    floats = [name for name, dtype in missing.schema.items() if dtype.is_float()]
    if floats and missing.height and excess.height:
        missing, excess, close = _unlike(missing, excess, floats, tolerance)
    return missing, excess, close


def _by_value(one: pl.DataFrame, other: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both frames, with decimals that are text in one of them as text without zeros behind: how many of these a text
    has, follows from what digits the column had had when it was written."""
    mixed = [
        name
        for name in one.columns
        if name in other.columns
        and {one.schema[name].base_type(), other.schema[name].base_type()} == {pl.Decimal, pl.String}
    ]
    text = pl.col(mixed).cast(pl.String)
    fraction = text.str.contains(r"^-?\d+\.\d+$")
    short = pl.when(fraction).then(text.str.strip_chars_end("0").str.strip_chars_end(".")).otherwise(text)
    return (one.with_columns(short), other.with_columns(short)) if mixed else (one, other)


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """With the types that DuckDB compares: what it does not know is text."""
    odd = [name for name, dtype in frame.schema.items() if dtype == pl.Null or isinstance(dtype, pl.Object)]
    return frame.with_columns(pl.col(odd).cast(pl.String))


def _apart(engine: Engine, one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """The rows of one that the other lacks: ``EXCEPT ALL``."""
    if not one.width:
        return one.head(max(one.height - other.height, 0))
    short = {name: f"c{number}" for number, name in enumerate(one.columns)}
    query = "select * from (select * from one except all select * from other) order by all"
    # Lengths of time as numbers: DuckDB would give them back in months and days.
    spans = [name for name, dtype in one.schema.items() if dtype == pl.Duration]
    sides = [each.with_columns(pl.col(spans).to_physical()).rename(short) for each in (one, other)]
    found = engine.ask(query, one=sides[0], other=sides[1])
    return found.rename({new: old for old, new in short.items()}).cast(dict(one.schema))  # type: ignore[arg-type]


def _unlike(
    missing: pl.DataFrame, excess: pl.DataFrame, floats: list[str], tolerance: float
) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Both without the rows that differ in the last digits of floats alone."""
    exact = [name for name in missing.columns if name not in floats]
    nth = pl.int_range(pl.len()).over(exact) if exact else pl.int_range(pl.len())
    try:
        sides = [frame.sort(*exact, *floats).with_columns(nth.alias("__nth")) for frame in (missing, excess)]
        both = (
            sides[0]
            .with_row_index("__one")
            .join(sides[1].with_row_index("__other"), on=[*exact, "__nth"], nulls_equal=True, suffix="__")
        )
    except pl.exceptions.PolarsError as error:
        raise CannotCheck("a row with a nested value", str(error).split("\n", 1)[0]) from error
    for name in floats:
        a, b = pl.col(name), pl.col(f"{name}__")
        near = (a - b).abs() <= tolerance * pl.max_horizontal(a.abs(), b.abs())
        both = both.filter(near.fill_null(False) | a.eq_missing(b))
    left = [
        side.with_row_index("__at").filter(~pl.col("__at").is_in(both[of].implode())).drop("__at", "__nth")
        for side, of in zip(sides, ("__one", "__other"), strict=True)
    ]
    return left[0], left[1], both.height
