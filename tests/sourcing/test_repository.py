"""Repositories: loading, changing under concurrency, and the past."""

from __future__ import annotations

import gc
import threading
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream as ms
from millstream.testing import FakeClock


class Deposited(ms.Event):
    amount: Decimal


class Withdrawn(ms.Event):
    amount: Decimal


class Account(ms.Aggregate):
    balance: Decimal = Decimal(0)
    log: list[str] = []

    def deposit(self, amount: int) -> None:
        self.record(Deposited(amount=Decimal(amount)))

    def withdraw(self, amount: int) -> None:
        if amount > self.balance:
            raise ms.Rejected("not enough money")
        self.record(Withdrawn(amount=Decimal(amount)))

    @ms.on
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount
        self.log.append(f"{self.version}+")

    @ms.on
    def withdrawn(self, event: Withdrawn) -> None:
        self.balance -= event.amount
        self.log.append(f"{self.version}-")


@pytest.fixture
def clock():
    return FakeClock("2024-01-15T09:00:00Z")


@pytest.fixture
def log(home, clock):
    with ms.open(home, clock=clock) as log:
        yield log


@pytest.fixture
def accounts(log):
    return ms.Repository(log, Account)


def test_update_loads_decides_and_appends(log, accounts):
    receipt = accounts.update("account-1", lambda account: account.deposit(5))
    assert (receipt.position, receipt.version, receipt.count) == (1, 1, 1)
    receipt = accounts.update("account-1", lambda account: (account.deposit(1), account.withdraw(6)))
    assert (receipt.position, receipt.version, receipt.count) == (3, 3, 2)
    assert accounts.get("account-1").balance == 0


def test_a_rejected_change_leaves_nothing(log, accounts):
    with pytest.raises(ms.Rejected):
        accounts.update("account-1", lambda account: (account.deposit(1), account.withdraw(2)))
    assert log.head == 0


def test_a_change_that_records_nothing_writes_nothing(log, accounts):
    accounts.update("account-1", lambda account: account.deposit(5))
    receipt = accounts.update("account-1", lambda account: None)
    assert (receipt.count, receipt.position, log.head) == (0, 1, 1)
    assert (receipt.stream, receipt.version) == ("account-1", 1)


def test_an_aggregate_is_changed_by_what_it_records_and_not_by_what_a_change_returns(log, accounts):
    with pytest.raises(ms.UsageError, match=r"recorded nothing.*self.record"):
        accounts.update("account-1", lambda account: Deposited(amount=Decimal(5)))
    with pytest.raises(ms.UsageError, match="is no function"):
        accounts.update("account-1", Deposited(amount=Decimal(5)))
    assert log.head == 0


def test_what_is_not_there_is_not_found(log, accounts):
    with pytest.raises(ms.StreamNotFound):
        accounts.get("account-1")
    with pytest.raises(ms.StreamNotFound):
        accounts.get("account-1", at=0)
    with pytest.raises(ms.StreamNotFound):
        accounts.history("account-1")
    assert "account-1" not in accounts
    accounts.create("account-1", lambda account: account.deposit(5))
    assert "account-1" in accounts


def test_create_refuses_what_exists(accounts):
    accounts.create("account-1", lambda account: account.deposit(5))
    with pytest.raises(ms.VersionConflict):
        accounts.create("account-1", lambda account: account.deposit(5))


def test_edit_saves_at_the_end_of_the_block(log, accounts):
    with accounts.edit("account-1") as account:
        account.deposit(5)
        assert log.head == 0
    assert account.pending == ()
    with pytest.raises(ms.CannotRecord, match="was saved"):
        account.deposit(7)
    assert accounts.get("account-1").balance == 5


def test_edit_raises_when_another_came_first(accounts):
    def edit() -> None:
        with accounts.edit("account-1") as account:
            account.deposit(5)
            accounts.update("account-1", lambda other: other.deposit(7))

    with pytest.raises(ms.VersionConflict) as caught:
        edit()
    assert (caught.value.stream, caught.value.expected, caught.value.actual) == ("account-1", 0, 1)
    assert accounts.get("account-1").balance == 7


