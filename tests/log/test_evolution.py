"""Events that were stored in another shape, or under another name, than today's."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

import millstream as ms
from millstream.evolution import definition
from millstream.log.following import _CROWD
from millstream.streams.replay import replay


class Paid(ms.Event, type="evolution.Paid", names=["evolution.Deposited", "Deposited0"], schema=3):
    amount: Decimal
    currency: str = "EUR"


@ms.upcast("evolution.Paid", since=2)
def _in_units(data: dict) -> dict:
    return {"amount": str(Decimal(data["cents"]) / 100)}


class Named(ms.Event, type="evolution.Named"):
    name: str


class Moved(ms.Event, type="evolution.Moved"):
    city: str


@ms.upcast("evolution.Edited", since=2, into=[Named, Moved])
def _split(data: dict) -> list[ms.Plain]:
    return [ms.Plain(f"evolution.{kind}", {key: data[key]}) for key, kind in KINDS.items() if key in data]


KINDS = {"name": "Named", "city": "Moved"}


@ms.upcast("evolution.Counted", since=2)
def _one_each(data: dict) -> list[dict]:
    if data["n"] < 0:
        raise ValueError("negative")
    return [{"one": n} for n in range(data["n"])]


class Counted(ms.Event, type="evolution.Counted", schema=2):
    one: int


@pytest.fixture
def log(home: str | None) -> Iterator[ms.Log]:
    with ms.open(home) as log:
        yield log


def old(cents: int, type: str = "evolution.Paid") -> ms.Plain:
    return ms.Plain(type, {"cents": cents}, schema=1)


def edited(**data: str) -> ms.Plain:
    return ms.Plain("evolution.Edited", data, schema=1)


def counted(n: int) -> ms.Plain:
    return ms.Plain("evolution.Counted", {"n": n}, schema=1)


def shown(events) -> list[tuple[int, int, object]]:
    return [(e.position, e.version, e.event) for e in events]


# --- names and shapes ----------------------------------------------------------------------------------------


def test_what_was_stored_under_an_old_name_is_read_under_the_present_one(log):
    log.append("a-1", ms.Plain("evolution.Deposited", {"amount": "5"}, schema=3))
    log.append("a-1", [ms.Plain("Deposited0", {"amount": str(n)}, schema=3) for n in (6, 7)])
    log.append("a-1", Paid(amount=Decimal(8)))
    found = list(log.read("a-1"))
    assert [e.type for e in found] == ["evolution.Paid"] * 4
    assert [e.event.amount for e in found] == [5, 6, 7, 8]
    assert [e.decode(Paid).amount for e in found] == [5, 6, 7, 8]
    assert found[1].data == {"amount": "6"}


@pytest.mark.parametrize("wanted", [Paid, "evolution.Paid", "evolution.Deposited", "Deposited0"])
def test_a_filter_by_type_finds_all_names_of_it(log, wanted):
    log.append("a-1", [ms.Plain("Other0", {}), old(100, "Deposited0"), old(200), ms.Plain("Other0", {})])
    expected = [(2, 2, Paid(amount=Decimal(1))), (3, 3, Paid(amount=Decimal(2)))]
    assert shown(log.read(types=wanted)) == expected
    assert shown(log.read("a-1", types=[wanted], backwards=True)) == expected[::-1]
    assert [r.position for r in log.runs(types=wanted)] == [2, 3]
    assert shown(log.follow(types=wanted, timeout=0)) == expected
    assert log.scan("a-1", types=wanted).collect()["amount"].to_list() == [Decimal(1), Decimal(2)]


def test_a_guard_by_type_sees_events_under_old_names(log):
    log.append("a-1", old(1, "Deposited0"))
    with pytest.raises(ms.ConditionFailed):
        log.append("a-2", ms.Plain("Other0", {}), unless=ms.Matching(types=(Paid,)))
    with pytest.raises(ms.ConditionFailed):
        log.append("a-2", ms.Plain("Other0", {}), unless=ms.Matching(types=("Deposited0",)))
    log.append("a-2", ms.Plain("Other0", {}), unless=ms.Matching(types=(Paid,), after=1))


def test_a_frame_under_an_old_name_is_read_under_the_present_one_and_is_not_upcast(log):
    log.append("a-1", pl.DataFrame({"amount": [1, 2], "cents": [3, 4]}), type="Deposited0")
    assert [e.event for e in log.read("a-1", types=Paid)] == [Paid(amount=Decimal(n)) for n in (1, 2)]
    assert log.scan("a-1", envelope=True).collect().select("cents", "_type").rows() == [
        (3, "evolution.Paid"),
        (4, "evolution.Paid"),
    ]


def test_functions_are_chained_up_to_the_shape_of_today(log):
    class Sized(ms.Event, type="evolution.Sized", schema=3):
        millimetres: int

    @ms.upcast(Sized, since=2)
    def centimetres(data: dict) -> dict:
        return {"centimetres": data["metres"] * 100}

    @ms.upcast(Sized, since=3)
    def millimetres(data: dict) -> dict:
        return {"millimetres": data["centimetres"] * 10}

    log.append("a-1", ms.Plain("evolution.Sized", {"metres": 2}, schema=1))
    log.append("a-1", ms.Plain("evolution.Sized", {"centimetres": 2}, schema=2))
    log.append("a-1", ms.Plain("evolution.Sized", {"millimetres": 2}))
    assert [e.event.millimetres for e in log.read()] == [2000, 20, 2]


def test_added_fields_with_defaults_and_removed_ones_need_no_function(log):
    class Grown(ms.Event, type="evolution.Grown", schema=4):
        height: int = 7

    log.append("a-1", ms.Plain("evolution.Grown", {"width": 1}, schema=1))
    assert [e.event for e in log.read()] == [Grown()]


def test_each_call_gets_data_of_its_own(log):
    constant = {"tags": ["a"]}

    @ms.upcast("evolution.Shared", since=2)
    def first(data: dict) -> list[dict]:
        return [constant, constant]

    @ms.upcast("evolution.Shared", since=3)
    def second(data: dict) -> dict:
        data["tags"].append("b")
        return data

    log.append("a-1", ms.Plain("evolution.Shared", {}, schema=1))
    for _ in range(2):
        assert [e.data for e in log.read()] == [{"tags": ["a", "b"]}] * 2
    assert constant == {"tags": ["a"]}


def test_upcasting_works_on_merged_bodies_and_does_not_change_what_is_stored(shared_home, tmp_path):
    with ms.open(shared_home) as log:
        for n in range(5):
            log.append("a-1", [old(n * 100), old(n * 100 + 50)])
        before = log.verify().hash
        expected = [e.event for e in log.read()]
        assert log.compact("a-1").bodies == 1
        assert [e.event for e in log.read()] == expected
        assert log.verify().hash == before
        log.archive("a-1", to=str(tmp_path / "archive"))
        assert [e.event for e in log.read("a-1", since_version=4, until_version=7)] == expected[3:6]
        assert log.verify(head=before).archived == 10


def test_an_upcaster_defined_later_counts_for_what_is_read_later(log):
    name = f"evolution.Late {log.id}"
    log.append("a-1", ms.Plain(name, {"a": 1}, schema=1))
    assert next(log.read()).data == {"a": 1}

    @ms.upcast(name, since=2)
    def twice(data: dict) -> dict:
        return {"a": data["a"] * 2}

    assert next(log.read()).data == {"a": 2}


# --- one event that is read as several -----------------------------------------------------------------------


def test_an_event_can_be_read_as_several_of_other_types(log):
    log.append("p-1", [edited(name="Ann", city="Rome"), edited(city="Oslo"), edited(), edited(name="Bo")])
    named = [(1, 1, Named(name="Ann")), (4, 4, Named(name="Bo"))]
    moved = [(1, 1, Moved(city="Rome")), (2, 2, Moved(city="Oslo"))]
    assert shown(log.read()) == [named[0], *moved, named[1]]
    assert shown(log.read(backwards=True)) == [named[1], moved[1], moved[0], named[0]]
    assert shown(log.read(types=Named)) == named
    assert shown(log.read(types=Moved, backwards=True)) == moved[::-1]
    assert shown(log.read(types="evolution.Edited")) == []
    assert [e.event for e in log.read(limit=2)] == [named[0][2], moved[0][2]]
    assert [e.position for e in log.read(after=1)] == [2, 4]
    assert [e.event for e in log.read("p-1", since_version=2, until_version=3)] == [Moved(city="Oslo")]
    with pytest.raises(ms.ConditionFailed):
        log.append("p-2", edited(), unless=ms.Matching(types=(Named,)))


def test_an_event_can_be_read_as_several_of_its_own_type_or_as_none(log):
    log.append("c-1", [counted(n) for n in (2, 0, 1)])
    assert shown(log.read()) == [(1, 1, Counted(one=0)), (1, 1, Counted(one=1)), (3, 3, Counted(one=0))]


def test_a_scan_has_a_row_for_each_of_the_events(log):
    log.append("p-1", [edited(name="Ann", city="Rome"), edited(city="Oslo")])
    frame = log.scan("p-1", envelope=True).collect()
    assert frame.select("_position", "_type", "name", "city").rows() == [
        (1, "evolution.Named", "Ann", None),
        (1, "evolution.Moved", None, "Rome"),
        (2, "evolution.Moved", None, "Oslo"),
    ]


def test_followers_that_share_their_reading_get_what_they_want(log):
    log.append("p-1", [edited(name="Ann", city="Rome"), old(100)])
    found: dict[int, list] = {}
    barrier = threading.Barrier(_CROWD + 2)
    wanted = [Named, Moved, Paid, "Deposited0", None, Named]

    def follow(number: int) -> None:
        barrier.wait()
        found[number] = shown(log.follow(types=wanted[number], timeout=0.5))

    threads = [threading.Thread(target=follow, args=(n,)) for n in range(_CROWD + 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    named, moved, paid = (1, 1, Named(name="Ann")), (1, 1, Moved(city="Rome")), (2, 2, Paid(amount=Decimal(1)))
    assert [found[n] for n in range(6)] == [[named], [moved], [paid], [paid], [named, moved, paid], [named]]


class Seen(ms.Projection):
    schema = "create table seen (position integer, what text)"

    @ms.on
    def named(self, event: Named, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into seen values (?, ?)", (recorded.position, event.name))

    @ms.on
    def moved(self, event: Moved, db: ms.Database, recorded: ms.Recorded) -> None:
        if event.city == "Nowhere":
            raise ValueError("no such city")
        db.execute("insert into seen values (?, ?)", (recorded.position, event.city))

    @ms.on("Deposited0")
    def paid(self, event: Paid, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into seen values (?, ?)", (recorded.position, str(event.amount)))


class AllSeen(ms.Query[list]):
    pass


SEEN = [(1, "Ann"), (1, "Rome"), (2, "1"), (3, "Oslo")]


@pytest.mark.parametrize("place", ["inline before", "inline after", "beside"])
def test_projections_are_given_events_as_they_are_today(log, place):
    events = [edited(name="Ann", city="Rome"), old(100, "evolution.Deposited"), edited(city="Oslo"), edited()]
    if place != "inline before":
        log.append("p-1", events)
    app = ms.App(log, projections=[Seen.into() if place == "beside" else Seen.inline()])

    @app.query
    def all_seen(query: AllSeen, db: ms.Database) -> list:
        rows = db.execute("select position, what from seen order by position, what")
        return [tuple(row) for row in rows.fetchall()]

    with app:
        if place == "inline before":
            log.append("p-1", events)
        assert app.query(AllSeen(), after=log.head) == SEEN


@pytest.mark.parametrize("place", ["inline", "beside"])
def test_a_projection_applies_all_that_was_made_of_an_event_or_nothing(log, place):
    log.append("p-1", [edited(name="Ann"), edited(name="Bo", city="Nowhere"), edited(name="Cy")])
    with pytest.raises(ms.ProjectionFailed) as caught:
        app = ms.App(log, projections=[Seen.into() if place == "beside" else Seen.inline()])

        @app.query
        def all_seen(query: AllSeen, db: ms.Database) -> list:
            return []

        with app:
            app.query(AllSeen(), after=log.head)
    assert caught.value.position == 2
    with log.connect() as db:
        assert [tuple(row) for row in db.execute("select position, what from seen").fetchall()] == [(1, "Ann")]


# --- what cannot be read -------------------------------------------------------------------------------------


def test_a_newer_schema_than_the_class_has_is_named_and_its_plain_data_can_be_read(log):
    log.append("a-1", [ms.Plain("evolution.Paid", {"sum": n}, schema=4) for n in (1, 2)])
    log.append("a-1", Paid(amount=Decimal(3)))
    first, second, third = log.read()
    with pytest.raises(ms.SchemaMismatch) as caught:
        _ = second.event
    error = caught.value
    assert (error.type, error.stored, error.known, error.position) == ("evolution.Paid", 4, 3, 2)
    assert [first.data, second.data] == [{"sum": 1}, {"sum": 2}]
    assert third.event.amount == 3
    with pytest.raises(ms.SchemaMismatch):
        first.decode(Paid)
    assert log.scan("a-1", until="2100-01-01T00:00Z").select("sum").collect()["sum"].to_list() == [1, 2, None]


def test_a_hole_in_a_chain_is_named_when_such_an_event_is_read(log):
    class Holed(ms.Event, type="evolution.Holed", schema=4):
        c: int

    @ms.upcast(Holed, since=3)
    def third(data: dict) -> dict:
        return {"c": data["b"]}

    log.append("a-1", ms.Plain("evolution.Holed", {"a": 1}, schema=1))
    log.append("a-1", ms.Plain("evolution.Holed", {"b": 2}, schema=2))
    log.append("a-1", ms.Plain("evolution.Holed", {"c": 3}, schema=3))
    first, second, third_ = log.read()
    assert (first.position, first.type, first.stream) == (1, "evolution.Holed", "a-1")
    for look in (lambda: first.event, lambda: first.data, lambda: first.run.frame()):
        with pytest.raises(ms.UpcasterMissing) as caught:
            look()
    assert (caught.value.type, caught.value.missing, caught.value.stored) == ("evolution.Holed", 2, 1)
    assert (second.event.c, third_.event.c) == (2, 3)


def test_an_upcaster_that_fails_is_named_with_the_event_and_the_others_are_read(log):
    log.append("c-1", [counted(n) for n in (1, -1, 2)])
    one, bad, *rest = log.read()
    with pytest.raises(ms.UpcastFailed, match="negative") as caught:
        _ = bad.event
    assert (caught.value.type, caught.value.since, caught.value.position) == ("evolution.Counted", 2, 2)
    assert isinstance(caught.value.__cause__, ValueError)
    assert [e.event.one for e in (one, *rest)] == [0, 0, 1]


@pytest.mark.parametrize(
    "result",
    [None, "text", 7, {1, 2}, ["text"], {"a": {1: object()}}, ms.Plain("Elsewhere", {}), [[{}]], {"_position": 1}],
    ids=lambda result: type(result).__name__,
)
def test_a_result_that_is_no_event_is_refused(log, result):
    @ms.upcast("evolution.Wrong", since=2, into=["evolution.Named"])
    def wrong(data: dict):
        return result

    log.append("a-1", ms.Plain("evolution.Wrong", {}, schema=1))
    [event] = log.read()
    with pytest.raises(ms.UpcastFailed):
        _ = event.data


def test_what_fails_is_not_passed_over_by_those_who_want_what_it_could_have_been(log):
    @ms.upcast("evolution.Broken", since=2, into=[Named])
    def broken(data: dict) -> dict:
        raise LookupError("gone")

    log.append("p-1", [Named(name="Ann"), ms.Plain("evolution.Broken", {}, schema=1)])
    first, second = log.read(types=Named)
    assert first.event == Named(name="Ann")
    with pytest.raises(ms.UpcastFailed):
        _ = second.event


def test_an_upcaster_to_a_schema_that_the_class_does_not_have_is_told(log):
    class Behind(ms.Event, type="evolution.Behind"):
        a: int

    @ms.upcast(Behind, since=2)
    def ahead(data: dict) -> dict:
        return data

    log.append("a-1", Behind(a=1))
    [event] = log.read()
    with pytest.raises(ms.InvalidUpcaster, match="schema=2"):
        _ = event.event


@pytest.mark.parametrize(
    ("type", "options"),
    [
        ("A", {"since": 1}),
        ("A", {"since": True}),
        ("A", {"since": "2"}),
        (7, {"since": 2}),
        ("A", {"since": 2, "into": "B"}),
        ("A", {"since": 2, "into": [7]}),
    ],
)
def test_an_upcaster_with_wrong_arguments_is_refused(type, options):
    with pytest.raises(ms.InvalidUpcaster):
        ms.upcast(type, **options)


# --- definitions ---------------------------------------------------------------------------------------------


def defined(module: str, source: str) -> dict:
    """What a module of this name has after it was read, for the first time or again."""
    made = sys.modules.setdefault(module, types.ModuleType(module))
    exec(source, made.__dict__)
    return made.__dict__


def test_another_class_of_a_name_is_refused_unless_it_has_the_same_shape():
    source = "import millstream as ms\nclass Twin(ms.Event, type='evolution.Twin'):\n    a: int"
    defined("evolution_a", source)
    defined("evolution_a", source + "\n    b: int = 0")  # the module was changed and read again
    with pytest.raises(ms.DuplicateType, match=r"evolution_a\.Twin and evolution_b\.Twin"):
        defined("evolution_b", source)
    defined("evolution_b", source + "\n    b: int = 0")  # a class that has moved
    with pytest.raises(ms.DuplicateType):
        defined("evolution_c", source.replace("'):", "', schema=2):") + "\n    b: int = 0")
    del sys.modules["evolution_b"].Twin  # and now there is one class again
    defined("evolution_c", source)


def test_an_old_name_that_another_class_has_is_refused():
    source = "import millstream as ms\nclass {}(ms.Event, type='evolution.{}', names={}):\n    a: int"
    defined("evolution_d", source.format("New", "New", ["evolution.Ancient"]))
    with pytest.raises(ms.DuplicateType):
        defined("evolution_d", source.format("Other", "Other", ["evolution.Ancient"]))
    with pytest.raises(ms.DuplicateType):
        defined("evolution_d", source.format("Other", "Other", ["evolution.New"]))
    with pytest.raises(ms.DuplicateType):
        defined("evolution_d", source.format("Ancient", "Ancient", []))
    defined("evolution_d", source.format("New", "New", []))  # it no longer has that name
    defined("evolution_d", source.format("Ancient", "Ancient", []))


@pytest.mark.parametrize("names", ["Old", 7, [""], [7], ["a\n"]])
def test_old_names_that_are_none_are_refused(names):
    with pytest.raises(ms.InvalidEvent):

        class Wrong(ms.Event, names=names):
            a: int


def test_two_upcasters_for_one_step_are_refused_but_a_module_can_be_read_again():
    source = "import millstream as ms\n@ms.upcast('evolution.Step', since=2)\ndef {}(data):\n    return data"
    defined("evolution_e", source.format("one"))
    defined("evolution_e", source.format("one"))
    with pytest.raises(ms.InvalidUpcaster, match="both make schema 2"):
        defined("evolution_e", source.format("two"))


def test_a_fingerprint_changes_with_the_shape_and_with_the_upcasters():
    def made(source: str) -> bytes:
        return definition(defined("evolution_f", f"import millstream as ms\n{source}")["Print"])

    plain = "class Print(ms.Event, type='evolution.Print'):\n    a: int"
    first = made(plain)
    assert made(plain) == first
    assert made(plain + "\n    b: int = 0") != made(plain + "\n    b: int = 1") != first
    assert made(plain) == first
    upcast = "@ms.upcast('evolution.Blueprint', since=2, into=['evolution.Print'])\ndef f(data):\n    return data"
    assert made(f"{plain}\n{upcast}") != first
    assert made(f"{plain}\n{upcast}") != made(f"{plain}\n{upcast} or {{'a': 2}}")


# --- elsewhere -----------------------------------------------------------------------------------------------


def test_exported_events_are_of_today_and_read_the_same_where_they_are_imported(log, tmp_path: Path):
    log.append("a-1", [old(100, "Deposited0"), old(250)])
    log.append("a-1", ms.Plain("evolution.Paid", {"amount": "7"}, schema=2))
    log.append("a-1", [edited(name="Ann", city="Rome"), ms.Plain("Free", {"x": 1}, schema=5)])
    log.append("a-1", pl.DataFrame({"amount": [4]}), type="evolution.Paid")
    events = [e.event for e in log.read()]
    file = str(tmp_path / "events.ndjson")
    assert log.export(file) == 7
    with ms.open() as other:
        assert other.import_(file) == 7
        assert [e.event for e in other.read()] == events
        again = str(tmp_path / "again.ndjson")
        other.export(again)
        with ms.open() as third:
            third.import_(again)
            assert [e.event for e in third.read()] == events


def test_inline_handlers_are_given_events_as_they_are_today(log):
    found = []
    log.inline("x", [Paid, Named], lambda db, runs: found.extend(e.event for run in runs for e in run))
    log.append("a-1", [old(100, "Deposited0"), old(200), edited(city="Oslo"), edited(name="Ann", city="Rome")])
    log.append("a-1", edited(city="Rome"))
    assert found == [Paid(amount=Decimal(1)), Paid(amount=Decimal(2)), Named(name="Ann")]


def test_a_flow_sees_rows_as_they_are_today(log):
    log.append("p-1", [edited(name="Ann", city="Rome"), edited(city="Oslo"), old(100)])
    flow = ms.stream("p-1", types=[Moved, Named]).filter(pl.lit(True)).select("name", "city")
    for rows in (1, 2, 65_536):
        assert replay(flow, log, rows=rows).rows() == [("Ann", None), (None, "Rome"), (None, "Oslo")]


def test_the_check_counts_what_fails_and_says_where(log):
    log.append("a-1", [old(1), old(2), ms.Plain("evolution.Paid", {}, schema=1)])
    log.append("a-1", [ms.Plain("evolution.Paid", {}, schema=9), edited(name="Ann", city="Rome"), ms.Plain("Free", {})])
    log.append("a-1", [counted(-1), counted(3), Paid(amount=Decimal(1))])
    log.append("a-1", pl.DataFrame({"x": [1, 2]}), type="evolution.Paid")
    found = {(c.type, c.schema): (c.count, c.failed, c.unknown, c.position) for c in log.check_schema()}
    assert found == {
        ("Free", 1): (1, 0, 1, 6),
        ("evolution.Counted", 1): (2, 1, 0, 7),
        ("evolution.Edited", 1): (1, 0, 0, 5),
        ("evolution.Paid", None): (2, 2, 0, 10),
        ("evolution.Paid", 1): (3, 1, 0, 3),
        ("evolution.Paid", 3): (1, 0, 0, 9),
        ("evolution.Paid", 9): (1, 1, 0, 4),
    }
