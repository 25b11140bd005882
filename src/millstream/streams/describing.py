"""What a flow's parts are, in a few words each: for pictures and for people."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..marks import mark
from .alerts import Alert
from .broadcast import Broadcast
from .calendars import CalendarWindows
from .captured import TableRows
from .counted import CountWindows
from .distinct import Distinct, Top
from .ends import FileSink, FunctionSink, Sink
from .enriching import Enriched
from .entering import Entering
from .fold import Fold
from .joins import AsOfJoin, IntervalJoin
from .latest import Latest
from .match import Match
from .merging import Merge
from .overtaking import Overtaking
from .processing import Processed
from .revising import RevisingWindows
from .sequences import Sequences
from .sessions import SessionWindows
from .shaping import Filter, Mapped, Select, Unmet, WithColumns
from .sketches import Quantile
from .trailing import SlidingWindows
from .tree import Source
from .windowjoin import WindowJoin
from .windows import Hopping, PaneWindows

if TYPE_CHECKING:
    from .flow import Flow

_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1))


class Words(msgspec.Struct, frozen=True):
    """A part of a flow: what it is, and what there is to say of it, a line each."""

    title: str
    lines: tuple[str, ...] = ()


def span(micros: int) -> str:
    """A length of time as one writes it: ``1h30m``."""
    parts = []
    for unit, size in _UNITS:
        count, micros = divmod(micros, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def text(expression: pl.Expr) -> str:
    """An expression without what is there for Polars alone."""
    said = re.sub(r'col\("([^"]*)"\)', r"\1", str(expression))
    said = re.sub(r"dyn (?:int|float): ", "", said)
    said = re.sub(r'lit\(("[^"]*"|\w+)\)', r"\1", said)
    said = said.replace("\0", "").replace("[(", "(").replace(")]", ")")
    said = re.sub(r'\(\[([\w.]+|"[^"]*")\]\)', r"(\1)", said)
    for _ in range(3):
        said = re.sub(r'(?<![\w.])\((-?[\w.]+(?:\(\))?|"[^"]*")\)', r"\1", said)
    inner = said[1:-1]
    return inner if said.startswith("(") and said.endswith(")") and _balanced(inner) else said


def _balanced(said: str) -> bool:
    depth = 0
    for sign in said:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            return False
    return depth == 0


def _by(keys: Sequence[str]) -> tuple[str, ...]:
    return (f"by {', '.join(keys)}",) if keys else ()


def _named(expressions: Iterable[pl.Expr]) -> tuple[str, ...]:
    names = [e.meta.output_name(raise_if_undetermined=False) or text(e) for e in expressions]
    return (", ".join(names),)


def _size(window: Hopping) -> str:
    size, every = window.size, window.every
    return f"tumbling {span(size)}" if size == every else f"hopping {span(size)} every {span(every)}"


def _aggregates(stage: PaneWindows | SessionWindows | CountWindows | CalendarWindows | SlidingWindows) -> str:
    of = stage.aggregation
    return ", ".join(f"{name} = {_aggregate(each)}" for name, each in zip(of.names, of.given, strict=True))


def _aggregate(given: pl.Expr | Quantile) -> str:
    return f"quantile({text(given.value)}, {given.q})" if isinstance(given, Quantile) else text(given)


def words(part: object) -> Words:
    """What a source, a stage or a meeting is."""
    match part:
        case Source():
            lines = [f"time {part.time}" if part.time else "time of recording"]
            if part.lateness:
                lines[0] += f", lateness {span(part.lateness)}"
            if part.idle is not None or part.ahead is not None:
                guards = [("idle", part.idle), ("ahead", part.ahead)]
                lines.append(", ".join(f"{name} {span(each)}" for name, each in guards if each is not None))
            if part.types is not None:
                lines.append(", ".join(sorted(part.types)))
            return Words(part.stream, tuple(lines))
        case Filter() | Unmet():
            return Words("filter", (text(part.condition),))
        case WithColumns():
            return Words("with columns", _named(part.expressions))
        case Select():
            return Words("select", _named(part.expressions))
        case Mapped():
            how = "enrich" if isinstance(part, Enriched) else "map rows" if part.by_row else "map batches"
            return Words(how, (f"{getattr(part.function, '__name__', 'a function')}: {', '.join(part.outputs)}",))
        case PaneWindows():
            return Words(_size(part.window), (*_by(part.keys), _aggregates(part)))
        case RevisingWindows():
            told = words(part.windows)
            each = (f"again each {span(part.tick)}",) if part.early else ()
            late = (f"allowed lateness {span(part.allowed)}",) if part.allowed else ()
            return Words(told.title, (*told.lines, *each, *late))
        case SlidingWindows():
            return Words(f"sliding {span(part.window.size)}", (*_by(part.keys), _aggregates(part)))
        case SessionWindows():
            return Words(f"session, gap {span(part.window.gap)}", (*_by(part.keys), _aggregates(part)))
        case CountWindows():
            return Words(f"count {part.window.rows}", (*_by(part.keys), _aggregates(part)))
        case CalendarWindows():
            return Words(f"calendar {part.window.every}", (part.window.zone, *_by(part.keys), _aggregates(part)))
    return _of_rows(part)


def in_short(flow: Flow) -> str:
    """A flow on one line: where its rows come from, what is made of them, and where they go."""
    steps = [words(flow.source).title]
    if not isinstance(flow.source, Source):
        steps[0] += f" ({'; '.join(map(in_short, flow.source.inputs))})"
    steps += [words(stage).title for stage in flow.stages]
    if flow.sink is not None:
        steps.append(end(flow.sink))
    return " → ".join(steps)


def exactly(part: object) -> Words:
    """The same, with all expressions that something is computed by."""
    said = words(part)
    match part:
        case WithColumns() | Select():
            return Words(said.title, tuple(map(text, part.expressions)))
        case Match():
            defined = zip(part.automaton.variables, part.define, strict=True)
            conditions = [f"{name}: {text(each)}" for name, each in defined]
            return Words(said.title, (*said.lines, *conditions))
        case Sequences():
            conditions = [f"{name}: {text(each)}" for name, each in part.define.items()]
            measured = (f"{name} = {text(each)}" for name, each in part.measures.items())
            return Words(said.title, (*said.lines, *conditions, *measured))
        case Mapped():
            types = ", ".join(f"{name} {dtype}" for name, dtype in part.types.items())
            return Words(said.title, (*said.lines, types, coded(part.function)))
        case Fold():
            return Words(said.title, (*said.lines, f"from {part.initial}", coded(part.function)))
        case Processed():
            return Words(said.title, (*said.lines, f"from {part.initial}", coded(part.on_row, part.on_timer)))
        case Overtaking():
            told = exactly(part.stage)
            return Words(told.title, (*told.lines[:-1], "in any order", told.lines[-1]))
    return said


PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""Each version of Python compiles functions in its own way."""


