"""Retention: what rules say, what goes by them and what never does, and what readers see afterwards."""

import sqlite3
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

import millstream as ms
from millstream.log.retention.rules import amount
from millstream.testing import FakeClock

DAY = timedelta(days=1)


class Deposited(ms.Event, type="RetentionDeposited"):
    amount: int


class Account(ms.Aggregate):
    balance: int = 0

    def deposit(self, amount: int) -> None:
        self.record(Deposited(amount=amount))

    @ms.on
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "log.db")


@pytest.fixture(params=["memory", "file", "postgres"])
def place(request, path):
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    return None if request.param == "memory" else path


def clicks(first, count=100):
    return pl.DataFrame({"n": range(first, first + count)})


def numbers(log, stream):
    return [e.data["n"] for e in log.read(stream)]


def filled(log, clock=None, days=10):
    for day in range(days):
        log.append("clicks", clicks(day * 100), type="Click")
        log.append("one", ms.Plain("T", {"n": day}))
        log.append("sensor-1", [ms.Plain("T", {"n": day}), ms.Plain("T", {"n": day})])
        if clock is not None:
            clock.advance(DAY)


# --- what rules say ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "kind", "number"),
    [
        ("30d", "age", 30 * 86_400_000_000),
        ("1h30m", "age", 5_400_000_000),
        (timedelta(minutes=5), "age", 300_000_000),
        (1_000_000, "count", 1_000_000),
        ("1000000", "count", 1_000_000),
        ("1_000_000", "count", 1_000_000),
        (0, "count", 0),
        ("10GB", "size", 10_000_000_000),
        ("1.5 MiB", "size", 1_572_864),
        ("10gb", "size", 10_000_000_000),
        ("500B", "size", 500),
    ],
)
def test_an_amount_is_an_age_a_number_or_a_size(keep, kind, number):
    found = amount(keep)
    assert (found.kind, found.number) == (kind, number)
    assert amount(found.text) == found


@pytest.mark.parametrize("keep", ["", "soon", "10 parrots", -1, True, 1.5, timedelta(days=-1), None, "GB"])
def test_what_is_no_amount_is_refused(keep):
    with pytest.raises(ms.InvalidRetention):
        amount(keep)


@pytest.mark.parametrize("pattern", ["*", "", "a*b", "$retention", "$*", "$ret*", 7, "x" * 600])
def test_a_pattern_that_is_none_or_takes_in_too_much_is_refused(pattern):
    with ms.open() as log:
        with pytest.raises(ms.InvalidRetention) as raised:
            log.retain(pattern, "30d")
        assert raised.value.hint
        assert log.rules() == ()
        assert log.head == 0


def test_rules_are_events_that_say_who_made_them(place):
    with ms.open(place) as log:
        log.retain("clicks", "30d", by="ann")
        log.retain("sensor-*", 1_000, by="ben")
        log.retain("clicks", "10GB", by="zoe")
        assert [(r.pattern, r.keep, r.archive, r.by) for r in log.rules()] == [
            ("clicks", "10GB", None, "zoe"),
            ("sensor-*", "1000", None, "ben"),
        ]
        log.retain("clicks", None, by="ann")
        assert [r.pattern for r in log.rules()] == ["sensor-*"]
        assert [e.data["by"] for e in log.read("$retention")] == ["ann", "ben", "zoe", "ann"]
        with pytest.raises(ms.NotFound):
            log.retain("clicks", None)
        log.verify()


def test_rules_are_the_same_for_every_process_that_opens_the_log(path):
    with ms.open(path) as one, ms.open(path, readonly=True) as other:
        assert other.rules() == ()
        one.retain("clicks", "30d")
        assert [r.keep for r in other.rules()] == ["30d"]


# --- what goes --------------------------------------------------------------------------------------


def test_nothing_goes_without_a_rule(place):
    with ms.open(place) as log:
        filled(log)
        assert log.trim().streams == ()
        assert numbers(log, "clicks") == list(range(1000))


def test_by_count_the_last_events_stay_in_whole_runs(place):
    with ms.open(place) as log:
        filled(log)
        log.retain("clicks", 250)
        done = log.trim(by="ann")
        assert [(s.stream, s.runs, s.events, s.rule) for s in done.streams] == [("clicks", 7, 700, "keep 250")]
        assert numbers(log, "clicks") == list(range(700, 1000))
        assert numbers(log, "one") == list(range(10))
        assert log.trim().streams == ()


