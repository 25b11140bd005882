"""Partitions: one read model kept by several workers, each with the events of its keys, in order for each key."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import polars as pl
import pytest
from children import begun
from kept import eventually

import millstream as ms
from millstream.cqrs.lease import Leases
from millstream.cqrs.shares import Keys

STREAMS = 12
FAILING: set[str] = set()


class Noted(ms.Event, type="PartitionsNoted"):
    n: int
    who: str = "a"


class Notes(ms.Projection):
    """Of each stream the numbers that its events had, in the order in which they came."""

    schema = "create table notes (stream varchar(40) primary key, numbers varchar(4000) not null)"
    partitions = 4

    @ms.on
    def noted(self, event: Noted, db: ms.Database, recorded: ms.Recorded) -> None:
        if recorded.stream in FAILING:
            raise ValueError("not yet")
        db.execute(
            "insert into notes (stream, numbers) values (?, ?) on conflict (stream)"
            " do update set numbers = notes.numbers || ' ' || excluded.numbers",
            (recorded.stream, str(event.n)),
        )


class GetNotes(ms.Query[dict]):
    pass


def make(log: ms.Log, placement: Any, table: str = "notes") -> ms.App:
    app = ms.App(log, projections=[placement])

    @app.query
    def get_notes(query: GetNotes, db: ms.Database) -> dict[str, Any]:
        return {row["stream"]: row["numbers"] for row in db.query(f"select * from {table}")}

    return app


@pytest.fixture(autouse=True)
def _nothing_fails() -> None:
    FAILING.clear()


@pytest.fixture(params=["file", "log", "postgres"])
def into(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    return str(tmp_path / "read.db") if request.param == "file" else None


def write(log: ms.Log, first: int, last: int) -> ms.Receipt:
    for n in range(first, last):
        receipt = log.append(f"s{n % STREAMS}", Noted(n=n))
    return receipt


def expected(last: int) -> dict[str, str]:
    return {f"s{i}": " ".join(str(n) for n in range(i, last, STREAMS)) for i in range(min(STREAMS, last))}


def test_each_event_takes_effect_once_in_order_for_each_stream(log: ms.Log, into: Any) -> None:
    write(log, 0, 100)
    with make(log, Notes.into(into)) as app:
        assert app.query(GetNotes(), fresh=True) == expected(100)
        receipt = write(log, 100, 200)
        assert app.query(GetNotes(), after=receipt) == expected(200)
        assert app.answer(GetNotes()).position == 200
        (model,) = app.read_models()
        assert [each.name for each in model.partitions] == [f"Notes/{n}" for n in range(1, 5)]
        eventually(lambda: all(each.holder for each in app.read_models()[0].partitions))
        eventually(lambda: {each.state for each in app.status()} == {ms.State.RUNNING})
        assert app.compare(Notes).same
        assert app.query(GetNotes(), at=ms.Position(50)) == expected(50)


def test_it_is_rebuilt_and_rolled_back_as_one(log: ms.Log, into: Any) -> None:
    write(log, 0, 60)
    with make(log, Notes.into(into)) as app:
        assert app.query(GetNotes(), fresh=True) == expected(60)
        assert app.rebuild(Notes).number == 2
        assert app.query(GetNotes(), after=write(log, 60, 90)) == expected(90)
        app.rollback(Notes)
        assert app.query(GetNotes(), after=write(log, 90, 120)) == expected(120)
        app.rebuild(Notes)
        app.rebuild(Notes)
        assert app.query(GetNotes(), after=write(log, 120, 150)) == expected(150)
        assert app.compare(Notes).same


def test_another_number_of_partitions_is_another_version(log: ms.Log, into: Any) -> None:
    numbers = iter([1, 4, 3, 1, 4])
    last = 0
    for version, count in enumerate(numbers, start=1):
        cls = type("Notes", (Notes,), {"name": "Notes", "partitions": count})
        with make(log, cls.into(into)) as app:
            last += 40
            receipt = write(log, last - 40, last)
            # The version of before shows it where it is kept, else the one that is built does.
            assert app.query(GetNotes(), after=receipt) == expected(last)
            eventually(lambda n=version, a=app: a.read_models()[0].versions[-1].number == n)  # type: ignore[misc]
            eventually(lambda a=app: str(a.read_models()[0].versions[-1].state) == "live")  # type: ignore[misc]
            assert app.query(GetNotes(), fresh=True) == expected(last)


def test_one_partition_that_fails_stops_alone_and_goes_on_when_told(log: ms.Log, tmp_path: Path) -> None:
    write(log, 0, 24)
    with make(log, Notes.into(str(tmp_path / "read.db"))) as app:
        assert app.query(GetNotes(), fresh=True) == expected(24)
        FAILING.add("s0")
        receipt = write(log, 24, 48)
        with pytest.raises(ms.ProjectionFailed, match="Notes/"):
            app.query(GetNotes(), after=receipt)
        (failure,) = app.failures(Notes)
        assert (failure.position, failure.stream) == (25, "s0")
        eventually(lambda: len(running(app)) == 3)
        assert failure.name in app.answer(GetNotes()).problems[0]
        FAILING.clear()
        assert app.retry(Notes) == 1
        assert app.query(GetNotes(), after=receipt) == expected(48)
        FAILING.update(["s1", "s2"])
        write(log, 48, 60)
        eventually(lambda: {each.position for each in app.failures(Notes)} >= {50})
        assert app.skip(Notes).position == 50
        eventually(lambda: {each.position for each in app.failures(Notes) if each.state == "stopped"} == {51})
        assert app.skip(Notes).position == 51
        shown = app.query(GetNotes(), fresh=True)
        assert shown["s1"] == "1 13 25 37"
        assert shown["s3"] == "3 15 27 39 51"


def test_what_is_parked_is_settled_in_the_partition_that_it_is_of(log: ms.Log, tmp_path: Path) -> None:
    class Parking(Notes):
        on_failure = "park"

    FAILING.update(["s1", "s5"])
    write(log, 0, 36)
    with make(log, Parking.into(str(tmp_path / "read.db"))) as app:
        assert app.query(GetNotes(), fresh=True).keys() == expected(36).keys() - FAILING
        assert [each.position for each in app.failures(Parking)] == [2, 6, 14, 18, 26, 30]
        FAILING.clear()
        app.skip(Parking, position=2)
        assert app.query(GetNotes(), fresh=True)["s1"] == "13 25"
        assert app.retry(Parking, position=6) == 3
        assert app.query(GetNotes(), fresh=True)["s5"] == "5 17 29"
        with pytest.raises(ms.NotFound):
            app.retry(Parking, position=3)


def test_it_is_paused_and_resumed_as_one(log: ms.Log, tmp_path: Path) -> None:
    with make(log, Notes.into(str(tmp_path / "read.db"))) as app:
        assert app.query(GetNotes(), after=write(log, 0, 24)) == expected(24)
        app.pause(Notes)
        eventually(lambda: {each.state for each in app.status()} == {ms.State.PAUSED})
        assert "paused" in app.answer(GetNotes()).problems[0]
        receipt = write(log, 24, 48)
        assert app.query(GetNotes()) == expected(24)
        app.resume(Notes)
        assert app.query(GetNotes(), after=receipt) == expected(48)


def test_one_that_is_resumed_is_so_with_whatever_number_of_partitions_it_had(log: ms.Log, tmp_path: Path) -> None:
    into = str(tmp_path / "read.db")
    make(log, Notes.into(into)).pause(Notes)
    fewer = type("Notes", (Notes,), {"partitions": 2})
    make(log, fewer.into(into)).resume(fewer)
    with make(log, Notes.into(into)) as app:
        assert app.query(GetNotes(), after=write(log, 0, 24)) == expected(24)


class Old(ms.Projection):
    schema = "create table old (n bigint)"

    @ms.on
    def noted(self, event: Noted, db: ms.Database) -> None: ...


def test_names_that_begin_alike_are_of_projections_by_themselves(log: ms.Log, tmp_path: Path) -> None:
    into = str(tmp_path / "read.db")
    old, tilde = type("Old1", (Old,), {"name": "Notes/old"}), type("Old2", (Old,), {"name": "Notes~old"})
    one = type("Notes", (Notes,), {"partitions": 1})
    app = ms.App(log, projections=[one.into(into), old.into(into)])
    with app:
        write(log, 0, 12)
        eventually(lambda: [model.position for model in app.read_models()] == [12, 12])
        app.pause(old)
        eventually(lambda: not app.read_models()[1].holder)
        write(log, 12, 24)
        eventually(lambda: app.read_models()[0].position == 24)
    app = ms.App(log, projections=[Notes.into(into), tilde.into(str(tmp_path / "tilde.db"))])
    assert app.read_models()[0].position == 24
    with app:
        eventually(lambda: app.read_models()[1].holder and len(app.read_models()[0].versions) == 2)
        time.sleep(0.5)  # until it is looked again who there is
        eventually(lambda: all(part.holder for part in app.read_models()[0].partitions))


def test_a_process_that_could_not_join_at_first_leaves_when_it_stops(
    log: ms.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, failed = Leases.acquire, threading.Event()

    def once(self: Leases, name: str, *given: Any) -> Any:
        if "~" in name and not failed.is_set():
            failed.set()
            raise ms.StorageError("the connection dropped")
        return acquire(self, name, *given)

    monkeypatch.setattr(Leases, "acquire", once)
    with make(log, Notes.into(str(tmp_path / "read.db"))) as app:
        assert app.query(GetNotes(), after=write(log, 0, 24)) == expected(24)
        assert failed.is_set()
    assert Leases(log).rows("Notes~") == []


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(("field", "value"), [("colour", Colour.RED), ("ref", UUID(int=7)), ("n", 7), ("flag", True)])
def test_a_key_is_the_same_for_one_event_as_in_a_frame(log: ms.Log, field: str, value: Any) -> None:
    class Painted(ms.Event, type="PartitionsPainted"):
        colour: Colour = Colour.RED
        ref: UUID = UUID(int=7)
        n: int = 7
        flag: bool = True

    log.append("s", Painted())
    (run,) = log.runs()
    keys = Keys("Paintings", field, {"PartitionsPainted": Painted})
    key = keys.of(run, Painted(**{field: value}))
    frame = log.scan("s").collect().with_columns(_type=pl.lit("PartitionsPainted"))
    assert keys.among(frame, lambda each: each == key).to_list() == [True]


class ByWho(Notes):
    schema = "create table by_who (stream varchar(40) primary key, numbers varchar(4000) not null)"
    partition_by = "who"
    partitions = 3

    @ms.on
    def noted(self, event: Noted, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute(
            "insert into by_who (stream, numbers) values (?, ?) on conflict (stream)"
            " do update set numbers = by_who.numbers || ' ' || excluded.numbers",
            (event.who, str(event.n)),
        )


class Framed(ByWho):
    schema = "create table framed (stream varchar(40) primary key, numbers bigint not null)"

    @ms.on_batch(Noted)
    def noted(self, frame: pl.DataFrame, db: ms.Database) -> None:
        sums = frame.group_by(stream="who").agg(numbers=pl.col("n").sum())
        db.upsert("framed", sums, key="stream", add=["numbers"])


class Note(msgspec.Struct):
    numbers: list[int] = []


class Measured(ms.Event, type="PartitionsMeasured"):
    at: float | None


class Notebooks(ms.Documents[Note]):
    partitions = 3
    on_failure = "skip"

    def keys_of(self, event: Any, recorded: ms.Recorded) -> list[str]:
        if event.n < 0:
            raise ValueError("no numbers below 0")
        return ["all", event.who]

    @ms.on
    def noted(self, event: Noted, note: Note) -> None:
        note.numbers.append(event.n)


def spread(log: ms.Log) -> dict[str, list[int]]:
    """Events of seven people, each in several streams, some in frames."""
    found: dict[str, list[int]] = {}
    for n in range(0, 120, 3):
        rows = [(k, f"who{k * k % 7}") for k in (n, n + 1, n + 2)]
        for k, who in rows:
            found.setdefault(who, []).append(k)
        if n % 2:
            log.append(f"s{n % 5}", [Noted(n=k, who=who) for k, who in rows])
        else:
            frame = pl.DataFrame({"n": [k for k, _ in rows], "who": [who for _, who in rows]})
            log.append(f"s{n % 5}", frame, type="PartitionsNoted")
    return found


def test_a_field_of_the_events_may_say_what_belongs_together(log: ms.Log, tmp_path: Path) -> None:
    said = spread(log)
    with make(log, ByWho.into(str(tmp_path / "rows.db")), "by_who") as app:
        assert app.query(GetNotes(), fresh=True) == {who: " ".join(map(str, each)) for who, each in said.items()}
        assert app.compare(ByWho).same
    with make(log, Framed.into(str(tmp_path / "frames.db")), "framed") as app:
        assert app.query(GetNotes(), fresh=True) == {who: sum(each) for who, each in said.items()}
        assert app.compare(Framed).same


def test_documents_are_divided_by_their_keys(log: ms.Log, tmp_path: Path) -> None:
    said = spread(log)
    odd = log.append("s1", Noted(n=-1, who="x"))
    app = ms.App(log, projections=[Notebooks.into(str(tmp_path / "docs.db"))])

    @app.query
    def get_notes(query: GetNotes, db: ms.Database) -> dict[str, Any]:
        return {key: note.numbers for key, note in Notebooks.find(db).items()}

    with app:
        assert app.query(GetNotes(), fresh=True) == {**said, "all": list(range(120))}
        assert app.compare(Notebooks).same
        # What has no key is in no partition: the first has it fail, and no other.
        assert [(each.name, each.position) for each in app.failures(Notebooks)] == [("Notebooks/1", odd.position)]


def test_an_event_whose_key_is_none_fails(log: ms.Log, tmp_path: Path) -> None:
    class Odd(ms.Event, type="PartitionsOdd"):
        key: Any

    class Odds(ms.Projection):
        schema = "create table odds (stream text, numbers integer)"
        partitions = 2
        partition_by = "key"
        on_failure = "park"

        @ms.on
        def odd(self, event: Odd, db: ms.Database) -> None:
            db.execute("insert into odds values (?, 1)", (str(event.key),))

    for key in ("a", 1, None, [2], True):
        log.append("odd", Odd(key=key)) if key != [2] else log.append("other", Odd(key=key))
    with make(log, Odds.into(str(tmp_path / "read.db")), "odds") as app:
        assert app.query(GetNotes(), fresh=True).keys() == {"a", "1", "None", "True"}
        (failure,) = app.failures(Odds)
        assert "whole numbers" in failure.error


def test_what_cannot_be_divided_is_refused(log: ms.Log, tmp_path: Path) -> None:
    class Person(ms.Event, type="PartitionsPerson", subject="id"):
        id: str
        name: ms.Personal[str]

    class Reader(Notes):
        reads = (ByWho,)

    class Acting(Notes):
        @ms.on
        def noted(self, event: Noted, effects: ms.Effects) -> None: ...

        def perform(self, effect: ms.Effect) -> None: ...

    class Nameless(Notes):
        partition_by = "nobody"

    class Named(ms.Projection):
        schema = "create table named (name text)"
        partitions = 2
        partition_by = "name"

        @ms.on
        def person(self, event: Person) -> None: ...

    class Listed(Notes):
        partition_by = ["who"]  # type: ignore[assignment]

    class Divided(Notebooks):
        partition_by = "who"

    class Unhandled(Notes):
        partition_by = {Noted: "who", Person: "id"}

    class Floating(ms.Projection):
        schema = "create table floating (name text)"
        partitions = 2
        partition_by = "at"

        @ms.on
        def measured(self, event: Measured) -> None: ...

    class Keyed(Notebooks):
        key = {Noted: "who", Person: "id"}

    for cls, why in (
        (Listed, "partition_by is"),
        (Unhandled, "partition_by has 'Person': 'id', and it handles no such event"),
        (Floating, "'at' of PartitionsMeasured, which holds float"),
        (Keyed, "key has 'Person'"),
        (Reader, "reads"),
        (Acting, "effects"),
        (Nameless, "no field"),
        (Named, "personal"),
    ):
        with pytest.raises(ms.InvalidHandler, match=why):
            ms.App(log, projections=[cls.into(str(tmp_path / "read.db"))])
    with pytest.raises(ms.UsageError, match="by their keys"):
        ms.App(log, projections=[Divided.into(str(tmp_path / "read.db"))])
    for odd in (True, 0, -1, 1.5, "4", 10**9, None):
        with pytest.raises(ms.UsageError, match="partitions is"):
            type("Odd", (Notes,), {"partitions": odd})
    with pytest.raises(ms.InvalidHandler, match="no field 'nobody'"):  # also where nothing is divided
        type("Whole", (Nameless,), {"partitions": 1}).live()
    with pytest.raises(ms.UsageError, match="as a partition"):
        twin = type("Twin", (ByWho,), {"name": "Notes/2", "partitions": 1})
        ms.App(log, projections=[Notes.into(str(tmp_path / "read.db")), twin.into(str(tmp_path / "twin.db"))])


@pytest.mark.parametrize("place", ["live", "inline", "memory", "duckdb"])
def test_where_one_process_keeps_it_anyway_there_is_one_part(log: ms.Log, tmp_path: Path, place: str) -> None:
    paths = {"memory": ":memory:", "duckdb": str(tmp_path / "read.duckdb")}
    placement = Notes.into(paths[place]) if place in paths else getattr(Notes, place)()
    with make(log, placement) as app:
        assert app.query(GetNotes(), after=write(log, 0, 30)) == expected(30)
        assert not app.read_models()[0].partitions


def test_processes_that_begin_at_the_same_moment_make_the_tables_once(log: ms.Log, postgres: str) -> None:
    write(log, 0, 24)
    for cls in (Notes, ByWho):
        ready = threading.Barrier(4)

        def begin(cls: type[ms.Projection] = cls, ready: threading.Barrier = ready) -> ms.App:
            ready.wait()
            return make(log, cls.into(postgres))

        with ThreadPoolExecutor(4) as pool:
            apps = [each.result() for each in [pool.submit(begin) for _ in range(4)]]
        with apps[0] as app:
            app._followers[cls.name].wait(log.head, 10)
            assert app.compare(cls).same


def worker(home: str, path: str) -> subprocess.Popen[str]:
    return begun(f"""
