"""Commands: how handlers are bound, and that each command takes effect once."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest

import millstream as ms


class Moved(ms.Event):
    amount: int


class Account(ms.Aggregate):
    balance: int = 0

    def move(self, amount: int) -> None:
        if self.balance + amount < 0:
            raise ms.Rejected("not enough money", field="amount")
        if amount:
            self.record(Moved(amount=amount))

    @ms.on
    def moved(self, event: Moved) -> None:
        self.balance += event.amount


class Deposit(ms.Command):
    account: ms.Ref[Account]
    amount: int


class Transfer(ms.Command):
    source: ms.Ref[Account]
    target: ms.Ref[Account]
    amount: int


@pytest.fixture
def log(home):
    with ms.open(home) as log:
        yield log


@pytest.fixture
def app(log):
    app = ms.App(log)

    @app.command
    def deposit(command: Deposit, account: Account) -> None:
        account.move(command.amount)

    @app.command
    def transfer(command: Transfer, source: Account, target: Account) -> None:
        source.move(-command.amount)
        target.move(command.amount)

    return app


def balance(log: ms.Log, account: str) -> int:
    return ms.Repository(log, Account).get(account).balance


def test_a_command_changes_the_aggregate_that_it_names(log, app):
    receipt = app.execute(Deposit("account-1", 5))
    assert (receipt.position, receipt.stream, receipt.version) == (1, "account-1", 1)
    app.execute(Deposit(account="account-1", amount=7))
    assert balance(log, "account-1") == 12


def test_a_command_may_change_several_aggregates_in_one_commit(log, app):
    app.execute(Deposit("account-1", 5))
    receipt = app.execute(Transfer("account-1", "account-2", 3))
    assert receipt.count == 2
    assert (balance(log, "account-1"), balance(log, "account-2")) == (2, 3)


def test_two_references_to_one_stream_are_one_aggregate(log, app):
    app.execute(Deposit("account-1", 5))
    app.execute(Transfer("account-1", "account-1", 3))
    assert balance(log, "account-1") == 5


def test_two_classes_cannot_both_record_on_one_stream(log):
    class Savings(Account):
        pass

    class Sweep(ms.Command):
        source: ms.Ref[Account]
        target: ms.Ref[Savings]

    app = ms.App(log)
    calls = 0

    @app.command
    def sweep(command: Sweep, source: Account, target: Savings) -> None:
        nonlocal calls
        calls += 1
        source.move(1)
        target.move(1)

    with pytest.raises(ms.UsageError, match="as Account and Savings"):
        app.execute(Sweep("account-1", "account-1"))
    assert (calls, log.head) == (1, 0)


def test_a_rejected_command_leaves_nothing_of_any_aggregate(log, app):
    with pytest.raises(ms.Rejected) as caught:
        app.execute(Transfer("account-1", "account-2", 3))
    assert caught.value.field == "amount"
    assert log.head == 0


def test_a_command_without_a_handler_is_refused(app):
    class Unknown(ms.Command):
        pass

    with pytest.raises(ms.UnknownCommand, match="Unknown"):
        app.execute(Unknown())


def test_a_command_has_one_handler(app):
    with pytest.raises(ms.DuplicateHandler, match=r"Deposit is handled by .*deposit"):

        @app.command
        def again(command: Deposit, account: Account) -> None: ...


def test_commands_are_immutable_and_compared_by_content():
    assert Deposit("account-1", 5) == Deposit(account="account-1", amount=5)
    with pytest.raises(AttributeError):
        Deposit("account-1", 5).amount = 6  # type: ignore[misc]


# --- binding ---------------------------------------------------------------------------------------


def test_the_only_field_of_the_class_is_taken_when_no_name_fits(log):
    app = ms.App(log)

    @app.command
    def deposit(command: Deposit, it: Account) -> None:
        it.move(command.amount)

    app.execute(Deposit("account-1", 5))
    assert balance(log, "account-1") == 5


def test_commands_and_aggregates_may_be_local_to_a_function(log):
    class Note(ms.Aggregate):
        text: str = ""

        def write(self, text: str) -> None:
            self.record(Written(text=text))

        @ms.on
        def written(self, event: Written) -> None:
            self.text = event.text

    class Written(ms.Event):
        text: str

    class Write(ms.Command):
        note: ms.Ref[Note]
        text: str

    app = ms.App(log)

    @app.command
    def write(command: Write, note: Note) -> None:
        note.write(command.text)

    app.execute(Write("note-1", "hello"))
    assert ms.Repository(log, Note).get("note-1").text == "hello"


def test_a_reference_may_name_a_class_that_is_defined_further_down(log):
    class Early(ms.Command):
        later: ms.Ref[Later]

    class Later(ms.Aggregate):
        pass

    app = ms.App(log)
    seen = []

    @app.command
    def early(command: Early, later: Later) -> None:
        seen.append(later.id)

    app.execute(Early("later-1"))
    assert seen == ["later-1"]


def test_references_are_inherited():
    class Dated(Deposit):
        day: str = ""

    assert Dated.__refs__ == {"account": Account}


def test_an_aggregate_that_no_field_names_is_refused(app):
    class Nothing(ms.Command):
        account: str

    with pytest.raises(ms.InvalidHandler, match="no fields that name a Account"):

        @app.command
        def nothing(command: Nothing, account: Account) -> None: ...


def test_an_aggregate_that_two_fields_could_name_is_refused(log):
    with pytest.raises(ms.InvalidHandler, match="2 fields that name a Account and none of them is 'account'"):

        @ms.App(log).command
        def transfer(command: Transfer, account: Account) -> None: ...


def test_a_parameter_of_an_unknown_kind_is_refused(log):
    with pytest.raises(ms.InvalidHandler, match="parameter 'number'"):

        @ms.App(log).command
        def deposit(command: Deposit, number: int) -> None: ...


def test_a_handler_needs_the_commands_class(log):
    with pytest.raises(ms.InvalidHandler, match="annotated with its command's class"):

        @ms.App(log).command
        def deposit(command: Any, account: Account) -> None: ...


# --- once ------------------------------------------------------------------------------------------


def test_the_same_id_takes_effect_once_and_gives_the_same_receipt(log, app):
    first = app.execute(Deposit("account-1", 5), id="r-1")
    app.execute(Deposit("account-1", 7), id="r-2")
    assert app.execute(Deposit("account-1", 5), id="r-1") == first
    assert balance(log, "account-1") == 12


def test_the_same_id_gives_the_same_receipt_when_nothing_was_recorded(log, app):
    first = app.execute(Deposit("account-1", 0), id="r-1")
    assert first.count == 0
    app.execute(Deposit("account-1", 7))
    assert app.execute(Deposit("account-1", 0), id="r-1") == first


def test_an_id_cannot_be_used_for_another_command(app):
    app.execute(Deposit("account-1", 5), id="r-1")
    with pytest.raises(ms.IdReused):
        app.execute(Deposit("account-1", 6), id="r-1")


def test_a_repeat_gives_the_receipt_though_it_would_be_rejected_now(log, app):
    app.execute(Deposit("account-1", 5))
    first = app.execute(Deposit("account-1", -5), id="r-1")
    assert app.execute(Deposit("account-1", -5), id="r-1") == first


def test_the_id_of_a_rejected_command_may_be_used_again(log, app):
    with pytest.raises(ms.Rejected):
        app.execute(Deposit("account-1", -5), id="r-1")
    app.execute(Deposit("account-1", 5))
    app.execute(Deposit("account-1", -5), id="r-1")
    assert balance(log, "account-1") == 0


def test_the_same_id_in_eight_threads_at_once_takes_effect_once(log, app):
    app.execute(Deposit("account-1", 5))
    receipts, failures = [], []

    def withdraw() -> None:
        try:
            for number in range(10):
                receipts.append((number, app.execute(Deposit("account-1", number % 2), id=f"r-{number}")))
                receipts.append((-1, app.execute(Deposit("account-1", -5), id="all")))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=withdraw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len({(number, receipt.position, receipt.count) for number, receipt in receipts}) == 11
    assert balance(log, "account-1") == 5


def test_commands_of_eight_threads_on_one_aggregate_all_take_effect(log, app):
    failures = []

    def deposit() -> None:
        try:
            for _ in range(20):
                app.execute(Deposit("account-1", 1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=deposit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert balance(log, "account-1") == 160


PROCESS = """
import sys
import millstream as ms
from test_command import Account, Deposit

