"""Aggregates on their own: state, recording, handlers."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

import millstream as ms


class ItemAdded(ms.Event):
    item: str


class Emptied(ms.Event):
    pass


class Unhandled(ms.Event):
    pass


class Basket(ms.Aggregate):
    limit: ClassVar[int] = 3
    items: list[str] = []
    emptied: int = 0
    note: str

    def add(self, item: str) -> None:
        if len(self.items) == self.limit:
            raise ms.Rejected("the basket is full")
        self.record(ItemAdded(item=item))

    @ms.on
    def added(self, event: ItemAdded) -> None:
        self.items.append(event.item)

    @ms.on
    def was_emptied(self, event: Emptied) -> None:
        self.items.clear()
        self.emptied += 1


def test_recording_changes_the_state_and_keeps_the_event_for_the_log():
    basket = Basket("basket-1")
    basket.add("tea")
    assert basket.items == ["tea"]
    assert basket.version == 1
    assert basket.pending == (ItemAdded(item="tea"),)


def test_defaults_that_can_change_are_copied_for_each_instance():
    one, other = Basket("basket-1"), Basket("basket-2")
    one.add("tea")
    assert other.items == []
    assert Basket.items == []


def test_state_is_what_is_annotated_with_a_value():
    assert vars(Basket("basket-1")) == {"items": [], "emptied": 0}


def test_handlers_and_state_are_inherited():
    class Gift(Basket):
        wrapped: bool = False

        @ms.on
        def was_emptied(self, event: Emptied) -> None:
            super().was_emptied(event)
            self.wrapped = False

    gift = Gift("basket-1")
    gift.add("tea")
    gift.record(Emptied())
    assert vars(gift) == {"items": [], "emptied": 1, "wrapped": False}


def test_an_event_that_no_handler_takes_cannot_be_recorded():
    basket = Basket("basket-1")
    with pytest.raises(ms.HandlerMissing, match="Basket records 'Unhandled'"):
        basket.record(Unhandled())
    assert basket.pending == ()
    assert basket.version == 0


def test_a_handler_that_records_is_refused():
    class Chain(ms.Aggregate):
        @ms.on
        def added(self, event: ItemAdded) -> None:
            self.record(Emptied())

        @ms.on
        def was_emptied(self, event: Emptied) -> None: ...

    with pytest.raises(ms.CannotRecord, match="being changed by a handler"):
        Chain("chain-1").record(ItemAdded(item="tea"))


def test_a_handler_that_asks_for_more_than_the_event_is_refused():
    class Wide(ms.Aggregate):
        @ms.on
        def added(self, event: ItemAdded, db: ms.Database) -> None: ...

    with pytest.raises(ms.InvalidHandler, match="asks for 'db'"):
        Wide("wide-1").record(ItemAdded(item="tea"))


@pytest.mark.parametrize("name", ["id", "version", "record", "pending"])
def test_names_that_every_aggregate_has_cannot_be_taken(name):
    with pytest.raises(ms.UsageError, match=name):
        type("Odd", (ms.Aggregate,), {name: 1})


def test_tags_and_metadata_go_with_the_event():
    basket = Basket("basket-1")
    basket.record(ItemAdded(item="tea"), tags=["item:tea"], metadata={"by": "ann"})
    log = ms.open()
    log.append("basket-1", basket.pending)
    (recorded,) = log.read("basket-1")
    assert recorded.tags == ("item:tea",)
    assert recorded.metadata == {"by": "ann"}


def test_events_without_a_class_are_handled_by_name():
    class Sessions(ms.Aggregate, ignore=["Logout"]):
        users: list[int] = []

        @ms.on("Login")
        def login(self, event: ms.Plain) -> None:
            self.users.append(event.data["user"])

    log = ms.open()
    sessions = ms.Repository(log, Sessions)
    sessions.update("sessions-1", lambda s: s.record(ms.Plain("Login", {"user": 7})))
    log.append("sessions-1", ms.Plain("Logout", {}))
    assert sessions.get("sessions-1").users == [7]
    assert sessions.get("sessions-1").version == 2


def test_events_are_decoded_with_the_handlers_class_and_not_the_last_of_that_name():
    def define() -> tuple[Any, Any]:
        class Local(ms.Event):
            value: int = 0

        class Holder(ms.Aggregate):
            seen: list[bool] = []

            @ms.on
            def local(self, event: Local) -> None:
                self.seen.append(type(event) is Local)

        return Holder, Local

    (holder, local), (_, other) = define(), define()
    log = ms.open()
    log.append("holder-1", [local(value=1), local(value=2)])
    log.append("holder-1", local(value=3))
    assert ms.Repository(log, holder).get("holder-1").seen == [True] * 3
    assert local is not other


def test_an_aggregate_shows_its_state():
    basket = Basket("basket-1")
    basket.add("tea")
    assert repr(basket) == "Basket('basket-1', version=1, items=['tea'], emptied=0)"


def test_an_attribute_that_can_change_must_have_a_type():
    for value in ([], {}, set()):
        with pytest.raises(ms.UsageError, match=r"items has no type.*Annotate it"):
            type("Odd", (ms.Aggregate,), {"items": value})

    class Constants(ms.Aggregate):
        SIZES = [1, 2]
        sizes: ClassVar[list[int]] = [1, 2]
        limit = 3

    assert vars(Constants("a-1")) == {}


def test_what_is_no_event_cannot_be_recorded():
    for wrong in ("added", ItemAdded, ms.Draft(ItemAdded(item="tea"))):
        with pytest.raises(ms.InvalidEvent, match="is not an event"):
            Basket("basket-1").record(wrong)  # type: ignore[arg-type]


def test_a_class_option_that_an_aggregate_has_not_is_told():
    with pytest.raises(ms.UsageError, match=r"Misspelt: an aggregate has no class option ignored=\. There are ignore="):

        class Misspelt(ms.Aggregate, ignored="*"):
            pass