import millstream as ms
from test_partitions import make, Notes
app = make(ms.open({home!r}), Notes.into({path!r}))
app.start()
while sum(each.state is ms.State.RUNNING for each in app.status()) < 2: pass
print("running", flush=True)
app.run()
""")


def running(app: ms.App) -> list[str]:
    return [each.name for each in app.status() if each.state is ms.State.RUNNING and "/" in each.name]


def test_two_processes_share_it_and_of_one_that_is_killed_the_other_keeps_all(log: ms.Log, tmp_path: Path) -> None:
    path = str(tmp_path / "read.db")
    write(log, 0, 20)
    with make(log, Notes.into(path)) as app:
        eventually(lambda: len(running(app)) == 4)
        child = worker(str(tmp_path / "log.db"), path)
        try:
            eventually(lambda: len(running(app)) == 2)
            eventually(lambda: all(each.holder for each in app.read_models()[0].partitions))
            assert app.query(GetNotes(), after=write(log, 20, 60)) == expected(60)
            write(log, 60, 70)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert app.query(GetNotes(), after=write(log, 70, 100)) == expected(100)
        eventually(lambda: len(running(app)) == 4)
        # Who has stopped in order is not waited for either, and leaves no trace.
        second = worker(str(tmp_path / "log.db"), path)
        eventually(lambda: len(running(app)) == 2)
        second.send_signal(signal.SIGTERM)
        second.wait()
        eventually(lambda: len(running(app)) == 4)
        assert app.query(GetNotes(), after=write(log, 100, 130)) == expected(130)
        with log.connect() as db:
            names = [row["name"] for row in db.query("select name from millstream_leases order by name")]
        assert len([name for name in names if "~" in name]) == 1
        assert app.compare(Notes).same