def test_several_aggregates_are_committed_at_once_and_one_that_recorded_nothing_is_passed_over(log, accounts):
    one, other = accounts.load("account-1"), accounts.load("account-2")
    one.deposit(10)
    assert accounts.stage(other) is None
    assert log.commit([accounts.stage(one), accounts.stage(other)]).count == 1
    assert accounts.get("account-1").balance == 10
    assert "account-2" not in accounts


def test_edit_saves_nothing_when_the_block_raises(log, accounts):
    def edit() -> None:
        with accounts.edit("account-1") as account:
            account.deposit(5)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        edit()
    assert log.head == 0


def test_what_was_got_cannot_be_recorded_on(accounts):
    accounts.update("account-1", lambda account: account.deposit(5))
    with pytest.raises(ms.CannotRecord, match="to be read"):
        accounts.get("account-1").deposit(1)
    with pytest.raises(ms.CannotRecord, match="of the past"):
        accounts.get("account-1", at=1).deposit(1)
    with pytest.raises(ms.CannotRecord, match="of the past"):
        next(accounts.history("account-1")).state.deposit(1)


# --- conflicts -------------------------------------------------------------------------------------


def test_eight_threads_on_one_aggregate_lose_nothing(accounts):
    failures = []

    def deposit() -> None:
        try:
            for _ in range(25):
                accounts.update("account-1", lambda account: account.deposit(1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=deposit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    account = accounts.get("account-1")
    assert (account.version, account.balance) == (200, 200)


def test_a_change_is_decided_again_on_what_is_there_then(accounts):
    calls = []

    def change(account: Account) -> None:
        calls.append(account.balance)
        if len(calls) == 1:
            accounts.update("account-1", lambda other: other.deposit(7))
        account.deposit(5)

    accounts.update("account-1", change)
    assert calls == [0, 7]
    assert accounts.get("account-1").balance == 12


def test_update_gives_up_with_a_clear_error(accounts):
    def change(account: Account) -> None:
        accounts.update("account-1", lambda other: other.deposit(1))
        account.deposit(5)

    with pytest.raises(ms.Contended, match="each of the 3 times") as caught:
        accounts.update("account-1", change, attempts=3)
    assert isinstance(caught.value.__cause__, ms.VersionConflict)
    assert (caught.value.stream, caught.value.attempts) == ("account-1", 3)
    assert accounts.get("account-1").balance == 3


# --- the past --------------------------------------------------------------------------------------


@pytest.fixture
def day(log, accounts, clock):
    """+10 at 9:00 (position 1), another stream (2), +20 at 10:00 (3), -5 at 11:00 (4)."""
    accounts.update("account-1", lambda account: account.deposit(10))
    accounts.update("account-2", lambda account: account.deposit(99))
    clock.advance("1h")
    accounts.update("account-1", lambda account: account.deposit(20))
    clock.advance("1h")
    accounts.update("account-1", lambda account: account.withdraw(5))
    clock.advance("1h")


@pytest.mark.usefixtures("day")
@pytest.mark.parametrize(
    ("at", "version", "balance"),
    [
        (0, 0, 0),
        (1, 1, 10),
        (2, 2, 30),
        (3, 3, 25),
        (99, 3, 25),
        (ms.Position(0), 0, 0),
        (ms.Position(2), 1, 10),
        (ms.Position(3), 2, 30),
        (ms.Position(99), 3, 25),
        ("2024-01-15T08:59:59Z", 0, 0),
        ("2024-01-15T09:00:00Z", 1, 10),
        ("2024-01-15T09:59:59.999999Z", 1, 10),
        ("2024-01-15T10:00:00Z", 2, 30),
        ("2024-01-15T12:00:00+01:00", 3, 25),
        (None, 3, 25),
    ],
)
def test_at_is_inclusive(accounts, at, version, balance):
    account = accounts.get("account-1", at=at)
    assert (account.version, account.balance) == (version, balance)


def test_at_may_lie_inside_a_run_of_many_events(log, accounts):
    log.append("account-1", [Deposited(amount=Decimal(n)) for n in range(1, 101)])
    assert accounts.get("account-1", at=50).balance == 1275
    assert accounts.get("account-1", at=ms.Position(50)).balance == 1275


def test_a_frame_of_events_is_applied_as_well(log, accounts):
    log.append("account-1", pl.DataFrame({"amount": [Decimal("1.50"), Decimal("2.25")]}), type="Deposited")
    assert accounts.get("account-1").balance == Decimal("3.75")
    assert accounts.get("account-1", at=1).balance == Decimal("1.50")


@pytest.mark.usefixtures("day")
@pytest.mark.parametrize(("at", "error"), [(-1, ms.UsageError), ("yesterday", ms.InvalidTime), (1.5, ms.InvalidTime)])
def test_a_point_that_cannot_be_understood_is_refused(accounts, at, error):
    with pytest.raises(error):
        accounts.get("account-1", at=at)


@pytest.mark.usefixtures("day")
def test_history_shows_each_event_with_the_state_after_it(accounts):
    steps = list(accounts.history("account-1"))
    assert [(s.recorded.position, s.state.version, s.state.balance) for s in steps] == [
        (1, 1, 10),
        (3, 2, 30),
        (4, 3, 25),
    ]
    assert [len(s.state.log) for s in steps] == [1, 2, 3]


@pytest.mark.usefixtures("day")
def test_history_has_the_same_states_as_the_past(accounts):
    for step in accounts.history("account-1"):
        past = accounts.get("account-1", at=step.state.version)
        assert (vars(past), past.version) == (vars(step.state), step.state.version)


@pytest.mark.usefixtures("day")
def test_diff_names_what_changed_and_through_which_events(accounts):
    found = accounts.diff("account-1", "2024-01-15T09:30:00Z", 3)
    assert (found.before, found.after) == (1, 3)
    assert found.changes["balance"] == ms.Changed(before=Decimal(10), after=Decimal(25))
    assert [e.type for e in found.events] == ["Deposited", "Withdrawn"]


@pytest.mark.usefixtures("day")
def test_diff_goes_backwards_too_and_may_be_empty(accounts):
    back = accounts.diff("account-1", 3, 1)
    assert back.changes["balance"] == ms.Changed(before=Decimal(25), after=Decimal(10))
    assert [e.version for e in back.events] == [2, 3]
    same = accounts.diff("account-1", 2, 2)
    assert (same.changes, same.events) == ({}, ())


def test_an_event_that_does_not_fit_its_class_is_named_with_its_position(log, accounts):
    log.append("account-1", ms.Plain("Deposited", {"amount": "much"}))
    with pytest.raises(ms.InvalidEvent, match=r"'Deposited' at position 1 does not fit Deposited"):
        accounts.get("account-1")


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 9), min_size=1, max_size=5)), max_size=8),
    st.integers(0, 40),
)
def test_every_past_is_the_fold_of_the_events_up_to_it(batches, version):
    """However the events were grouped into appends."""
    log = ms.open()
    signed = []
    for positive, amounts in [(True, [1]), *batches]:
        cls = Deposited if positive else Withdrawn
        log.append("account-1", [cls(amount=Decimal(a)) for a in amounts])
        signed += [a if positive else -a for a in amounts]
    account = ms.Repository(log, Account).get("account-1", at=version)
    assert account.balance == sum(signed[:version])
    assert account.version == min(version, len(signed))
    assert [entry[:-1] for entry in account.log] == [str(n) for n in range(account.version)]


