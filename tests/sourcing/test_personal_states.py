"""Aggregates that hold personal data: what is kept of them does not outlive the key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import millstream as ms


class SignedUp(ms.Event, type="states.SignedUp", subject="customer"):
    customer: str
    name: ms.Personal[str]
    born: ms.Personal[date | None] = None


class Ordered(ms.Event, type="states.Ordered"):
    what: str


class Customer(ms.Aggregate):
    name: str = ""
    born: date | None = None
    orders: list[str] = []

    @ms.on
    def signed_up(self, event: SignedUp) -> None:
        self.name, self.born = event.name, event.born

    @ms.on
    def ordered(self, event: Ordered) -> None:
        self.orders.append(event.what)


def evolve(state: dict[str, Any], event: Any) -> dict[str, Any]:
    return {**state, "name": event.name} if isinstance(event, SignedUp) else {**state, "last": event.what}


EVERYTHING = ms.Decider({}, lambda state, command: command, evolve, name="Everything")


@pytest.fixture
def log(home: str | None, tmp_path: Path) -> Iterator[ms.Log]:
    keys = str(tmp_path / "own.keys") if home and home.startswith("postgres") else None
    with ms.open(home, keys=keys) as log:
        yield log


def fill(log: ms.Log, n: int, *, born: date | None = None) -> None:
    log.append(f"customer-{n}", SignedUp(customer=f"person-{n}", name=f"Annabel Lee {n}", born=born))
    for k in range(5):
        log.append(f"customer-{n}", Ordered(what=f"thing {k}"))


def kept(log: ms.Log) -> dict[tuple[str, int], bytes]:
    with log.connect() as db:
        rows = db.query(f"select stream, version, state from {db.own('millstream_snapshots')}")
    return {(row["stream"], row["version"]): bytes(row["state"]) for row in rows}


@pytest.mark.parametrize("kind", [Customer, EVERYTHING], ids=["class", "decider"])
def test_snapshots_are_sealed_and_gone_with_the_key_of_whom_they_tell_of(log, kind):
    customers: Any = ms.Repository(log, kind, snapshot_every=2, snapshot_after=None, cache=0)
    name = (lambda state: state.name) if kind is Customer else (lambda state: state["name"])
    fill(log, 1)
    fill(log, 2)
    assert [name(customers.get(f"customer-{n}")) for n in (1, 2)] == ["Annabel Lee 1", "Annabel Lee 2"]
    before = kept(log)
    assert len(before) == 6
    assert not any(b"Annabel" in state or b"thing" in state for state in before.values())
    log.forget("person-1")
    # The snapshots that are there tell nothing any more, and the others are still good.
    assert name(customers.get("customer-1")) is ms.Erased
    assert name(customers.get("customer-1", at=3)) is ms.Erased
    assert name(customers.get("customer-2")) == "Annabel Lee 2"
    after = kept(log)
    assert {key: state for key, state in after.items() if key[0] == "customer-2"} == {
        key: state for key, state in before.items() if key[0] == "customer-2"
    }
    assert not set(after.values()) & {state for key, state in before.items() if key[0] == "customer-1"}
    # New ones hold what stands for the erased value, and give it back as it is.
    assert customers.snapshots.count("customer-1") > 0
    assert name(customers.get("customer-1")) is ms.Erased


def test_what_is_in_memory_goes_when_a_key_does(log):
    customers = ms.Repository(log, Customer)
    customers.update("customer-1", lambda c: c.record(SignedUp(customer="person-1", name="Annabel Lee")))
    assert customers.get("customer-1").name == "Annabel Lee"
    log.forget("person-1")
    assert customers.get("customer-1").name is ms.Erased
    customers.update("customer-1", lambda c: c.record(Ordered(what=str(c.name))))
    assert customers.get("customer-1").orders == ["[erased]"]


def test_what_a_decider_of_everything_has_in_memory_goes_too(log):
    everything = ms.Repository(log, EVERYTHING)
    everything.decide("customer-1", SignedUp(customer="person-1", name="Annabel Lee"))
    log.forget("person-1")
    assert everything.get("customer-1")["name"] is ms.Erased


def test_a_key_that_another_process_destroys_counts_too(shared_home, tmp_path):
    keys = str(tmp_path / "own.keys")
    with ms.open(shared_home, keys=keys) as one, ms.open(shared_home, keys=keys) as other:
        customers = ms.Repository(one, Customer)
        fill(one, 1)
        assert customers.get("customer-1").name == "Annabel Lee 1"
        other.forget("person-1")
        assert customers.get("customer-1").name is ms.Erased


@dataclass(frozen=True)
class Born:
    born: date | None = None


def test_what_is_erased_may_stand_where_a_text_cannot(log):
    customers = ms.Repository(log, Customer, snapshot_every=2, snapshot_after=None, cache=0)
    birthdays = ms.Repository(
        log,
        ms.Decider(Born(), lambda s, c: None, lambda s, e: Born(e.born) if isinstance(e, SignedUp) else s),
        snapshot_every=2,
        snapshot_after=None,
        cache=0,
    )
    fill(log, 1, born=date(1990, 5, 5))
    for repository in (customers, birthdays):
        assert repository.get("customer-1").born == date(1990, 5, 5)
    log.forget("person-1")
    for _ in range(2):
        for repository in (customers, birthdays):
            assert repository.get("customer-1").born is ms.Erased
    # A dataclass cannot be read back with it: no snapshot is made, and those of others go on.
    assert customers.snapshots.count("customer-1") == 3
    assert birthdays.snapshots.count("customer-1") == 0
    fill(log, 2, born=date(1991, 6, 6))
    for repository in (customers, birthdays):
        assert repository.get("customer-2").born == date(1991, 6, 6)
        assert repository.snapshots.count("customer-2") == 3
    assert customers.as_of().select("id", "name").rows() == [
        ("customer-1", "[erased]"),
        ("customer-2", "Annabel Lee 2"),
    ]


def test_a_column_of_a_whole_kind_keeps_its_type_when_values_of_it_were_erased(log):
    customers = ms.Repository(log, Customer)
    for n in (1, 2):
        fill(log, n, born=date(1990, 1, n))
    log.forget("person-1")
    found = customers.as_of().select("id", "name", "born").rows()
    assert found == [("customer-1", "[erased]", None), ("customer-2", "Annabel Lee 2", date(1990, 1, 2))]
    log.forget("person-2")
    assert customers.as_of()["born"].to_list() == [None, None]


def test_a_backup_without_keys_keeps_no_state_that_could_be_read(tmp_path):
    # Of all homes, only a file's backup holds the tables beside the log.
    with ms.open(str(tmp_path / "log.db")) as log:
        fill(log, 1)
        ms.Repository(log, Customer, snapshot_every=2, snapshot_after=None).get("customer-1")
        assert kept(log)
        log.backup(str(tmp_path / "copy.db"))
    assert b"Annabel" not in (tmp_path / "copy.db").read_bytes()
    with ms.open(str(tmp_path / "copy.db")) as copy:
        assert kept(copy)
        with pytest.raises(ms.KeyLost, match="person-1"):
            ms.Repository(copy, Customer).get("customer-1")
