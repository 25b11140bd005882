"""Commands are checked on their way in: what does not fit is rejected, by field and with the reason."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any

import msgspec
import pytest

import millstream as ms


class Size(Enum):
    SMALL = "small"


class Line(msgspec.Struct, frozen=True):
    article: str
    count: Annotated[int, msgspec.Meta(ge=1)]


class Noted(ms.Event, type="ValidationNoted"):
    text: str


class Note(ms.Aggregate):
    @ms.on
    def noted(self, event: Noted) -> None: ...


class Write(ms.Command):
    note: ms.Ref[Note]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
    price: Decimal = Decimal(1)
    day: date | None = None
    size: Size = Size.SMALL
    lines: tuple[Line, ...] = ()
    anything: Any = None

    def check(self) -> None:
        if self.text == "forbidden":
            raise ms.Rejected("must not say that", field="text")


@pytest.fixture
def seen() -> list[Write]:
    return []


@pytest.fixture
def app(seen):
    app = ms.App(ms.open())

    @app.command
    def write(command: Write, note: Note) -> None:
        seen.append(command)
        note.record(Noted(text=command.text))

    return app


def test_a_value_of_the_wrong_type_is_rejected_with_its_field(app, seen):
    with pytest.raises(ms.Rejected) as caught:
        app.execute(Write("note-1", 7))  # type: ignore[arg-type]
    assert caught.value.field == "text"
    assert caught.value.reason == "Expected `str`, got `int`"
    assert str(caught.value) == "text: Expected `str`, got `int`"
    assert (seen, app.log.head) == ([], 0)


def test_a_value_out_of_its_range_is_rejected(app):
    with pytest.raises(ms.Rejected, match="length >= 1") as caught:
        app.execute(Write("note-1", ""))
    assert caught.value.field == "text"


def test_all_fields_at_fault_are_named(app):
    with pytest.raises(ms.Rejected) as caught:
        app.execute(Write("note-1", "", size="huge", lines=(Line("a", 1), Line("b", 0))))  # type: ignore[arg-type]
    assert list(caught.value.problems) == ["text", "size", "lines[1].count"]


def test_a_command_says_itself_what_it_refuses(app, seen):
    with pytest.raises(ms.Rejected, match="must not say that") as caught:
        app.execute(Write("note-1", "forbidden"))
    assert caught.value.problems == {"text": "must not say that"}
    assert seen == []


@pytest.mark.parametrize("stream", ["", "note-*", "a\nb", 7])
def test_a_reference_that_is_no_streams_name_is_rejected(app, stream):
    with pytest.raises(ms.Rejected) as caught:
        app.execute(Write(stream, "x"))
    assert caught.value.field == "note"


def test_what_stands_for_a_value_becomes_it(app, seen):
    app.execute(Write("note-1", "x", price="9.50", day="2024-02-29", size="small", lines=[Line("a", 1)]))  # type: ignore[arg-type]
    assert seen == [Write("note-1", "x", Decimal("9.50"), date(2024, 2, 29), Size.SMALL, (Line("a", 1),))]


def test_an_object_that_only_this_process_knows_may_be_handed_on(app, seen):
    here = object()
    app.execute(Write("note-1", "x", anything=here))
    assert seen[0].anything is here
    with pytest.raises(ms.Rejected):
        app.execute(Write("note-1", 7, anything=here))  # type: ignore[arg-type]


def test_types_that_are_local_to_a_function_are_checked_too():
    class Inner(msgspec.Struct):
        n: int

    class Local(ms.Command):
        inner: Inner

    app = ms.App(ms.open())
    got = []

    @app.command
    def local(command: Local) -> None:
        got.append(command.inner.n)

    app.execute(Local(Inner(3)))
    with pytest.raises(ms.Rejected, match=r"inner\.n"):
        app.execute(Local(Inner("three")))  # type: ignore[arg-type]
    assert got == [3]


def test_a_command_is_read_from_json_by_its_name(app):
    assert app.parse("Write", '{"note": "note-1", "text": "x", "price": "2.50"}') == Write(
        "note-1", "x", Decimal("2.50")
    )
    with pytest.raises(ms.Rejected) as caught:
        app.parse("Write", {"note": "note-1", "text": "x", "day": "soon"})
    assert caught.value.field == "day"
    with pytest.raises(ms.Rejected) as caught:
        app.parse("Write", b'{"note": 7}')
    assert caught.value.problems == {"note": "Expected `str`, got `int`", "text": "it is missing"}
    with pytest.raises(ms.Rejected, match="no JSON"):
        app.parse("Write", "{")
    with pytest.raises(ms.Rejected, match="Expected `object`"):
        app.parse("Write", "[]")
    with pytest.raises(ms.UnknownCommand) as unknown:
        app.parse("Wrote", "{}")
    assert "Write" in unknown.value.hint


def test_the_handler_is_given_the_time_by_the_logs_clock():
    class Ask(ms.Command):
        pass

    then = datetime(2013, 1, 1, tzinfo=UTC)
    app = ms.App(ms.open(clock=lambda: then))
    seen = []

    @app.command
    def ask(command: Ask, now: datetime) -> None:
        seen.append(now)

    app.execute(Ask())
    assert seen == [then]
