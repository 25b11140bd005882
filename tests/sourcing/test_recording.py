"""What can be recorded, on aggregates of either style."""

from __future__ import annotations

from decimal import Decimal

import pytest

import millstream as ms
from sourcing.banking import Account, Deposited, account


@pytest.mark.parametrize("kind", [Account, account], ids=["class", "decider"])
@pytest.mark.parametrize(
    ("event", "options", "error"),
    [
        (None, {}, "not an event"),
        ("Deposited", {}, "not an event"),
        (Deposited, {}, "not an event"),
        (ms.Draft(Deposited(amount=Decimal(1))), {}, "not an event"),
        (Deposited(amount="much"), {}, "amount"),
        (ms.Plain("Deposited", {"amount": "much"}), {}, "amount"),
        (ms.Plain("Deposited", {}), {}, "amount"),
        (Deposited(amount=Decimal(1)), {"tags": "ab"}, "no list"),
        (Deposited(amount=Decimal(1)), {"tags": 5}, "no list"),
    ],
)
def test_what_is_no_event_of_its_class_is_refused_when_it_is_recorded(kind, event, options, error):
    with ms.open() as log:
        accounts = ms.Repository(log, kind)
        with pytest.raises(ms.InvalidEvent, match=error), accounts.edit("account-1") as found:
            found.record(event, **options)
        assert log.head == 0


@pytest.mark.parametrize("kind", [Account, account], ids=["class", "decider"])
def test_an_event_without_its_class_reaches_the_handler_with_it(kind):
    with ms.open() as log:
        accounts = ms.Repository(log, kind)
        with accounts.edit("account-1") as found:
            found.record(ms.Plain("Deposited", {"amount": "5"}))
        assert accounts.get("account-1").balance == Decimal(5)


def test_a_state_is_the_same_when_it_is_recorded_and_when_it_is_rebuilt():
    class Basket(ms.Aggregate):
        last: dict = {}

        @ms.on("BasketFilled")
        def filled(self, event: ms.Plain) -> None:
            self.last = event.data

    with ms.open() as log:
        with ms.Repository(log, Basket).edit("basket-1") as basket:
            basket.record(ms.Plain("BasketFilled", {"total": Decimal("1.50"), "of": (1, 2)}))
        assert basket.last == ms.Repository(log, Basket).get("basket-1").last == {"total": "1.50", "of": [1, 2]}