@pytest.mark.parametrize("attempts", [0, -1, 1.5, "many", None, True])
def test_a_number_of_attempts_that_is_none_is_refused(accounts, attempts):
    with pytest.raises(ms.UsageError, match="attempts"):
        accounts.update("account-1", lambda a: a.deposit(1), attempts=attempts)


async def deposit_later(account: Account) -> None:
    account.deposit(1)


def deposit_at_most(account: Account):
    account.deposit(1)
    yield


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (None, "no function"),
        ("deposit", "no function"),
        (deposit_later, "coroutine"),
        (deposit_at_most, "generator"),
        (lambda account: Deposited(amount=Decimal(1)), "recorded nothing"),
        (lambda account: account.deposit, "its method 'deposit' uncalled"),
    ],
)
def test_a_change_that_would_come_to_nothing_is_refused(log, accounts, change, error):
    for ask in (accounts.update, accounts.create):
        with pytest.raises(ms.UsageError, match=error):
            ask("account-1", change)
    assert log.head == 0


def test_create_refuses_what_exists_though_nothing_is_recorded(accounts):
    accounts.create("account-1", lambda a: a.deposit(1))
    with pytest.raises(ms.VersionConflict):
        accounts.create("account-1", lambda a: None)


@pytest.mark.parametrize("wrong", [None, "account-1", 5])
def test_only_aggregates_are_staged(accounts, wrong):
    with pytest.raises(ms.UsageError, match="no aggregate"):
        accounts.stage(wrong)