def coded(*functions: Callable[..., Any] | None) -> str:
    """What tells whether functions are still the same: their code, constants, defaults and what they close over."""
    return f"code {PYTHON}-{hashlib.sha256(mark(functions).encode()).hexdigest()[:12]}"


def end(sink: Sink) -> str:
    """Where a flow's rows go."""
    match sink:
        case FileSink():
            by = f" by {', '.join(sink.by)}" if sink.by else ""
            return f"to files: {sink.folder}, {sink.format}{by}"
        case FunctionSink():
            return f"to function: {getattr(sink.function, '__name__', 'a function')}"
    return f"to {sink.stream}: {sink.type}"


def _within(micros: int | None) -> tuple[str, ...]:
    return () if micros is None else (f"within {span(micros)}",)


def _of_rows(part: object) -> Words:
    match part:
        case Match():
            elements = part.automaton.elements
            pattern = " ".join(e.variable + _quantifier(e.least, e.most) for e in elements)
            return Words("match", (pattern, *_by(part.keys), f"within {span(part.within)}"))
        case Sequences():
            return Words("match", (part.program.text, *_by(part.keys), *_within(part.within)))
        case Alert():
            cooldown = (f"cooldown {span(part.cooldown)}",) if part.cooldown else ()
            return Words("alert", (text(part.condition), *cooldown))
        case Entering():
            return Words("alert on entering", (text(part.condition),))
        case Distinct():
            return Words("distinct", (*_by(part.keys), f"within {span(part.within)}"))
        case Top():
            what = f"{part.by}{'' if part.descending else ', least first'}"
            return Words(f"top {part.rows} by {what}", (f"per {', '.join(part.per)}",) if part.per else ())
        case Latest():
            return Words("latest", _by(part.keys))
        case Fold():
            name = getattr(part.function, "__name__", "a function")
            forget = (f"forget {span(part.forget)}",) if part.forget is not None else ()
            return Words("fold", (*_by(part.keys), f"{name}: {', '.join(part.types)}", *forget))
        case Overtaking():
            told = words(part.stage)
            return Words(told.title, (*told.lines, "in any order"))
        case Processed():
            forget = (f"forget {span(part.forget)}",) if part.forget is not None else ()
            name = getattr(part.on_row, "__name__", "a function")
            return Words("process", (*_by(part.keys), f"{name}: {', '.join(part.gives)}", *forget))
        case Merge():
            return Words("merge", ("in order of time" if part.timed else "in the order of the log",))
        case IntervalJoin():
            return Words(f"join {part.how}", (*_by(part.on), f"back {span(part.back)}, ahead {span(part.ahead)}"))
        case AsOfJoin():
            within = _within(part.within)
            strategy = "" if part.strategy == "backward" else f" {part.strategy},"
            return Words(f"join as of,{strategy} {part.how}", (*_by(part.on), *within))
        case WindowJoin():
            return Words(f"join {part.how} in windows", (*_by(part.on), _size(part.window)))
        case TableRows():
            return Words("table", _by(part.keys))
        case Broadcast():
            return Words(f"join latest, {part.how}", _by(part.on))
    return Words(type(part).__name__.lower())


def _quantifier(least: int, most: int | None) -> str:
    plain = {(1, 1): "", (1, None): "+", (0, None): "*", (0, 1): "?"}
    found = plain.get((least, most))
    if found is not None:
        return found
    return f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
