"""Personal data: sealed in the log, read as before, and erased for good when a subject is forgotten."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import polars as pl
import pytest

import millstream as ms
from millstream import aio, events
from millstream.events import event_class
from millstream.log.following import _CROWD
from millstream.log.personal.keyfile import KeyFile
from millstream.storage.base import Scope


class Address(msgspec.Struct):
    street: str
    city: str


class Registered(ms.Event, subject="customer"):
    customer: str
    name: ms.Personal[str]
    email: ms.Personal[str | None] = None
    born: ms.Personal[date | None] = None
    balance: ms.Personal[Decimal] = Decimal(0)
    address: ms.Personal[Address | None] = None
    plan: str = "free"


class Moved(ms.Event, type="PersonMoved", subject="who", rename="camel", omit_defaults=True):
    who: str
    new_street: ms.Personal[str] = "unknown"


class Met(ms.Event, type="PersonMet", subject="who", omit_defaults=True):
    who: str = "nobody"
    name: ms.Personal[str]


ANN = Registered(
    customer="customer-7",
    name="Ann Smith",
    email="ann@example.org",
    born=date(1990, 1, 2),
    balance=Decimal("12.50"),
    address=Address("High Street 1", "Leeds"),
)
BOB = Registered(customer="customer-8", name="Bob Lee")


def gone(event: Registered) -> bool:
    return all(getattr(event, name) is ms.Erased for name in ("name", "email", "born", "balance", "address"))


@pytest.fixture
def keys(home: str | None, tmp_path: Path) -> str | None:
    """What `ms.open` takes for keys: nothing, where there is a default."""
    return str(tmp_path / "keys.db") if home is not None and "://" in home else None


@pytest.fixture
def log(home: str | None, keys: str | None) -> Iterator[ms.Log]:
    with ms.open(home, keys=keys) as log:
        yield log


def stored(log: ms.Log) -> str:
    """All bodies of the log as they are stored."""
    found = []
    for row in log.store.page(Scope(), 0, log.head + 1, 1000):
        found.append(row[5] or log.store.body(row[10])[1].decode("latin-1"))
    return "\n".join(found)


class Joined(ms.Event, type="PersonJoined", subject="who", schema=3):
    who: str
    first: ms.Personal[str]
    last: ms.Personal[str]
    cents: ms.Personal[int]


@ms.upcast(Joined, since=2)
def _told_apart(data: dict[str, str]) -> dict[str, str]:
    name = data.pop("name")
    first, last = (name, name) if name is ms.Erased else name.split(" ")
    return {**data, "first": first, "last": last}


@ms.upcast(Joined, since=3)
def _in_cents(data: dict[str, int]) -> dict[str, int]:
    euros = data.pop("euros")
    if euros is not ms.Erased:
        return {**data, "cents": euros * 100}
    if data["who"] == "customer-9":
        raise ValueError("no euros")
    return {**data, "cents": ms.Erased}


class Born(ms.Event, type="PersonBorn", subject="who"):
    who: str
    on: ms.Personal[date]

    def __post_init__(self) -> None:
        if self.on.year > 2100:
            raise ValueError("not yet")


# --- sealed and read ------------------------------------------------------------------------------------


def test_personal_data_is_sealed_in_the_log_and_read_as_it_was(log: ms.Log) -> None:
    log.append("customer-7", ANN)
    log.append("batch", [ANN, BOB, ANN], tags=["t"])
    log.append("customer-8", ms.Draft(BOB, metadata={"by": "x"}))
    assert [e.event for e in log.read()] == [ANN, ANN, BOB, ANN, BOB]
    assert [e.event for e in log.read(backwards=True)] == [BOB, ANN, BOB, ANN, ANN]
    assert next(log.read("customer-7")).data["address"] == {"street": "High Street 1", "city": "Leeds"}
    assert [e.data["name"] for e in log.read("batch")] == ["Ann Smith", "Bob Lee", "Ann Smith"]
    text = stored(log)
    assert "customer-7" in text
    for private in ("Ann", "Smith", "example.org", "1990", "12.50", "Street", "Leeds", "Bob"):
        assert private not in text


def test_frames_scans_and_sql_see_plain_values(log: ms.Log) -> None:
    log.append("people", [ANN, BOB])
    frame = log.scan("people").collect()
    assert frame["name"].to_list() == ["Ann Smith", "Bob Lee"]
    assert frame["born"].to_list() == [date(1990, 1, 2), None]
    assert log.sql("select name from people order by name")["name"].to_list() == ["Ann Smith", "Bob Lee"]
    assert [run.frame().height for run in log.runs("people")] == [2]


def test_the_schema_of_a_kind_names_its_sealed_fields_as_they_are_in_the_json(log: ms.Log) -> None:
    log.append("m", Moved(who="customer-7", new_street="Low Road 5"))
    [run] = log.runs("m")
    assert run.schema == "1 sealed newStreet"
    assert next(iter(run)).event == Moved(who="customer-7", new_street="Low Road 5")


def test_a_default_that_is_left_out_of_the_json_is_sealed_like_any_value(log: ms.Log) -> None:
    log.append("m", Moved(who="customer-7"))
    assert '"newStreet":"sealed:' in stored(log)
    assert next(log.read("m")).event == Moved(who="customer-7")


def test_readers_without_the_class_see_plain_values_too(log: ms.Log) -> None:
    class Left(ms.Event, type="LeftForGood", subject="who"):
        who: str
        why: ms.Personal[str]

    log.append("l", Left(who="customer-7", why="too dear"))
    del events._registry["LeftForGood"]
    events._defined += 1
    assert next(log.read("l")).event == ms.Plain("LeftForGood", {"who": "customer-7", "why": "too dear"})
    log.forget("customer-7")
    assert next(log.read("l")).data["why"] is ms.Erased


def test_a_plain_event_of_a_type_with_personal_fields_is_sealed_as_its_class_says(log: ms.Log) -> None:
    log.append("p", ms.Plain("Registered", {"customer": "customer-7", "name": "Ann Smith", "extra": 1}))
    assert "Smith" not in stored(log)
    assert next(log.read("p")).data == {"customer": "customer-7", "name": "Ann Smith", "extra": 1}
    with pytest.raises(ms.InvalidEvent, match="does not fit Registered"):
        log.append("p", ms.Plain("Registered", {"name": "Ann Smith"}))


def test_a_subject_that_is_a_default_may_be_left_out_of_the_data(log: ms.Log) -> None:
    log.append("p", Met(name="Ann Smith"))
    log.append("p", ms.Plain("PersonMet", {"name": "Bob Lee"}))
    assert "Smith" not in stored(log)
    assert "Lee" not in stored(log)
    assert [e.event for e in log.read("p")] == [Met(name="Ann Smith"), Met(name="Bob Lee")]
    assert log.forget("nobody").events == 2


def test_a_repeat_of_an_append_by_its_id_has_no_effect(log: ms.Log) -> None:
    receipt = log.append("customer-7", ANN, id="once")
    assert log.append("customer-7", ANN, id="once") == receipt
    assert log.head == 1
    with pytest.raises(ms.IdReused):
        log.append("customer-7", BOB, id="once")


def test_transactions_followers_and_inline_handlers_see_plain_values(log: ms.Log) -> None:
    seen: list[object] = []
    log.inline("names", [Registered], lambda db, runs: seen.extend(e.event for run in runs for e in run))
    with log.transaction() as tx:
        tx.append("customer-7", [ANN, BOB])
    log.append("customer-8", BOB)
    assert seen == [ANN, BOB, BOB]
    assert [e.event for e in log.follow(timeout=0)] == [ANN, BOB, BOB]


def test_compaction_keeps_what_is_sealed(log: ms.Log) -> None:
    for _ in range(5):
        log.append("batch", [ANN, BOB])
        log.append("single", ANN)
    log.compact()
    log.compact("single")
    assert "Smith" not in stored(log)
    assert [e.event for e in log.read("batch")] == [ANN, BOB] * 5
    assert [e.event for e in log.read("single")] == [ANN] * 5
    log.verify()


def test_a_projection_sees_plain_values_and_then_what_stands_for_them(log: ms.Log) -> None:
    class Names(ms.Projection):
        schema = "create table names (id text primary key, name text)"

        @ms.on
        def registered(self, event: Registered, db: ms.Database) -> None:
            db.execute("insert into names values (?, ?)", (event.customer, event.name))

    log.append("customer-7", ANN)
    log.forget("customer-7")
    log.append("customer-8", BOB)
    app = ms.App(log, projections=[Names.inline()])
    app.start()
    log.append("customer-5", Registered(customer="customer-5", name="Eve Moss"))
    app.stop()
    with log.connect() as db:
        rows = db.query("select id, name from names order by id")
    assert [row["name"] for row in rows] == ["Eve Moss", "[erased]", "Bob Lee"]


# --- forgotten ------------------------------------------------------------------------------------------


def test_a_forgotten_subject_reads_as_erased_and_others_as_before(log: ms.Log) -> None:
    log.append("customer-7", ANN)
    log.append("batch", [ANN, BOB, ANN])
    log.forget("customer-7")
    first, *batch = [e.event for e in log.read(types=[Registered])]
    assert gone(first)
    assert first.customer == "customer-7"
    assert first.plan == "free"
    assert [gone(event) for event in batch] == [True, False, True]
    assert batch[1] == BOB
    assert [e.event for e in log.follow(types=[Registered], timeout=0)] == [first, *batch]
    assert [run.events() for run in log.runs("batch")] == [batch]
    assert next(log.read("customer-7")).data["born"] is ms.Erased
    log.verify()


def test_columns_keep_their_type_when_some_of_their_values_are_erased(log: ms.Log) -> None:
    log.append("people", [ANN, msgspec.structs.replace(BOB, born=date(2000, 1, 1), balance=Decimal("1.5"))])
    log.forget("customer-7")
    frame = log.scan("people").collect()
    assert frame["name"].to_list() == ["[erased]", "Bob Lee"]
    assert frame["born"].to_list() == [None, date(2000, 1, 1)]
    assert isinstance(frame.schema["balance"], pl.Decimal)


def test_upcasters_are_given_what_stands_for_erased_values(log: ms.Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(number: int) -> ms.Event:
        return Joined0(who=f"customer-{number}", name="Ann Smith", euros=3)

    class Joined0(ms.Event, type="PersonJoined", subject="who"):
        who: str
        name: ms.Personal[str]
        euros: ms.Personal[int]

    monkeypatch.setitem(events._registry, "PersonJoined", Joined0)
    log.append("j", [joined(7), joined(8), joined(9)])
    monkeypatch.setitem(events._registry, "PersonJoined", Joined)
    events.defined()
    log.forget("customer-7")
    log.forget("customer-9")
    seven, eight, nine = log.read("j")
    assert eight.event == Joined(who="customer-8", first="Ann", last="Smith", cents=300)
    assert seven.event.first is seven.event.last is seven.event.cents is ms.Erased
    with pytest.raises(ms.UpcastFailed, match=r"no euros .*Erased is its euros"):
        nine.event  # noqa: B018


def test_a_class_that_checks_what_was_erased_is_told_so(log: ms.Log) -> None:
    log.append("b", [Born(who="customer-7", on=date(1990, 1, 2)), Born(who="customer-8", on=date(1990, 1, 2))])
    log.forget("customer-7")
    seven, eight = log.read("b")
    assert eight.event.on == date(1990, 1, 2)
    with pytest.raises(ms.InvalidEvent, match="Erased is its on"):
        seven.event  # noqa: B018
    assert seven.data["on"] is ms.Erased


def test_what_is_reported_is_what_became_unreadable_and_a_repeat_says_the_same(log: ms.Log) -> None:
    log.append("customer-7", ANN)
    log.append("batch", [BOB, ANN, ANN])
    log.append("other", ms.Plain("Note", {"about": "customer-7"}))
    head = log.head
    found = log.forget("customer-7")
    assert (found.subject, found.events, found.first, found.last) == ("customer-7", 3, 1, 4)
    assert [(s.stream, s.events, s.first, s.last) for s in found.streams] == [
        ("batch", 2, 3, 4),
        ("customer-7", 1, 1, 1),
    ]
    assert log.head == head + 1
    assert log.forget("customer-7") == found
    assert log.head == head + 1


def test_consumers_that_have_passed_the_events_are_named(log: ms.Log) -> None:
    from millstream.log.checkpoints import advance, take

    log.append("other", ms.Plain("Note", {}))
    log.append("customer-7", ANN)
    log.commit(work=lambda db, receipt: take(db, "projection:early"))
    log.commit(work=lambda db, receipt: advance(db, take(db, "projection:names"), 2) and None)
    assert log.forget("customer-7").models == ("projection:names",)


def test_nothing_is_appended_for_who_was_forgotten(log: ms.Log) -> None:
    log.append("customer-7", ANN)
    log.forget("customer-7")
    head = log.head
    with pytest.raises(ms.SubjectForgotten, match="customer-7") as caught:
        log.append("customer-8", [BOB, ANN])
    assert caught.value.subject == "customer-7"
    assert log.head == head
    log.append("customer-8", BOB)


def test_a_subject_of_whom_nothing_is_known_is_forgotten_all_the_same(log: ms.Log) -> None:
    found = log.forget("customer-9")
    assert (found.events, found.streams, found.models) == (0, (), ())
    with pytest.raises(ms.SubjectForgotten):
        log.append("s", Registered(customer="customer-9", name="Cid Ray"))


def test_what_was_staged_before_and_committed_after_reads_as_erased(log: ms.Log) -> None:
    staged = log.stage("customer-7", ANN)
    log.forget("customer-7")
    log.commit([staged])
    assert gone(next(log.read("customer-7")).event)


def test_an_erased_value_can_be_appended_again(log: ms.Log) -> None:
    log.append("customer-7", ANN)
    log.forget("customer-7")
    erased = next(log.read("customer-7")).event
    log.append("customer-7", erased)
    assert [gone(e.event) for e in log.read("customer-7")] == [True, True]


def test_the_log_itself_tells_who_was_forgotten_and_takes_no_other_events_there(log: ms.Log) -> None:
    log.forget("customer-7")
    [told] = log.read("$privacy")
    assert (told.type, told.data) == ("$SubjectForgotten", {"subject": "customer-7"})
    with pytest.raises(ms.InvalidStreamName):
        log.append("$privacy", ms.Plain("X", {}))


def test_followers_that_share_what_was_read_do_not_see_what_was_forgotten(log: ms.Log) -> None:
    log.append("customer-7", ANN)
    followers = [log.follow("customer-7", timeout=5) for _ in range(6)]
    assert [next(f).event for f in followers] == [ANN] * 6
    log.append("customer-7", ANN)
    assert next(followers[0]).event == ANN
    log.forget("customer-7")
    assert all(gone(next(f).event) for f in followers[1:])
    for follower in followers:
        follower.close()  # type: ignore[attr-defined]


async def _forget(home: str | None, keys: str | None) -> int:
    async with aio.open(home, keys=keys) as log:
        await log.append("customer-7", ANN)
        return int((await log.forget("customer-7")).events)


class ForgettingKeys:
    """Keys of which one is destroyed by somebody else just when it is asked, so many times, whether any was."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}
        self.looks: int | None = None
        self.destroyed = 0

    @property
    def generation(self) -> int:
        if self.looks is not None:
            self.looks -= 1
            if self.looks == 0:
                self.keys.pop("customer-7")
                self.destroyed += 1
        return self.destroyed

    def get(self, subject: str) -> bytes | None:
        return self.keys.get(subject)

    def create(self, subject: str) -> bytes:
        return self.keys.setdefault(subject, subject.encode().rjust(32))

    def forget(self, subject: str) -> bool:
        raise NotImplementedError

    def forgotten(self, subject: str) -> bool:
        return subject not in self.keys

    def discard(self, name: str) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("known", [False, True])
