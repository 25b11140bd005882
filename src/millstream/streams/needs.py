"""Which columns of its sources a flow reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import polars as pl

from .captured import TableRows
from .columns import ENVELOPE
from .flow import Flow
from .fold import Fold
from .overtaking import Overtaking
from .processing import Processed
from .shaping import Filter, Mapped, Select, Unmet, WithColumns
from .trailing import SlidingWindows
from .tree import Source, sources_of


class Claim(msgspec.Struct, eq=False):
    """A column that is asked for by name in one place of a flow, and where it may come from.

    Attributes:
        name: The column, as it is called there.
        origins: The sources it may come from, and what it is called in them.
        made: Whether a part of the flow gives it.
    """

    name: str
    origins: list[tuple[Source, str]]
    made: bool = False


class Needs(msgspec.Struct, frozen=True):
    """What is read of each row of a source.

    Attributes:
        named: The columns that are asked for by name.
        all: Whether all others come out as well.
    """

    named: frozenset[str]
    all: bool

    @property
    def wanted(self) -> frozenset[str] | None:
        """The columns to read; None for all."""
        return None if self.all else self.named

    def reads(self, name: str) -> bool:
        """Whether a column is read."""
        return self.all or name in self.named


class Demand:
    """What a flow asks of its sources, followed from its end to its beginning."""

    def __init__(self, flow: Flow) -> None:
        self.claims: list[Claim] = []
        self._all: set[Source] = set()
        self._late = flow.late is not None
        self.asked: dict[int, frozenset[str]] = {}
        """For each flow that begins with a meeting, and each stage that opens a table's changes (by their identity),
        what is asked of what comes out of it."""
        self.held: dict[int, list[frozenset[str] | None]] = {}
        """For each stage and meeting that may hold rows and give them on (by its identity), the columns of theirs that
        are asked for there or later, of each input; None for all."""
        self.after: dict[int, frozenset[str] | None] = {}
        """For each stage (by its identity), the columns that are asked for of what comes out of it; None for all."""
        self.before: dict[int, frozenset[str] | None] = {}
        """For each stage, the same of what goes into it."""
        # What comes out at the end comes out with all its columns.
        self._walk(flow, {}, True)
        named: dict[Source, set[str]] = {source: set() for source in sources_of(flow)}
        for source, names in named.items():
            if source.time is not None:
                names.add(source.time)
                self.claims.append(Claim(source.time, [(source, source.time)]))
        for claim in self.claims:
            for source, name in claim.origins:
                named[source].add(name)
        self.needs = {
            source: Needs(frozenset(names - set(ENVELOPE)), source in self._all or self._late)
            for source, names in named.items()
        }

    def absent(self, held: Mapping[Source, Iterable[str]]) -> tuple[str, Source] | None:
        """A column that is asked for by name, and none of the sources has that it could come from, and its source."""
        missing = []
        for claim in self.claims:
            if claim.made or claim.name in ENVELOPE:
                continue
            if len(held) > 1 and claim.origins and not all(held[source] for source, _ in claim.origins):
                continue  # Of several sources, some may have had no row yet: it may be one of these that brings it.
            if not any(name in held[source] for source, name in claim.origins):
                first = claim.origins[0][0] if claim.origins else next(iter(held))
                # The column of the time is what is missed first.
                missing.append((claim.name != first.time, claim.name, first))
        if not missing:
            return None
        _, name, source = min(missing, key=lambda each: each[:2])
        return name, source

    def _walk(self, flow: Flow, claims: dict[str, list[Claim]], every: bool) -> None:
        """Follow what is asked of a flow's output back to its sources."""
        for stage in reversed(flow.stages):
            self.after[id(stage)] = self._also(self.after, stage, None if every else frozenset(claims))
            if isinstance(stage, WithColumns):
                self._made(claims, _outputs(stage.expressions))
                every = every or _many(stage.expressions)
            elif isinstance(stage, Mapped | Fold | Overtaking):
                self._made(claims, stage.outputs)
                every = every or stage.asks is None
            elif isinstance(stage, TableRows):
                self.asked[id(stage)] = frozenset(claims)
                self._made(claims, claims)
                every = False
            elif isinstance(stage, Select):
                self._made(claims, claims)
                every = _many(stage.expressions)
            elif isinstance(stage, Processed):
                self._made(claims, claims)
                every = stage.asks is None
            elif isinstance(stage, SlidingWindows):
                self._made(claims, ["window_start", "window_end", *stage.aggregation.names])
            elif not (isinstance(stage, Filter | Unmet) or getattr(stage, "keeps", False)):
                self._made(claims, claims)
                every = False
            self._ask(claims, stage.reads)
            self.before[id(stage)] = self._also(self.before, stage, None if every else frozenset(claims))
            if isinstance(stage, SlidingWindows) or getattr(stage, "keeps", False):
                self.held[id(stage)] = [self.before[id(stage)]]
        source = flow.source
        if isinstance(source, Source):
            for name, asking in claims.items():
                for claim in asking:
                    claim.origins.append((source, name))
            if every:
                self._all.add(source)
            return
        self._made(claims, source.gives)
        self.asked[id(flow)] = self.asked.get(id(flow), frozenset()) | frozenset(claims)
        for number, inner in enumerate(source.inputs):
            handed: dict[str, list[Claim]] = {}
            for name, asking in claims.items():
                origin = source.origin(name, number)
                if origin is not None:
                    handed.setdefault(origin, []).extend(asking)
            self._ask(handed, source.reads(number))
            held = None if every and source.whole(number) else frozenset(handed)
            self.held.setdefault(id(source), []).append(held)
            self._walk(inner, handed, every and source.whole(number))

    @staticmethod
    def _also(
        known: Mapping[int, frozenset[str] | None], stage: object, asked: frozenset[str] | None
    ) -> frozenset[str] | None:
        """What is asked of a stage here and in other places: several flows may begin with it."""
        before = known.get(id(stage), frozenset())
        return None if before is None or asked is None else before | asked

    def _made(self, claims: dict[str, list[Claim]], names: Iterable[str]) -> None:
        for name in list(names):
            for claim in claims.pop(name, ()):
                claim.made = True

    def _ask(self, claims: dict[str, list[Claim]], names: Iterable[str]) -> None:
        for name in names:
            claim = Claim(name, [])
            self.claims.append(claim)
            claims.setdefault(name, []).append(claim)


def _outputs(expressions: Iterable[pl.Expr]) -> list[str]:
    return [e.meta.output_name() for e in expressions if not e.meta.has_multiple_outputs()]


def _many(expressions: Iterable[pl.Expr]) -> bool:
    """Whether there is one that may stand for any column, such as ``pl.all()``."""
    return any(expression.meta.has_multiple_outputs() for expression in expressions)