def test_by_age_what_was_recorded_before_goes(place):
    clock = FakeClock(datetime(2024, 1, 1, tzinfo=UTC))
    with ms.open(place, clock=clock) as log:
        filled(log, clock)
        log.retain("clicks", "3d")
        log.retain("one", "5d")
        log.trim()
        assert numbers(log, "clicks") == list(range(700, 1000))
        assert numbers(log, "one") == [5, 6, 7, 8, 9]
        clock.advance(DAY)
        assert log.trim().events == 101


def test_by_size_the_newest_bodies_stay(place):
    with ms.open(place) as log:
        for n in range(20):
            log.append("s", ms.Plain("T", {"n": n, "text": "x" * 1_000}))
        log.retain("s", "5.5KB")
        assert log.trim().events == 15
        assert numbers(log, "s") == [15, 16, 17, 18, 19]


def test_each_stream_of_a_category_keeps_as_much(place):
    with ms.open(place) as log:
        for n in range(5):
            log.append("sensor-1", clicks(n * 10, 10), type="Click")
            log.append("sensor-2", ms.Plain("T", {"n": n}))
        log.retain("sensor-*", 3)
        log.trim()
        assert numbers(log, "sensor-1") == list(range(40, 50))
        assert numbers(log, "sensor-2") == [2, 3, 4]


def test_the_most_exact_rule_is_the_one_that_counts(place):
    with ms.open(place) as log:
        for n in range(10):
            for stream in ("sensor-1", "sensor-2", "sensor-20"):
                log.append(stream, clicks(n, 1), type="Click")
        log.retain("sensor-*", 1)
        log.retain("sensor-2*", 2)
        log.retain("sensor-2", 5)
        log.trim()
        assert [len(numbers(log, s)) for s in ("sensor-1", "sensor-2", "sensor-20")] == [1, 5, 2]


def test_a_pattern_that_does_not_name_a_category_takes_frames_only(place):
    with ms.open(place) as log:
        for n in range(5):
            log.append("account-1", ms.Plain("T", {"n": n}))
            log.append("access-log", clicks(n, 1), type="Click")
        log.retain("acc*", 1)
        assert [s.stream for s in log.trim().streams] == ["access-log"]
        assert numbers(log, "account-1") == [0, 1, 2, 3, 4]
        log.retain("account-*", 1)
        assert [s.stream for s in log.trim().streams] == ["account-1"]


def test_a_dry_run_says_what_would_go_and_changes_nothing(path):
    with ms.open(path) as log:
        filled(log)
        log.retain("clicks", 250)
    with ms.open(path, readonly=True) as log:
        plan = log.trim(dry_run=True)
        assert plan.dry_run
        assert numbers(log, "clicks") == list(range(1000))
    with ms.open(path) as log:
        assert log.trim().streams == plan.streams


def test_once_and_without_a_rule_a_stream_that_is_named_is_trimmed(place):
    with ms.open(place) as log:
        filled(log)
        assert log.trim("one", keep=2).events == 8
        assert log.rules() == ()
        assert numbers(log, "one") == [8, 9]
        with pytest.raises(ms.InvalidRetention):
            log.trim(keep=2)
        with pytest.raises(ms.InvalidRetention):
            log.trim("*", keep=2)


def test_compaction_leaves_what_is_trimmed_beside_it(place, monkeypatch):
    from millstream.log import compact

    merged = compact._merged

    def late(group):
        log.trim("clicks", keep=20)
        return merged(group)

    with ms.open(place) as log:
        for n in range(6):
            log.append("clicks", pl.DataFrame({"n": [n] * 10}), type="Click")
        monkeypatch.setattr(compact, "_merged", late)
        assert log.compact("clicks").runs == 0
        assert log.scan("clicks").collect().height == 20
        log.verify()


def test_what_compaction_has_merged_is_trimmed_run_by_run(place):
    with ms.open(place) as log:
        filled(log)
        log.compact()
        log.trim("clicks", keep=250)
        assert numbers(log, "clicks") == list(range(700, 1000))
        log.compact()
        log.trim("clicks", keep=0)
        assert numbers(log, "clicks") == []
        log.compact("clicks")
        assert len(log.verify().trimmed) == 2


# --- what readers see -------------------------------------------------------------------------------


def test_readers_pass_over_what_was_trimmed_and_positions_stay(place):
    with ms.open(place) as log:
        filled(log)
        before = {e.position: e.data for e in log.read()}
        log.trim("clicks", keep=250)
        log.trim("one", keep=5)
        left = {e.position: e.data for e in log.read() if not e.stream.startswith("$")}
        assert left.items() < before.items()
        assert len(left) == len(before) - 705
        assert [e.position for e in log.read("one", backwards=True, limit=1)] == [1028]
        assert [e.data["n"] for e in log.follow("one", timeout=0)] == [5, 6, 7, 8, 9]
        assert log.scan("clicks").collect()["n"].to_list() == list(range(700, 1000))
        assert [run.count for run in log.runs("clicks")] == [100, 100, 100]
        assert log.version("clicks") == 1000
        assert log.append("clicks", clicks(1000), type="Click").version == 1100