@pytest.mark.parametrize("snapshot_after", [-1, float("nan")])
def test_a_length_of_time_that_is_none_is_refused(log, snapshot_after):
    with pytest.raises(ms.UsageError, match="no length of time"):
        ms.Repository(log, Account, snapshot_after=snapshot_after)


@pytest.mark.parametrize("at", [10**30, ms.Position(10**30)])
def test_a_point_far_beyond_the_end_shows_the_present(accounts, at):
    accounts.update("account-1", lambda a: a.deposit(1))
    assert accounts.get("account-1", at=at).balance == 1
    assert accounts.diff("account-1", 0, at).after == 1
    assert set(accounts.blame("account-1", at=at)) == {"balance", "log"}


def test_repositories_that_are_let_go_leave_nothing_behind(log):
    before = len(log.store.on_stale)
    for _ in range(10):
        ms.Repository(log, Account)
    gc.collect()
    assert len(log.store.on_stale) == before


def test_a_category_is_not_an_aggregate(accounts):
    accounts.update("account-1", lambda account: account.deposit(5))
    for use in (accounts.get, lambda id: list(accounts.history(id)), lambda id: id in accounts):
        with pytest.raises(ms.InvalidStreamName):
            use("account-*")


def test_the_last_moment_of_all_shows_the_present():
    with ms.open() as log:
        accounts = ms.Repository(log, Account)
        accounts.update("account-1", lambda account: account.deposit(5))
        assert accounts.get("account-1", at="9999-12-31T23:59:59.999999Z").version == 1


def test_a_change_that_is_written_slightly_wrong_is_told(log):
    accounts = ms.Repository(log, Account)
    accounts.update("account-1", lambda account: account.deposit(Decimal(5)))
    with pytest.raises(ms.UsageError, match=r"Write `with repository.edit\(id\) as aggregate:`"):
        accounts.edit("account-1").deposit(Decimal(1))
    loaded = accounts.load("account-1")
    loaded.deposit(Decimal(1))
    for wrong in (accounts.stage(loaded), [loaded], loaded):
        with pytest.raises(ms.UsageError, match="is no list of what is to be appended"):
            log.commit(wrong)
    with pytest.raises(ms.UsageError, match="is no log"):
        ms.Repository("bank.db", Account)
    assert accounts.get("account-1").version == 1


def test_a_receipt_is_a_point_in_an_aggregates_life(log):
    accounts = ms.Repository(log, Account)
    receipts = [accounts.update("account-1", lambda account: account.deposit(Decimal(5))) for _ in range(3)]
    assert [accounts.get("account-1", at=each).balance for each in receipts] == [5, 10, 15]
    assert accounts.as_of(receipts[1])["balance"].to_list() == [10]
    with pytest.raises(ms.UsageError, match="is no time"):
        accounts.get("account-1", at=receipts[0], known=log.now())
