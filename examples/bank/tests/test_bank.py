"""The bank as a whole, on a log in a file."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

import millstream as ms
from millstream.testing import FakeClock

from .. import story
from ..bank import Bank


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A bank after the story: three accounts of two customers."""
    path = str(tmp_path / "bank.db")
    story.play(path)
    return path


@pytest.fixture
def bank(path: str) -> Iterator[Bank]:
    with ms.open(path, clock=FakeClock("2024-04-01T09:00:00Z")) as log:
        yield Bank(log)


def balances(bank: Bank, at: datetime | None = None, known: datetime | None = None) -> dict[str, Decimal]:
    return {row["id"]: row["balance"] for row in bank.sheet(at, known=known).iter_rows(named=True)}


def test_money_moves_from_one_account_to_the_other_or_not_at_all(bank: Bank) -> None:
    bank.transfer("account-2", "account-3", Decimal("10.00"))
    assert bank.balance("account-2") == 200
    assert bank.balance("account-3") == Decimal("85.50")
    head = bank.log.head
    for source, target, amount in [("account-2", "account-3", 201), ("account-2", "account-9", 1)]:
        with pytest.raises(ms.Rejected):
            bank.transfer(source, target, Decimal(amount))
    with pytest.raises(ms.Rejected, match="comes from"):
        bank.transfer("account-2", "account-2", Decimal(1))
    assert bank.log.head == head


def test_a_transfer_with_an_id_takes_effect_once(bank: Bank) -> None:
    for _ in range(2):
        assert bank.transfer("account-2", "account-3", Decimal(10), id="request-1") == 200


def test_transfers_to_and_fro_at_once_lose_no_money(bank: Bank) -> None:
    def move(n: int) -> None:
        source, target = ("account-1", "account-2") if n % 2 else ("account-2", "account-1")
        bank.transfer(source, target, Decimal(1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(move, range(20)))
    assert bank.balance("account-1") == 738
    assert bank.balance("account-2") == 210


def test_an_account_is_for_a_customer(bank: Bank) -> None:
    with pytest.raises(ms.NotFound, match="customer-9"):
        bank.open("account-9", "customer-9")


def test_the_statement_shows_what_changed_the_balance(bank: Bank) -> None:
    lines = [(line["what"], line["amount"], line["balance"]) for line in bank.statement("account-1")]
    assert lines == [
        ("AccountOpened", 0, 0),
        ("MoneyDeposited", 1000, 1000),
        ("MoneySent", -250, 750),
        ("FeeCharged", -12, 738),
    ]


def test_the_sheet_of_january_knows_of_the_late_fee_only_if_asked_for_what_is_known_now(bank: Bank) -> None:
    january, march = datetime(2024, 1, 31, 23, tzinfo=UTC), datetime(2024, 3, 31, tzinfo=UTC)
    assert balances(bank, january) == {"account-1": 750, "account-2": 210, "account-3": 0}
    assert balances(bank, january, known=march) == {"account-1": 738, "account-2": 210, "account-3": 0}
    assert balances(bank, known=january) == balances(bank, january)


def test_the_read_model_agrees_with_the_accounts(bank: Bank) -> None:
    bank.transfer("account-2", "account-3", Decimal("0.01"))
    have = {row["customer"]: row["balance"] for row in bank.customers()}
    sheet = bank.sheet()
    assert have == {c: sum(sheet.filter(customer=c)["balance"].to_list()) for c in ("customer-1", "customer-2")}


def test_a_forgotten_customer_has_no_name_and_the_books_still_balance(bank: Bank, path: str) -> None:
    before = balances(bank)
    assert bank.forget("customer-1").events == 1
    assert [row["name"] for row in bank.customers()] == [ms.Erased, "Ben Okafor"]
    assert balances(bank) == before
    assert bank.log.verify().position == bank.log.head
    with ms.open(path) as again:
        assert Bank(again).customers()[0]["name"] is ms.Erased


def test_all_that_is_stored_can_be_read(bank: Bank) -> None:
    assert [found for found in ms.check_schema(bank.log) if found.failed] == []
