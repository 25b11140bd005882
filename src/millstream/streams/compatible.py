"""Whether a changed flow can go on with what the one of its name has left in the log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import ndiff
from typing import TYPE_CHECKING

import msgspec

from .describing import PYTHON, coded, end, exactly
from .ends import FunctionSink, name_of
from .errors import FlowChanged
from .pipeline import Pipeline
from .store import SAVED, STATE, TABLES, TOLD, info_of
from .tree import Source

if TYPE_CHECKING:
    from ..log.log import Log
    from ..storage.database import Database
    from .flow import Flow


_HOLDS, _ALL = "holds rows with ", "all columns"
_LATE, _TO = "late rows to ", "to "
_CODE = re.compile(r"; code (\d+\.\d+)-[0-9a-f]{12}$")
_ELSEWHERE = re.compile(r"files: .*, (parquet|ndjson|csv)( by .*)?|function: .*; code \d+\.\d+-[0-9a-f]{12}")
"""Said of rows that go to files, or to a function, and of no stream with a type: that has neither word behind it."""


class Compatibility(msgspec.Struct, frozen=True):
    """Whether a flow can go on with what the one of its name has left.

    Attributes:
        name: The name.
        found: Whether there is anything: a flow of that name has been run.
        goes_on: Whether this one goes on where that one was, with its state. A flow that has not been run begins anew.
        changes: Which parts have changed, a line each: ``- `` as it was, ``+ `` as it is.
    """

    name: str
    found: bool
    goes_on: bool
    changes: tuple[str, ...]

    def __str__(self) -> str:
        if not self.found:
            return f"flow {self.name!r} has not been run: it begins with the beginning of the log"
        how = "goes on with its state" if self.goes_on else "cannot go on with its state"
        about = "unchanged" if not self.changes else "changed: " + "; ".join(self.changes)
        return f"flow {self.name!r} {how}; {about}"


def compatible(flow: Flow, log: Log) -> Compatibility:
    """See `Flow.compatible`."""
    name = name_of(flow)
    with log.connect() as database:
        info = info_of(database, name)
        if info is None:
            return Compatibility(name, False, True, ())
        before = told(database, name)
        pipeline = Pipeline(flow)
        goes_on = info["shape"] == pipeline.shape and lacking(database, pipeline, name) is None
    changes = (
        tuple(line for line in ndiff(*_comparable(before, declared(pipeline))) if line[0] in "-+") if before else ()
    )
    return Compatibility(name, True, goes_on, changes)


def _comparable(before: list[str], now: list[str]) -> tuple[list[str], list[str]]:
    """What two flows are, without the code of functions where another version of Python has compiled it."""
    if any((found := _CODE.search(line)) and found[1] == PYTHON for line in before):
        return before, now
    return [_CODE.sub("", line) for line in before], [_CODE.sub("", line) for line in now]


def check_held(database: Database, pipeline: Pipeline, name: str) -> None:
    """See that the rows that a flow has left have all the columns that are asked of them now.

    Raises:
        FlowChanged: They lack some, since it did not ask for them.
    """
    found = lacking(database, pipeline, name)
    if found is not None:
        raise FlowChanged(name, *found)


def lacking(database: Database, pipeline: Pipeline, name: str, label: str | None = None) -> tuple[str, str] | None:
    """What rows that a flow holds, or held at a savepoint, have, and what is asked of them; None where they have it
    all, or nobody knows."""
    lines = [line.strip() for line in told(database, name if label is None else saved_as(name, label))]
    before = [line for line in lines if line.startswith(_HOLDS)]
    now = [(number, held) for number, part in enumerate(pipeline.operators) for held in pipeline.held(part)]
    if len(before) != len(now) or not database.has_table(STATE):
        return None
    table, where = database.own(STATE if label is None else SAVED), "flow = ?" + " and label = ?" * (label is not None)
    of = (name,) if label is None else (name, label)
    for line, (number, held) in zip(before, now, strict=True):
        had = line.removeprefix(_HOLDS)
        if had == _ALL or (held is not None and held <= {*msgspec.json.decode(had)}):
            continue
        if database.one(f"select 1 as found from {table} where {where} and operator = ? limit 1", (*of, number)):
            return line, _holds(held)
    return None


def _holds(columns: frozenset[str] | None) -> str:
    return _HOLDS + (_ALL if columns is None else msgspec.json.encode(sorted(columns)).decode())


def tell(database: Database, pipeline: Pipeline, name: str) -> None:
    """Note what a flow is, in the transaction in which it is taken over."""
    _note(database, name, declared(pipeline))


def tell_again(database: Database, name: str, other: str) -> None:
    """Note of another name what is noted of one."""
    _note(database, other, told(database, name))


def saved_as(name: str, label: str) -> str:
    """Under which name it is noted what a flow was when a savepoint of it was made."""
    return f"{name}~savepoint {label}"


def _note(database: Database, name: str, lines: list[str]) -> None:
    database.ensure_table(TOLD, TABLES[TOLD])
    database.execute(
        f"insert into {database.own(TOLD)} as held (flow, declared, paused) values (?, ?, 0)"
        " on conflict (flow) do update set declared = excluded.declared",
        (name, "\n".join(lines)),
    )


def forget_told(database: Database, name: str) -> None:
    """Remove what is noted under a name."""
    if database.has_table(TOLD):
        database.execute(f"delete from {database.own(TOLD)} where flow = ?", (name,))


def told(database: Database, name: str) -> list[str]:
    """What the flow of a name was when it was run last, a line each; none when that is not known."""
    if not database.has_table(TOLD):
        return []
    row = database.one(f"select declared from {database.own(TOLD)} where flow = ?", (name,))
    return row["declared"].split("\n") if row is not None and row["declared"] else []


def writes(database: Database, name: str) -> set[str]:
    """The streams that the flow of a name wrote to when it was run last, as far as that is known; it reads none of
    them."""
    lines = told(database, name)
    said = [line.removeprefix(_LATE) for line in lines if line.startswith(_LATE)]
    ends = [line.removeprefix(_TO) for line in lines[-1:] if line.startswith(_TO)]
    said += [end for end in ends if not _ELSEWHERE.fullmatch(end)]
    return {each.partition(": ")[0] for each in said}


def declared(pipeline: Pipeline) -> list[str]:
    """A flow's parts in words, a line each, from its sources on."""
    return [line.replace("\n", " ") for line in _lines(pipeline.flow, "", pipeline)]


def _lines(flow: Flow, indent: str, pipeline: Pipeline) -> Iterator[str]:
    if not isinstance(flow.source, Source):
        for each in flow.source.inputs:
            yield from _lines(each, indent + "  ", pipeline)
    for part in (flow.source, *flow.stages):
        said = exactly(part)
        yield indent + ": ".join(each for each in (said.title, "; ".join(said.lines)) if each)
        yield from (indent + "  " + _holds(held) for held in pipeline.held(part))
    if flow.late is not None:
        yield f"{_LATE}{flow.late[0]}: {flow.late[1]}"
    if flow.sink is not None:
        code = f"; {coded(flow.sink.function)}" if isinstance(flow.sink, FunctionSink) else ""
        yield end(flow.sink) + code