def test_what_followers_share_does_not_outlast_a_key_that_was_destroyed_as_it_was_read(known: bool) -> None:
    for looks in (1, 2, 3, 4):
        keys = ForgettingKeys()
        with ms.open(keys=keys) as log, ExitStack() as followers:
            log.append("customer-7", ANN)
            if known:
                assert next(log.read("customer-7")).event == ANN
            for _ in range(_CROWD):
                followers.enter_context(log.tail.joined())
            keys.looks = looks
            for _ in range(looks + 1):
                found = log.tail.after(0)
                assert found is not None
                events = [event.event for seen in found[0] for event in seen.events()]
            assert keys.destroyed == 1
            assert gone(events[0])


def test_the_face_for_asyncio_forgets_too(home: str | None, keys: str | None) -> None:
    import asyncio

    assert asyncio.run(_forget(home, keys)) == 1


def test_what_stands_for_erased_values_is_one_object() -> None:
    assert ms.Erased == "[erased]"
    assert isinstance(ms.Erased, str)
    assert repr(ms.Erased) == "ms.Erased"
    assert pickle.loads(pickle.dumps(ms.Erased)) is ms.Erased
    assert copy.deepcopy([ms.Erased])[0] is ms.Erased
    assert copy.copy(ms.Erased) is ms.Erased