def test_who_wants_to_know_is_told(place):
    with ms.open(place) as log:
        filled(log)
        log.trim("one", keep=5, by="ann")
        with pytest.raises(ms.Trimmed) as raised:
            list(log.read("one", trimmed="raise"))
        error = raised.value
        assert (error.position, error.stream, error.by, error.rule) == (101, "one", "ann", "keep 5")
        assert [e.data["n"] for e in log.read("one", since_version=6, trimmed="raise")] == [5, 6, 7, 8, 9]


def test_an_event_that_was_read_before_it_was_trimmed_says_so_when_its_data_is_asked_for(place):
    with ms.open(place) as log:
        log.append("s", [ms.Plain("T", {"n": n}) for n in range(3)])
        events = list(log.read("s"))
        log.trim("s", keep=0)
        assert events[0].type == "T"
        with pytest.raises(ms.Trimmed):
            events[0].data  # noqa: B018


def test_an_aggregate_whose_events_were_trimmed_is_no_aggregate_any_more(place):
    with ms.open(place) as log:
        accounts = ms.Repository(log, Account)
        for n in range(5):
            accounts.update("account-1", lambda account, n=n: account.deposit(n))
        log.trim("account-*", keep=2)
        for use in (
            lambda: accounts.get("account-1"),
            lambda: accounts.update("account-1", lambda account: account.deposit(1)),
            lambda: list(accounts.history("account-1")),
        ):
            with pytest.raises(ms.Trimmed):
                use()
        assert "account-1" in accounts
        assert log.version("account-1") == 5


# --- what verify says -------------------------------------------------------------------------------


def test_verify_names_what_was_trimmed_by_whom_and_when(place):
    clock = FakeClock(datetime(2024, 1, 1, tzinfo=UTC))
    with ms.open(place, clock=clock) as log:
        filled(log)
        before = log.verify()
        assert before.trimmed == ()
        log.trim("clicks", keep=250, by="ann")
        found = log.verify(head=before.hash)
        [trimmed] = found.trimmed
        assert (trimmed.stream, trimmed.by, trimmed.rule, trimmed.events) == ("clicks", "ann", "keep 250", 700)
        assert trimmed.since == trimmed.until == "2024-01-01T00:00:00Z"
        assert (trimmed.first, trimmed.last) == (1, 718)


def test_a_body_that_was_taken_away_and_passed_off_as_trimmed_is_a_damage(path):
    with ms.open(path) as log:
        filled(log)
        log.trim("one", keep=5)
    connection = sqlite3.connect(path)
    [(ref,)] = connection.execute("select id from bodies where encoding = 5")
    connection.execute(
        "update runs set body = null, body_ref = ? where position ="
        " (select position from runs where stream = (select id from streams where name = 'one')"
        " order by version desc limit 1)",
        (ref,),
    )
    connection.commit()
    connection.close()
    with ms.open(path) as log:
        with pytest.raises(ms.DamagedLog, match="no event"):
            log.verify()


def test_trims_of_many_rules_are_all_told(place):
    with ms.open(place) as log:
        for n in range(300):
            log.append("mixed", ms.Plain("T", {"n": n}) if n % 2 else clicks(n, 3), type=None if n % 2 else "Click")
        log.retain("mix*", 100)
        log.trim()
        log.trim("mixed", keep=50)
        log.trim("mixed", keep=10)
        found = log.verify().trimmed
        assert sum(t.events for t in found) == log.version("mixed") - len(list(log.read("mixed")))
        assert {t.rule for t in found} == {"keep 100", "keep 50", "keep 10"}


def test_a_stream_that_is_named_and_not_there_is_told(path):
    with ms.open(path) as log:
        log.append("clicks", ms.Plain("RetentionNamed", {"n": 1}))
        log.retain("click", keep=1)  # a rule may be there before its stream
        for ask in (
            lambda: log.trim("click"),
            lambda: log.trim("click", keep=1),
            lambda: log.archive("click", to=f"{path}-old/"),
            lambda: log.archives.restore("click"),
            lambda: log.compact("click"),
        ):
            with pytest.raises(ms.StreamNotFound, match="'click'"):
                ask()
        # Of a category there may be none yet.
        assert not log.trim("visits-*", keep=1).streams
        assert not log.compact("visits-*").runs
