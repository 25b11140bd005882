"""``@on`` and the table of handlers that it makes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

import millstream as ms
from millstream.events import Event, Plain
from millstream.log.handlers import InvalidHandler, handler_table, on, on_batch

if TYPE_CHECKING:
    from millstream.storage.database import Database


class Opened(Event):
    owner: str


class Closed(Event, type="AccountClosed"):
    pass


class Base:
    @on
    def opened(self, event: Opened) -> None: ...


def test_the_type_is_taken_from_the_annotation() -> None:
    table = handler_table(Base)
    assert list(table) == ["Opened"]
    assert table["Opened"].event is Opened
    assert table["Opened"].function is Base.opened


def test_the_type_can_be_given() -> None:
    class Given:
        @on(Closed)
        def closed(self, event: Any) -> None: ...

    assert handler_table(Given)["AccountClosed"].event is Closed


def test_a_type_without_a_class_is_given_by_name_and_decoded_as_plain() -> None:
    class Given:
        @on("Login")
        def login(self, event: Plain) -> None: ...

    assert handler_table(Given)["Login"].event is Plain


def test_a_name_of_old_is_decoded_with_the_class_in_the_annotation() -> None:
    class Given:
        @on("AccountOpened")
        def opened(self, event: Opened) -> None: ...

    assert handler_table(Given)["AccountOpened"].event is Opened


def test_a_union_handles_each_of_its_types() -> None:
    class Both:
        @on
        def either(self, event: Opened | Closed) -> None: ...

    assert {type: h.event for type, h in handler_table(Both).items()} == {
        "Opened": Opened,
        "AccountClosed": Closed,
    }


def test_string_annotations_find_classes_local_to_the_function() -> None:
    class Renamed(Event):
        name: str

    class Local:
        @on
        def renamed(self, event: Renamed) -> None: ...

    assert handler_table(Local)["Renamed"].event is Renamed


def test_string_annotations_find_the_local_class_and_not_the_last_of_that_name() -> None:
    def define() -> tuple[type, type]:
        class Twice(Event):
            pass

        class Local:
            @on
            def twice(self, event: Twice) -> None: ...

        return Local, Twice

    (one, first), (two, second) = define(), define()
    assert handler_table(one)["Twice"].event is first
    assert handler_table(two)["Twice"].event is second


def test_an_annotation_may_name_an_event_that_is_defined_further_down() -> None:
    class Early:
        @on
        def later(self, event: DefinedLater) -> None: ...

    class DefinedLater(Event):
        pass

    assert handler_table(Early)["DefinedLater"].event is DefinedLater


def test_handlers_are_inherited_and_overridden_by_name() -> None:
    class Sub(Base):
        def opened(self, event: Opened) -> None: ...

    assert handler_table(Sub)["Opened"].function is Sub.opened


def test_a_method_defined_anew_no_longer_handles_what_its_namesake_did() -> None:
    class Sub(Base):
        @on(Closed)
        def opened(self, event: Any) -> None: ...

    assert list(handler_table(Sub)) == ["AccountClosed"]


def test_a_subclass_may_handle_a_type_by_another_method() -> None:
    class Sub(Base):
        @on
        def reopened(self, event: Opened) -> None: ...

    assert handler_table(Sub)["Opened"].method == "reopened"


def test_parameters_beyond_the_event_are_listed_with_types_that_may_not_be_importable() -> None:
    class Wide:
        @on
        def opened(self, event: Opened, db: Database, note: str = "") -> None: ...

    db, note = handler_table(Wide)["Opened"].parameters
    assert (db.name, db.annotation, db.required) == ("db", "Database", True)
    assert (note.name, note.annotation, note.required) == ("note", str, False)


def test_two_methods_for_one_type_in_one_class_are_refused() -> None:
    class Double:
        @on
        def one(self, event: Opened) -> None: ...

        @on
        def two(self, event: Opened) -> None: ...

    with pytest.raises(InvalidHandler, match="one handles 'Opened' already"):
        handler_table(Double)


def test_an_event_without_a_type_is_refused() -> None:
    class Bare:
        @on
        def anything(self, event) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(InvalidHandler, match="no annotation"):
        handler_table(Bare)


@pytest.mark.parametrize("annotation", ["int", "Event", "NoSuchClass"])
def test_an_annotation_that_is_no_event_is_refused(annotation: str) -> None:
    def handler(self: Any, event: Any) -> None: ...

    handler.__annotations__["event"] = annotation
    cls = type("Odd", (), {"handler": on(handler)})
    with pytest.raises(InvalidHandler, match="is not a type of event"):
        handler_table(cls)


def test_a_method_that_takes_no_event_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidHandler, match="takes no event"):

        class Odd:
            @on
            def nothing(self) -> None: ...


def test_what_is_no_type_of_event_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidHandler, match="neither an event class"):
        on(int)  # type: ignore[call-overload]


def test_what_would_do_nothing_by_itself_cannot_be_a_handler():
    async def waits(self, event: Opened): ...

    def yields(self, event: Opened):
        yield

    async def both(self, event: Opened):
        yield

    for function in (waits, yields, both):
        for mark in (on, on(Opened), on_batch(Opened)):
            with pytest.raises(InvalidHandler, match="does nothing by itself"):
                mark(function)


def test_functions_that_nobody_would_await_are_refused_where_they_are_given() -> None:
    async def waits(*given: Any) -> bool:
        return True

    keyed = ms.stream("clicks").group_by("user")
    for given in (
        lambda: ms.Outbox("mail", waits),
        lambda: ms.Decider(0, lambda state, command: None, waits),
        lambda: ms.Repository(ms.open(), ms.Aggregate, non_conflicting=waits),
        lambda: ms.capture("sqlite:///shop.sqlite", tables=["users"], rows={"users": waits}),
        lambda: ms.Callback(waits),
        lambda: keyed.fold(waits, start={"n": 0}, schema={"n": pl.Int64}),
        lambda: keyed.process(waits, gives={"n": pl.Int64}),
        lambda: ms.stream("clicks").to_function(waits, name="wait"),
    ):
        with pytest.raises(ms.UsageError, match="does nothing by itself"):
            given()


def test_work_that_nobody_would_await_is_refused() -> None:
    async def work(*given: Any) -> None: ...

    async def main() -> None:
        async with ms.aio.open() as log:
            for asked in (log.transaction(work), log.call(work), log.commit(work=work)):
                with pytest.raises(ms.UsageError, match="does nothing by itself"):
                    await asked
            assert await log.head() == 0
            assert repr(log) == "<millstream.aio.Log in memory>"

    asyncio.run(main())