log = ms.open(sys.argv[1])
app = ms.App(log)

@app.command
def deposit(command: Deposit, account: Account) -> None:
    account.move(command.amount)

print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    # Every fourth records nothing.
    print(app.execute(Deposit("account-1", number % 4), id=f"r-{number}").position, flush=True)
"""


def started(home: str, commands: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, home, str(commands)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join([*sys.path, __file__.rpartition("/")[0]])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_same_ids_in_two_processes_at_once_take_effect_once(shared_home):
    processes = [started(shared_home, 40) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    one, other = (process.communicate()[0].split() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert one == other
    with ms.open(shared_home) as log:
        assert balance(log, "account-1") == 60
        assert log.head == 30


def test_commands_that_were_under_way_when_the_process_was_killed_take_effect_once(shared_home):
    told: list[str] = []
    for _ in range(4):
        with started(shared_home, 1_000_000) as process:
            process.stdin.write("go\n")
            process.stdin.flush()
            lines = [process.stdout.readline().strip() for _ in range(len(told) + 7)]
            process.kill()
            lines += process.stdout.read().split("\n")[:-1]
        # What was told before is told again, though the process that told it is gone.
        assert lines[: len(told)] == told
        told = lines
    with ms.open(shared_home) as log:
        sent = [event.data["amount"] for event in log.read("account-1")]
        assert sent == [number % 4 for number in range(len(told) + 3) if number % 4][: len(sent)]
        assert len(sent) >= sum(1 for number in range(len(told)) if number % 4)


def test_a_handler_that_would_do_nothing_is_told(log):
    app = ms.App(log)
    with pytest.raises(ms.InvalidHandler, match="it is a generator"):

        @app.command
        def deposit(command: Deposit, account: Account):
            yield account.move(command.amount)

    @app.command
    def gives(command: Deposit):
        return [Moved(amount=command.amount)] if command.amount > 1 else Moved(amount=1)

    for amount in (1, 2):
        with pytest.raises(ms.UsageError, match="which nobody appends"):
            app.execute(Deposit("account-1", amount))
    assert log.head == 0


def test_what_is_no_command_or_query_is_told(log):
    app = ms.App(log)
    with pytest.raises(ms.UsageError, match="Deposit is a class"):
        app.execute(Deposit)
    with pytest.raises(ms.UsageError, match="is no command"):
        app.execute(Moved(amount=1))
    with pytest.raises(ms.UsageError, match="neither a query nor a function"):
        app.query(Deposit("account-1", 1))
    with pytest.raises(ms.UsageError, match="is no log"):
        ms.App(log.location)
    assert repr(app).startswith("<millstream.App of ")
    log.close()
    with pytest.raises(ms.LogClosed):
        app.start()


def test_the_decorator_may_have_parentheses():
    class Halve(ms.Command, frozen=True):
        n: int

    app, halved = ms.App(ms.open()), []

    @app.command()
    def halve(command: Halve) -> None:
        halved.append(command.n // 2)

    app.execute(Halve(4))
    assert halved == [2]


def test_a_parameter_without_an_annotation_is_told_as_such():
    class Quarter(ms.Command, frozen=True):
        n: int

    app = ms.App(ms.open())
    with pytest.raises(ms.InvalidHandler, match="parameter 'order' has no annotation"):

        @app.command
        def quarter(command: Quarter, order) -> None: ...
