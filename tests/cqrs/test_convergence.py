"""Whatever is done in whatever order, read models come to be the fold of the log.

Hypothesis interleaves appends, commands, workers that are abandoned in the middle of their work, rebuilds, rollbacks,
failures and what is done about them. MILLSTREAM_EXAMPLES=500 looks further.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from contextlib import suppress
from typing import Any, ClassVar

import hypothesis.strategies as st
import msgspec
import polars as pl
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import millstream as ms

EXAMPLES = int(os.environ.get("MILLSTREAM_EXAMPLES", "3"))
NAMES = st.sampled_from("abc")


CRASHES: list[bool] = []


def crash() -> None:
    """Fail as a full disk does, of which nobody is to blame but the machine."""
    if CRASHES:
        CRASHES.pop()
        raise ms.StorageError("the disk is full")


class Added(ms.Event, type="ConvergeAdded"):
    name: str
    n: int


class Tally(ms.Aggregate):
    total: int = 0

    def add(self, name: str, n: int) -> None:
        if self.total + n > 40:
            raise ms.Rejected("too much")
        self.record(Added(name=name, n=n))

    @ms.on
    def added(self, event: Added) -> None:
        self.total += event.n


class Add(ms.Command):
    tally: ms.Ref[Tally]
    name: str
    n: int


class Written(ms.Projection):
    """The write side's."""

    name = "ConvergeWritten"
    schema = "create table written (name text primary key, n integer not null)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute(
            "insert into written values (?, ?) on conflict (name) do update set n = n + excluded.n",
            (event.name, event.n),
        )


class Framed(ms.Projection):
    name = "ConvergeFramed"
    schema = "create table framed (name text primary key, n integer not null)"
    version = 1

    @ms.on_batch(Added)
    def added(self, frame: pl.DataFrame, db: ms.Database) -> None:
        crash()
        db.upsert("framed", frame.group_by("name").agg(pl.col("n").sum()), key="name", add=["n"])


class Total(msgspec.Struct):
    n: int = 0
    events: int = 0


class Kept(ms.Documents[Total]):
    """Documents, with a lookup into what is carried, and effects of what it carries that are not its own."""

    name = "ConvergeKept"
    table = "kept"
    key = "name"
    version = 1
    reads = (Framed,)

    @ms.on
    def added(self, event: Added, total: Total, db: ms.Database) -> None:
        found = db.one("select n from framed where name = ?", (event.name,))
        total.n = found["n"] if found else -1
        total.events += 1


class Told(ms.Projection):
    name = "ConvergeTold"
    schema = "create table told (position integer primary key)"
    version = 1
    performed: ClassVar[list[str]] = []

    @ms.on
    def added(self, event: Added, db: ms.Database, recorded: ms.Recorded, effects: ms.Effects) -> None:
        db.execute("insert into told values (?)", (recorded.position,))
        crash()
        effects.add(event.n)

    def perform(self, effect: ms.Effect) -> None:
        type(self).performed.append(effect.id)


class Sums(ms.Query[dict[str, Any]]):
    pass


PROJECTIONS = {"ConvergeFramed": Framed, "ConvergeKept": Kept, "ConvergeTold": Told}


