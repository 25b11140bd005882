"""No process appends past an inline projection that it does not have."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest

import millstream as ms


class Joined(ms.Event, type="MissingJoined"):
    email: str


class Left(ms.Event, type="MissingLeft"):
    pass


class Emails(ms.Projection):
    name = "MissingEmails"
    schema = "create table missing_emails (email text primary key)"

    @ms.on
    def joined(self, event: Joined, db: ms.Database) -> None:
        db.execute("insert into missing_emails values (?)", (event.email,))


class Wider(Emails):
    name = "MissingEmails"

    @ms.on
    def left(self, event: Left, db: ms.Database) -> None: ...


@pytest.fixture
def other(shared_home):
    """A process that does not know of the projection, as far as the log can tell: it had opened the log before."""
    with ms.open(shared_home) as other:
        other.append("user-0", Left())
        yield other


@pytest.fixture
def log(other, shared_home):
    with ms.open(shared_home) as log:
        ms.App(log, projections=[Emails.inline()])
        yield log


def test_a_process_that_lacks_it_is_refused(log, other):
    with pytest.raises(ms.InlineMissing, match="'MissingEmails'") as caught:
        other.append("user-1", Joined(email="ann@example.org"))
    assert (caught.value.projection, caught.value.type) == ("MissingEmails", "MissingJoined")
    assert log.version("user-1") == 0
    log.append("user-1", Joined(email="ann@example.org"))
    with pytest.raises(ms.ConstraintViolated):
        log.append("user-2", Joined(email="ann@example.org"))


def test_events_of_other_types_are_appended_as_ever(log, other):
    assert other.append("user-1", Left()).count == 1
    with pytest.raises(ms.InlineMissing):
        other.append("user-1", [Left(), Joined(email="a")])
    with other.transaction() as tx:
        tx.append("user-1", Left())
        tx.append("user-2", Left())
    assert other.head == 4


def test_no_way_of_appending_leads_past_it(log, other, shared_home):
    with pytest.raises(ms.InlineMissing), other.transaction() as tx:
        tx.append("user-1", Joined(email="a"))
        tx.append("user-2", Left())
    with pytest.raises(ms.InlineMissing):
        with other.transaction() as tx:
            tx.db.execute("select 1")
            tx.append("user-1", Joined(email="a"))
    with pytest.raises(ms.InlineMissing):
        other.append("user-1", pl.DataFrame({"email": ["a"]}), type="MissingJoined")
    with pytest.raises(ms.InlineMissing):
        other.append("user-1", ms.Plain("MissingJoined", {"email": "a"}), id="x")
    [refused, done] = other.commit_all(
        [other.request("user-1", Joined(email="a")), other.request("user-1", Left())]
    )  # fmt: skip
    assert isinstance(refused, ms.InlineMissing)
    assert isinstance(done, ms.Receipt)
    told = subprocess.run(
        [sys.executable, "-m", "millstream.cli", "append", shared_home, "user-1", "--type", "MissingJoined"],
        input='{"email": "a"}',
        capture_output=True,
        text=True,
    )
    assert told.returncode == 4
    assert "inline projection 'MissingEmails'" in told.stderr
    assert [e.type for e in log.read("user-1")] == ["MissingLeft"]


def test_it_can_be_retired(log, other):
    assert log.inline_projections() == {"MissingEmails": ("MissingJoined",)}
    with pytest.raises(ms.NotFound, match="There are: MissingEmails"):
        other.retire_inline("Emails")
    other.retire_inline("MissingEmails")
    assert log.inline_projections() == {}
    other.append("user-1", Joined(email="a"))
    # The process that has it goes on with it, and makes up for what came in between.
    with pytest.raises(ms.ConstraintViolated):
        log.append("user-2", Joined(email="a"))


def test_an_app_that_was_made_again_registers_it_again(log, other):
    other.retire_inline("MissingEmails")
    ms.App(log, projections=[Emails.inline()])
    with pytest.raises(ms.InlineMissing):
        other.append("user-1", Joined(email="a"))
    ms.App(other, projections=[Emails.inline()])
    other.append("user-1", Joined(email="a"))


def test_one_that_takes_more_types_is_needed_for_those_alone(log, other, shared_home):
    with ms.open(shared_home) as newer:
        ms.App(newer, projections=[Wider.inline()])
        log.append("user-1", Joined(email="a"))
        with pytest.raises(ms.InlineMissing):
            log.append("user-1", Left())
        newer.append("user-1", Left())
        with pytest.raises(ms.InlineMissing):
            other.append("user-1", Left())


def test_one_of_another_schema_is_another_one(log, other):
    other.inline("projection:MissingEmails", [Joined], lambda db, runs: None)
    with pytest.raises(ms.InlineMissing):
        other.append("user-1", Joined(email="a"))


def test_a_handler_without_a_fingerprint_is_the_process_own_affair(other, shared_home):
    with ms.open(shared_home) as log:
        log.inline("mine", [Joined], lambda db, runs: None)
        assert log.inline_projections() == {}
    other.append("user-1", Joined(email="a"))


def test_a_capture_is_refused_too(log, other, tmp_path):
    import sqlite3

    class Rows(ms.Projection):
        name = "MissingRows"
        schema = "create table missing_rows (n integer)"

        @ms.on("Change")
        def change(self, event: ms.Plain, db: ms.Database) -> None: ...

    source = tmp_path / "source.sqlite"
    with sqlite3.connect(source) as db:
        db.execute("create table t (id integer primary key)")
        db.execute("insert into t values (1)")
    db.close()
    ms.App(log, projections=[Rows.inline()])
    with pytest.raises(ms.InlineMissing):
        ms.capture(f"sqlite:///{source}").catch_up(other)
    assert ms.capture(f"sqlite:///{source}").catch_up(log) >= 1