# --- frames ---------------------------------------------------------------------------------------------


def people() -> pl.DataFrame:
    columns = {
        "customer": ["customer-7", "customer-8", "customer-7"],
        "name": ["Ann Smith", "Bob Lee", "Ann Brown"],
        "born": [date(1990, 1, 2), None, date(1990, 1, 2)],
        "balance": [Decimal("1.50"), Decimal("2.25"), None],
        "plan": ["free", "paid", "free"],
    }
    return pl.DataFrame(columns, schema_overrides={"balance": pl.Decimal(10, 2)})


def test_personal_columns_of_a_frame_are_sealed_row_by_row_and_read_with_their_types(log: ms.Log) -> None:
    log.append("people", people(), type="Registered")
    assert log.scan("people").collect().equals(people())
    assert log.scan("people").select("name").collect()["name"].to_list() == ["Ann Smith", "Bob Lee", "Ann Brown"]
    assert [e.data for e in log.read("people")] == people().to_dicts()
    assert next(log.read("people")).event.name == "Ann Smith"
    [run] = log.runs("people")
    assert msgspec.json.decode(run.schema)[1:3] == [
        ["name", ["sealed", "customer", "str"]],
        ["born", ["sealed", "customer", "date"]],
    ]
    [row] = log.store.page(Scope(), 0, 4, 9)
    raw = pl.read_ipc_stream(log.store.body(row[10])[1])
    assert raw.schema["name"] == pl.Binary
    assert raw["plan"].to_list() == ["free", "paid", "free"]
    assert not any(b"Smith" in value for value in raw["name"])
    log.verify()