class Machine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="converge-")
        self.log = ms.open(f"{self.folder.name}/log.db")
        self.model: list[tuple[str, int]] = []
        self.codes = dict.fromkeys(PROJECTIONS, 1)
        self.ids = 0
        Told.performed.clear()
        CRASHES.clear()
        self.app = self.made()

    def made(self) -> ms.App:
        places = {"ConvergeFramed": None, "ConvergeKept": f"{self.folder.name}/kept.db", "ConvergeTold": "told.db"}
        places["ConvergeTold"] = f"{self.folder.name}/told.db"
        placements = []
        for name, cls in PROJECTIONS.items():
            body = {"name": name, "table": "kept"} if cls is Kept else {"name": name}
            made: Any = type(cls.__name__, (cls,), {**body, "version": self.codes[name]})
            placements.append(made.into(places[name]))
        app = ms.App(self.log, projections=[Written.inline(), *placements])

        @app.command
        def add(command: Add, tally: Tally) -> None:
            tally.add(command.name, command.n)

        return app

    @rule(events=st.lists(st.tuples(NAMES, st.integers(-5, 5)), min_size=1, max_size=6))
    def append(self, events: list[tuple[str, int]]) -> None:
        self.log.append("plain", [Added(name=name, n=n) for name, n in events])
        self.model += events

    @rule(names=st.lists(NAMES, min_size=2, max_size=200))
    def append_frame(self, names: list[str]) -> None:
        self.log.append("frames", pl.DataFrame({"name": names, "n": [1] * len(names)}), type="ConvergeAdded")
        self.model += [(name, 1) for name in names]

    @rule(name=NAMES, n=st.integers(0, 30), twice=st.booleans())
    def execute(self, name: str, n: int, twice: bool) -> None:
        self.ids += 1
        command = Add(f"tally-{name}", name, n)
        try:
            receipt = self.app.execute(command, id=f"c-{self.ids}")
        except ms.Rejected:
            return
        self.model.append((name, n))
        if twice:
            assert self.app.execute(command, id=f"c-{self.ids}") == receipt

    @rule(moves=st.lists(st.tuples(NAMES, st.integers(0, 30)), min_size=1, max_size=3))
    def execute_together(self, moves: list[tuple[str, int]]) -> None:
        try:
            self.app.execute_together([Add(f"tally-{name}", name, n) for name, n in moves])
        except ms.Rejected:
            return
        self.model += moves

    @rule()
    def start(self) -> None:
        self.app.start()

    @rule(pause=st.sampled_from([0.0, 0.01, 0.05]))
    def stop(self, pause: float) -> None:
        time.sleep(pause)
        self.app.stop()

    @rule(times=st.integers(1, 3))
    def crash(self, times: int) -> None:
        """The next transactions of workers and builds come to nothing in the middle."""
        CRASHES.extend([True] * times)

    @rule()
    def hand_over(self) -> None:
        """The workers stop wherever they are, and others go on."""
        self.app.stop()
        self.app = self.made()

    @rule(name=st.sampled_from(list(PROJECTIONS)))
    def rebuild(self, name: str) -> None:
        with suppress(ms.StorageError):
            self.app.rebuild(name)

    @rule(name=st.sampled_from(list(PROJECTIONS)))
    def rebuild_that_is_broken_off(self, name: str) -> None:
        class Killed(BaseException):
            pass

        def break_off(progress: Any) -> None:
            if progress.position:
                raise Killed

        with suppress(Killed, ms.StorageError):
            self.app.rebuild(name, progress=break_off)

    @rule(name=st.sampled_from(list(PROJECTIONS)))
    def roll_back(self, name: str) -> None:
        try:
            version = self.app.rollback(name)
        except ms.NotFound:
            return
        # An older version may be of older code, which is what runs from here on.
        live = [each for each in self.versions(name) if each.number == version.number]
        assert live[0].state == "live"

    @rule(name=st.sampled_from(list(PROJECTIONS)))
    def change_code(self, name: str) -> None:
        self.app.stop()
        self.codes[name] += 1
        self.app = self.made()

    @rule(position=st.integers(0, 200))
    def ask_the_past(self, position: int) -> None:
        position = min(position, self.log.head)

        class Past(ms.Query[dict[str, int]]):
            pass

        kept = next(each for each in self.app._placements if each.name == "ConvergeKept").projection

        @self.app.query(reads=[kept])
        def past(query: Past, db: ms.Database) -> dict[str, int]:
            return {row["name"]: row["n"] for row in db.query("select * from framed")}

        CRASHES.clear()
        if position:
            assert self.app.query(Past(), at=ms.Position(position)) == fold(self.model[:position])

    def versions(self, name: str) -> Any:
        return next(each for each in self.app.read_models() if each.name == name).versions

    @invariant()
    def the_write_side_is_level(self) -> None:
        if hasattr(self, "log"):
            assert self.log.head == len(self.model)
            with self.log.connect() as db:
                assert {row["name"]: row["n"] for row in db.query("select * from written")} == fold(self.model)

    @precondition(lambda self: hasattr(self, "log"))
    @rule()
    def converge(self) -> None:
        """All that is under way comes to its end: each read model is the fold of the log."""
        CRASHES.clear()
        self.app.stop()
        # Code that was rolled back from stands still until it is built again by command.
        for name in PROJECTIONS:
            live = next(each for each in self.versions(name) if each.state == "live")
            if live.fingerprint != self.app._followers[name].made_by:
                self.app.rebuild(name)
        self.app.start()
        head = self.log.head
        deadline = time.monotonic() + 30
        while any(each.behind or each.failures for each in self.app.read_models()) or len(Told.performed) < head:
            assert time.monotonic() < deadline, (self.app.status(), len(Told.performed), head)
            time.sleep(0.005)
        self.app.stop()
        expected = fold(self.model)
        for name in PROJECTIONS:
            assert self.app.compare(name).same, name
        with self.app._followers["ConvergeFramed"].target.reading() as db:
            assert {row["name"]: row["n"] for row in db.query("select name, n from framed")} == expected
        with self.app._followers["ConvergeKept"].target.reading() as db:
            found = {row["key"]: msgspec.json.decode(row["document"]) for row in db.query("select * from kept")}
        counts = Counter(each for each, _ in self.model)
        assert found == {each: {"n": expected[each], "events": counts[each]} for each in counts}
        assert sorted(Counter(Told.performed).values()) == [1] * head, "an effect was performed twice, or not at all"

    def teardown(self) -> None:
        if hasattr(self, "log"):
            try:
                self.converge()
            finally:
                self.app.stop()
                self.log.close()
                self.folder.cleanup()


def fold(model: list[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, n in model:
        sums[name] = sums.get(name, 0) + n
    return sums


TestConvergence = Machine.TestCase
TestConvergence.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=10,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