def test_the_rows_of_a_forgotten_subject_are_erased_in_frames(log: ms.Log, tmp_path: Path) -> None:
    log.append("people", people(), type="Registered")
    log.append("people", people(), type="Registered", tags=["second"])
    log.append("people", ANN)
    log.compact()
    log.archive("people", to=str(tmp_path / "old"))
    found = log.forget("customer-7")
    assert [(s.stream, s.events, s.first, s.last) for s in found.streams] == [("people", 5, 1, 7)]
    frame = log.scan("people").filter(pl.col("balance").is_not_null()).collect()
    assert frame["name"].to_list() == ["Bob Lee", "Bob Lee"]
    assert log.scan("people").collect()["name"].to_list()[:3] == ["[erased]", "Bob Lee", "[erased]"]
    assert log.scan("people").collect().schema["born"] == pl.Date
    events = [e.event for e in log.read("people")]
    assert [event.name is ms.Erased for event in events] == [True, False, True] * 2 + [True]
    assert events[0].born is ms.Erased
    assert events[1].balance == Decimal("2.25")
    assert next(log.read("people")).data["balance"] is ms.Erased
    with pytest.raises(ms.SubjectForgotten):
        log.append("people", people(), type="Registered")
    log.verify()


def test_times_numbers_and_bytes_in_personal_columns_come_back_as_they_were(log: ms.Log) -> None:
    class Visit(ms.Event, type="PersonalVisit", subject="who"):
        who: str
        at: ms.Personal[datetime]
        weight: ms.Personal[float]
        photo: ms.Personal[bytes]
        age: ms.Personal[int]

    at = datetime(2024, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    frame = pl.DataFrame(
        {"who": ["customer-7"], "at": [at], "weight": [float("inf")], "photo": [b"\0\xff"], "age": [2]},
        schema_overrides={"age": pl.UInt8},
    ).with_columns(pl.col("at").dt.convert_time_zone("Europe/Berlin"))
    log.append("visits", frame, type="PersonalVisit")
    assert log.scan("visits").collect().equals(frame)


# --- refused --------------------------------------------------------------------------------------------


def test_personal_data_in_names_tags_metadata_and_subjects_is_refused(log: ms.Log) -> None:
    with pytest.raises(ms.InvalidEvent, match="stream's name"):
        log.append("customer-ann@example.org", ANN)
    with pytest.raises(ms.InvalidEvent, match="tag 'name:Ann Smith'"):
        log.append("customer-7", ANN, tags=["name:Ann Smith"])
    with pytest.raises(ms.InvalidEvent, match="metadata"):
        log.append("customer-7", ANN, metadata={"who": ["Ann Smith"]})
    with pytest.raises(ms.InvalidEvent, match="subject"):
        log.append("s", Registered(customer="ann@example.org", name="Ann", email="ann@example.org"))
    log.append("annals-7", Registered(customer="customer-7", name="ann"))  # a part of a word tells of nobody
    assert log.head == 1


def test_a_frame_whose_rows_do_not_say_whose_they_are_or_cannot_be_sealed_is_refused(log: ms.Log) -> None:
    for wrong in (
        pl.DataFrame({"name": ["Ann Smith"]}),
        pl.DataFrame({"customer": ["customer-7", None], "name": ["Ann Smith", "Bob Lee"]}),
        pl.DataFrame({"customer": [7], "name": ["Ann Smith"]}),
        pl.DataFrame({"customer": ["customer-7"], "name": [["Ann", "Smith"]]}),
        pl.DataFrame({"customer": ["customer-7"], "name": ["customer-7"]}),
        pl.DataFrame({"customer": ["customer-7"], "born": pl.Series([2**31 - 1], dtype=pl.Int32).cast(pl.Date)}),
    ):
        with pytest.raises(ms.InvalidEvent):
            log.append("people", wrong, type="Registered")
    assert log.head == 0


def test_an_empty_subject_is_refused(log: ms.Log) -> None:
    with pytest.raises(ms.InvalidEvent, match="subject"):
        log.append("s", Registered(customer="", name="Ann Smith"))


def test_names_of_the_keys_of_snapshots_are_no_subjects(log: ms.Log) -> None:
    # Their keys are thrown away, and made again, whenever a subject of the stream is forgotten.
    for event in (
        BOB.replace(customer="snapshot:s"),
        pl.DataFrame({"customer": ["snapshot:s"], "name": ["Ann Smith"]}),
    ):
        with pytest.raises(ms.InvalidEvent, match="is not a subject"):
            log.append("s", event, type="Registered" if isinstance(event, pl.DataFrame) else None)
    with pytest.raises(ms.InvalidEvent, match="is not a subject"):
        log.forget("snapshot:s")


def test_a_class_must_say_whose_data_it_has() -> None:
    with pytest.raises(ms.InvalidEvent, match="does not say whose"):
        type(ms.Event)("A", (ms.Event,), {"__module__": __name__, "__annotations__": {"name": ms.Personal[str]}})


@pytest.mark.parametrize(
    ("annotations", "subject", "message"),
    [
        ({"name": ms.Personal[str]}, "name", "personal itself"),
        ({"name": ms.Personal[str], "id": int}, "id", "no str"),
        ({"name": ms.Personal[str], "id": str | None}, "id", "no str"),
        ({"name": ms.Personal[str]}, "id", "none of its fields"),
        ({"names": list[ms.Personal[str]], "id": str}, "id", "inside"),
        ({"name": ms.Personal[str] | None, "id": str}, "id", "inside"),
    ],
)
def test_what_is_declared_wrongly_is_told_when_the_class_is_defined(
    annotations: dict[str, object], subject: str, message: str
) -> None:
    with pytest.raises(ms.InvalidEvent, match=message):
        type(ms.Event)("Wrong", (ms.Event,), {"__module__": __name__, "__annotations__": annotations}, subject=subject)
    assert event_class("Wrong") is None


def test_a_subclass_has_the_personal_fields_and_the_subject_of_its_base(log: ms.Log) -> None:
    class Upgraded(Registered):
        phone: ms.Personal[str] = ""

    log.append("customer-7", Upgraded(customer="customer-7", name="Ann Smith", phone="0123456"))
    assert "0123456" not in stored(log)
    assert "Smith" not in stored(log)
    log.forget("customer-7")
    assert next(log.read("customer-7")).event.phone is ms.Erased


# --- keys -----------------------------------------------------------------------------------------------


def test_keys_stand_beside_the_log_for_its_owner_alone_and_only_when_needed(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with ms.open(path) as log:
        log.append("s", ms.Plain("Note", {}))
        list(log.read())
        assert not os.path.exists(f"{path}-keys")
        log.append("customer-7", ANN)
    for name in ("shop.db-keys", "shop.db-keys-journal"):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600


def test_nothing_of_a_destroyed_key_is_left_in_its_files(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.db")
    keys = KeyFile(path)
    subjects = [f"customer-{n * 7919 % 3001}" for n in range(3001)]
    made = keys.create_many(subjects)
    made.update((f"late-{n}", keys.create(f"late-{n}")) for n in range(50))
    for subject in (*subjects[::50], *(f"late-{n}" for n in range(0, 50, 3))):
        assert keys.forget(subject)
        left = b"".join(Path(path + end).read_bytes() for end in ("", "-journal"))
        assert made[subject] not in left
    assert keys.get(subjects[1]) == made[subjects[1]]
    keys.close()


def test_in_postgres_keys_must_be_given(postgres: str, tmp_path: Path) -> None:
    with ms.open(postgres) as log:
        with pytest.raises(ms.KeysNeeded, match="keys="):
            log.append("customer-7", ANN)
        assert log.head == 0
    with ms.open(postgres, keys=tmp_path / "keys.db") as log:
        log.append("customer-7", [ANN, BOB])
    with ms.open(postgres) as log:
        [first, second] = log.read("customer-7")
        assert (first.position, first.type, second.version) == (1, "Registered", 2)
        with pytest.raises(ms.KeysNeeded):
            first.event  # noqa: B018


def test_a_key_store_of_ones_own_is_asked_instead(home: str | None) -> None:
    class Service:
        def __init__(self) -> None:
            self.keys: dict[str, bytes] = {}
            self.gone: set[str] = set()

        def get(self, subject: str) -> bytes | None:
            return self.keys.get(subject)

        def create(self, subject: str) -> bytes:
            if subject in self.gone:
                raise ms.SubjectForgotten(subject)
            return self.keys.setdefault(subject, os.urandom(32))

        def forget(self, subject: str) -> bool:
            self.gone.add(subject)
            return self.keys.pop(subject, None) is not None

        def forgotten(self, subject: str) -> bool:
            return subject in self.gone

        def discard(self, name: str) -> None:
            self.keys.pop(name, None)

    service = Service()
    with ms.open(home, keys=service) as log:
        log.append("customer-7", ANN)
        assert next(log.read("customer-7")).event == ANN
        service.forget("customer-7")  # by somebody else
        assert gone(next(log.read("customer-7")).event)


def test_without_the_package_that_encrypts_the_extra_is_named(log: ms.Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append("customer-7", ANN)
    log.append("other", ms.Plain("Note", {}))
    log.keys.close()
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ms.MissingExtra, match="personal"):
        log.append("customer-8", BOB)
    first, second = log.read()
    assert second.event == ms.Plain("Note", {})
    with pytest.raises(ms.MissingExtra):
        first.event  # noqa: B018


@pytest.mark.parametrize("wrong", [7, object(), "", "postgresql://x"])
def test_keys_that_cannot_be_kept_anywhere_are_refused_when_the_log_is_opened(wrong: object) -> None:
    with pytest.raises(ms.UsageError):
        ms.open(keys=wrong)  # type: ignore[arg-type]


def test_another_file_is_not_taken_for_keys(tmp_path: Path) -> None:
    ms.open(tmp_path / "other.db").close()
    (tmp_path / "text").write_text("no database at all " * 100)
    for name in ("other.db", "text"):
        with ms.open(keys=tmp_path / name) as log, pytest.raises(ms.UsageError, match="no file of keys"):
            log.append("customer-7", ANN)


def test_a_log_that_is_only_read_makes_no_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with ms.open(path) as log:
        log.append("customer-7", ANN)
        log.append("customer-8", BOB)
    os.remove(f"{path}-keys")
    os.remove(f"{path}-keys-journal")
    with ms.open(path, readonly=True) as log:
        with pytest.raises(ms.KeyLost):
            next(log.read("customer-7")).event  # noqa: B018
        with pytest.raises(ms.ReadOnlyLog):
            log.append("customer-7", ANN)
        with pytest.raises(ms.ReadOnlyLog):
            log.forget("customer-7")
    assert not os.path.exists(f"{path}-keys")


def destroy(path: str, subject: str, key: bytes | None) -> None:
    """Take a key away, or put another in its place, behind the library's back."""
    with sqlite3.connect(path) as db:
        if key is None:
            db.execute("delete from names where name = ?", (subject,))
        else:
            db.execute("update keys set key = ? where id = (select id from names where name = ?)", (key, subject))
    db.close()


@pytest.mark.parametrize(("key", "error"), [(None, ms.KeyLost), (b"x" * 32, ms.KeyWrong)])
def test_a_lost_or_wrong_key_is_an_error_of_its_subject_alone(
    shared_home: str, tmp_path: Path, key: bytes | None, error: type[ms.KeyLost]
) -> None:
    path = str(tmp_path / "keys.db")
    with ms.open(shared_home, keys=path) as log:
        log.append("batch", [BOB, ANN, BOB])
        log.append("customer-7", ANN)
        log.append("customer-8", BOB)
    destroy(path, "customer-7", key)
    with ms.open(shared_home, keys=path) as log:
        found = list(log.read())
        assert [e.position for e in found] == [1, 2, 3, 4, 5]
        assert [e.event for e in found if e.position not in (2, 4)] == [BOB, BOB, BOB]
        assert found[0].data["name"] == "Bob Lee"
        with pytest.raises(error, match="customer-7") as caught:
            found[1].event  # noqa: B018
        assert type(caught.value) is error
        assert (caught.value.subject, caught.value.stream, caught.value.position) == ("customer-7", "batch", 2)
        with pytest.raises(error):
            found[3].data  # noqa: B018
        with pytest.raises(error):
            log.scan("customer-7").collect()
        assert log.scan("customer-8").collect()["name"].to_list() == ["Bob Lee"]
        log.verify()


def test_the_check_of_what_is_stored_reads_personal_data_and_names_lost_keys(shared_home: str, tmp_path: Path) -> None:
    path = str(tmp_path / "keys.db")
    with ms.open(shared_home, keys=path) as log:
        log.append("batch", [BOB, ANN, BOB])
        log.append("rows", pl.DataFrame({"customer": ["customer-7"], "name": ["Ann Smith"]}), type="Registered")
        assert [(c.count, c.failed, c.reason) for c in ms.check_schema(log) if c.type == "Registered"] == [
            (1, 0, ""), (3, 0, ""),
        ]  # fmt: skip
    destroy(path, "customer-7", None)
    with ms.open(shared_home, keys=path) as log:
        found = [c for c in ms.check_schema(log) if c.type == "Registered"]
        assert [(c.count, c.failed, c.position) for c in found] == [(1, 1, 4), (3, 1, 2)]
        assert "customer-7" in found[1].reason
        log.forget("customer-7")
        assert not any(c.failed for c in ms.check_schema(log))


def test_what_was_changed_in_a_sealed_value_is_not_given_as_if_it_were_true(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with ms.open(path) as log:
        log.append("customer-7", ANN)
        log.append("customer-8", BOB)
    with sqlite3.connect(path) as db:
        [body] = db.execute("select body from runs where position = 2").fetchone()
        start = body.index("sealed:") + 30
        changed = body[:start] + ("A" if body[start] != "A" else "B") + body[start + 1 :]
        db.execute("update runs set body = ? where position = 2", (changed,))
    db.close()
    with ms.open(path) as log:
        with pytest.raises(ms.KeyWrong, match="customer-8"):
            next(log.read("customer-8")).event  # noqa: B018


def test_snapshots_can_be_sealed_and_lose_their_keys_with_a_subject_of_their_stream(log: ms.Log) -> None:
    log.append("customer-7", ANN)
    sealed = log.keys.seal("snapshot:customer-7", b"state")
    other = log.keys.seal("snapshot:customer-8", b"other")
    assert b"state" not in sealed
    assert log.keys.unseal("snapshot:customer-7", sealed) == b"state"
    before = log.keys.generation
    log.forget("customer-7")
    assert log.keys.generation != before
    assert log.keys.unseal("snapshot:customer-7", sealed) is None
    assert log.keys.unseal("snapshot:customer-8", other) == b"other"
    again = log.keys.seal("snapshot:customer-7", b"new state")
    assert log.keys.unseal("snapshot:customer-7", again) == b"new state"
    assert log.keys.unseal("snapshot:customer-7", sealed) is None
    log.keys.discard("snapshot:customer-8")
    assert log.keys.unseal("snapshot:customer-8", other) is None


# --- copies, backups, exports ---------------------------------------------------------------------------


def test_backups_and_copies_hold_no_keys_and_old_ones_are_erased_with_the_log(shared_home: str, tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.db")
    backup, copied, later = (str(tmp_path / name) for name in ("backup.db", "copied.db", "later.db"))
    with ms.open(shared_home, keys=keys) as log:
        log.append("customer-7", ANN)
        log.backup(backup)
        log.copy_to(copied)
        with ms.open(backup) as old, pytest.raises(ms.KeyLost):
            next(old.read("customer-7")).event  # noqa: B018
        with ms.open(backup, keys=keys) as old:
            assert next(old.read("customer-7")).event == ANN
        log.forget("customer-7")
        log.backup(later)
    for path in (backup, copied, later):
        with ms.open(path, keys=keys) as old:
            assert gone(next(old.read("customer-7")).event)
            old.verify()
    with ms.open(later) as copy_without_keys:
        assert gone(next(copy_without_keys.read("customer-7")).event)
    for file in tmp_path.iterdir():
        if file.name not in ("keys.db", "log.db-keys"):
            assert b"Ann Smith" not in file.read_bytes()


def test_what_is_exported_is_sealed_again_where_it_is_imported(log: ms.Log, tmp_path: Path) -> None:
    log.append("customer-7", ANN)
    log.append("customer-8", BOB)
    log.forget("customer-8")
    log.export(str(tmp_path / "out.ndjson"))
    lines = (tmp_path / "out.ndjson").read_text().splitlines()
    line = msgspec.json.decode(lines[0])
    assert line["personal"] == ["address", "balance", "born", "email", "name"]
    assert line["data"]["name"] == "Ann Smith"
    with ms.open() as other:
        other.import_(str(tmp_path / "out.ndjson"))
        assert next(other.read("customer-7")).event == ANN
        assert gone(next(other.read("customer-8")).event)
        assert "Smith" not in stored(other)
        other.forget("customer-7")
        assert gone(next(other.read("customer-7")).event)


def test_personal_data_is_not_imported_in_the_clear(tmp_path: Path) -> None:
    line = {"type": "Unheard", "stream": "s", "personal": ["name"], "data": {"id": "c", "name": "Ann Smith"}}
    file = tmp_path / "in.ndjson"
    file.write_bytes(msgspec.json.encode(line) + b"\n")
    with ms.open() as log, pytest.raises(ms.InvalidEvent, match=r"line 1 .*'name' of a 'Unheard' event is personal"):
        log.import_(str(file))


def test_archived_personal_data_is_sealed_and_erased_too(log: ms.Log, tmp_path: Path) -> None:
    for _ in range(3):
        log.append("customer-7", ANN)
    log.archive("customer-7", to=str(tmp_path / "old"))
    assert [e.event for e in log.read("customer-7")] == [ANN] * 3
    for file in (tmp_path / "old").rglob("*.parquet"):
        assert "Ann Smith" not in str(pl.read_parquet(file).to_dicts())
    assert log.forget("customer-7").events == 3
    assert all(gone(e.event) for e in log.read("customer-7"))


def test_a_subject_is_forgotten_though_some_of_their_events_cannot_be_read(log: ms.Log, tmp_path: Path) -> None:
    for _ in range(3):
        log.append("customer-7", ANN)
    log.append("customer-8", ANN)
    state = log.keys.seal("snapshot:customer-7", b"state")
    log.archive("customer-7", to=str(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    with pytest.raises(ms.DepotError) as caught:
        log.forget("customer-7")
    assert "is destroyed" in caught.value.__notes__[0]
    assert gone(next(log.read("customer-8")).event)
    assert log.keys.unseal("snapshot:customer-7", state) is None
    (tmp_path / "elsewhere").rename(tmp_path / "old")
    assert log.forget("customer-7").events == 4
    assert all(gone(e.event) for e in log.read("customer-7"))


def test_snapshots_of_what_was_trimmed_are_lost_with_any_subject(log: ms.Log) -> None:
    for _ in range(3):
        log.append("customer-7", ANN)
    state = log.keys.seal("snapshot:customer-7", b"state")
    log.append("customer-7", BOB)
    assert log.trim("customer-7", keep=1).events == 3
    assert log.forget("customer-7").events == 0
    assert log.keys.unseal("snapshot:customer-7", state) is None


# --- processes ------------------------------------------------------------------------------------------

_CHILD = """
import sys
import millstream as ms

class Registered(ms.Event, subject="customer"):
    customer: str
    name: ms.Personal[str]

log = ms.open(sys.argv[1], keys=sys.argv[2])
"""


def child(home: str, keys: str, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CHILD + code, home, keys]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=50)


def test_a_subject_forgotten_by_another_process_is_forgotten_in_this_one(shared_home: str, tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.db")
    with ms.open(shared_home, keys=keys) as log:
        log.append("customer-7", [ANN, BOB])
        assert next(log.read("customer-7")).event == ANN
        before = log.keys.generation
        done = child(shared_home, keys, "print(log.forget('customer-7').events)")
        assert done.stdout == "1\n", done.stderr
        assert log.keys.generation != before
        first, second = log.read("customer-7")
        assert gone(first.event)
        assert second.event == BOB
        with pytest.raises(ms.SubjectForgotten):
            log.append("customer-7", ANN)


def test_processes_make_one_key_for_a_subject(shared_home: str, tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.db")
    code = "for n in range(30): log.append(f's-{n}', Registered(customer=f'customer-{n}', name=f'Person {n:03}'))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", _CHILD + code, shared_home, keys]
    ms.open(shared_home).close()
    running = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, complaint = process.communicate(timeout=50)
        assert process.returncode == 0, complaint.decode()
    with ms.open(shared_home, keys=keys) as log:
        assert sorted(e.data["name"] for e in log.read()) == sorted([f"Person {n:03}" for n in range(30)] * 3)


def test_a_kill_between_key_and_append_leaves_a_log_that_goes_on(shared_home: str, tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.db")
    code = (
        "import os, signal\n"
        "log.stage('customer-7', Registered(customer='customer-7', name='Ann Smith'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = child(shared_home, keys, code)
    assert done.returncode == -signal.SIGKILL, done.stderr
    key = KeyFile(keys).get("customer-7")
    assert key is not None
    with ms.open(shared_home, keys=keys) as log:
        assert log.head == 0
        log.append("customer-7", ANN)
        assert next(log.read("customer-7")).event == ANN
    assert KeyFile(keys).get("customer-7") == key


def test_a_kill_right_after_the_key_was_destroyed_leaves_the_rest_to_a_repeat(shared_home: str, tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.db")
    with ms.open(shared_home, keys=keys) as log:
        log.append("customer-7", ANN)
    done = child(shared_home, keys, "import os\nlog.keys.forget('customer-7')\nos.kill(os.getpid(), 9)")
    assert done.returncode == -signal.SIGKILL, done.stderr
    with ms.open(shared_home, keys=keys) as log:
        assert gone(next(log.read("customer-7")).event)
        assert not list(log.read("$privacy"))
        assert log.forget("customer-7").events == 1
        assert len(list(log.read("$privacy"))) == 1


def _in_child(log: ms.Log, results: object) -> None:
    try:
        log.append("customer-8", BOB)
        results.put([e.event.name for e in log.read(types=[Registered])])  # type: ignore[attr-defined]
    except BaseException as error:
        results.put(repr(error))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_connection_of_its_own_to_the_keys(shared_home: str, tmp_path: Path) -> None:
    with ms.open(shared_home, keys=str(tmp_path / "keys.db")) as log:
        log.append("customer-7", ANN)
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        process = context.Process(target=_in_child, args=(log, results))
        process.start()
        assert results.get(timeout=30) == ["Ann Smith", "Bob Lee"]
        process.join(30)
        log.forget("customer-8")
        assert [e.event.name for e in log.read(types=[Registered])] == ["Ann Smith", ms.Erased]


def test_a_log_that_was_moved_with_its_keys_reads_as_before(tmp_path: Path) -> None:
    with ms.open(tmp_path / "shop.db") as log:
        log.append("customer-7", ANN)
    for file in list(tmp_path.iterdir()):
        shutil.copy(file, tmp_path / file.name.replace("shop", "moved"))
    with ms.open(tmp_path / "moved.db") as log:
        assert next(log.read("customer-7")).event == ANN


def test_a_file_of_keys_that_is_gone_is_not_begun_anew(tmp_path):
    path = tmp_path / "shop.db"
    keys = tmp_path / "shop.db-keys"
    with ms.open(str(path)) as log:
        log.append("a", Registered(customer="c-1", name="Annabel Lee"))
    kept = keys.read_bytes()
    keys.unlink()
    with ms.open(str(path)) as log:
        with pytest.raises(ms.KeysNeeded, match=r"shop\.db-keys, is not there"):
            log.append("a", Registered(customer="c-1", name="Annabel Lee"))
        assert log.head == 1
        assert not keys.exists()
        log.append("a", ms.Plain("Other", {}))
    keys.touch()
    with ms.open(str(path)) as log:
        log.append("b", Registered(customer="c-2", name="Ben Okafor"))
        assert next(log.read("b")).event.name == "Ben Okafor"
    keys.write_bytes(kept)
    with ms.open(str(path)) as log:
        assert next(log.read("a")).event.name == "Annabel Lee"


def test_a_file_of_keys_from_before_does_not_bring_anybody_back(tmp_path):
    path = tmp_path / "shop.db"
    keys = tmp_path / "shop.db-keys"
    with ms.open(str(path)) as log:
        for n in (1, 2):
            log.append("a", Registered(customer=f"c-{n}", name=f"Annabel Lee {n}"))
    before = keys.read_bytes()
    with ms.open(str(path)) as log:
        log.forget("c-1")
    keys.write_bytes(before)
    with ms.open(str(path)) as log:
        assert [e.event.name for e in log.read("a")] == [ms.Erased, "Annabel Lee 2"]
        with pytest.raises(ms.SubjectForgotten):
            log.append("a", Registered(customer="c-1", name="Annabel Lee"))
