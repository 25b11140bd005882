"""App: what runs in the background is supervised, told about, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import millstream as ms


class Added(ms.Event):
    n: int


class Numbers(ms.Projection):
    schema = "create table numbers (n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute("insert into numbers values (?)", (event.n,))


class Ticker:
    """Background work as captures and flows are: appends by a thread of its own."""

    name = "ticker"

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.starts = 0
        self.running = False

    def start(self, log: ms.Log) -> None:
        self.starts += 1
        self.error = None
        self.running = True
        log.append("ticks", Added(n=self.starts))

    def stop(self) -> None:
        self.running = False


def eventually(check: Any) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def log(shared_home):
    with ms.open(shared_home) as log:
        yield log


def test_captures_and_flows_run_between_start_and_stop(log):
    capture, flow = Ticker(), Ticker()
    app = ms.App(log, captures=[capture], flows=[flow])
    assert (capture.starts, flow.starts) == (0, 0)
    with app:
        eventually(lambda: capture.running and flow.running)
        assert [(s.name, s.kind, s.state) for s in app.status()] == [
            ("ticker", "capture", ms.State.RUNNING),
            ("ticker", "flow", ms.State.RUNNING),
        ]
    assert not capture.running
    assert not flow.running
    assert [s.state for s in app.status()] == [ms.State.STOPPED, ms.State.STOPPED]


def test_what_crashes_is_started_again(log):
    ticker = Ticker()
    with ms.App(log, captures=[ticker]) as app:
        eventually(lambda: ticker.running)
        ticker.error = OSError("the line is down")
        eventually(lambda: ticker.starts == 2)
        (found,) = app.status()
        assert (found.state, found.restarts, found.error) == (
            ms.State.RUNNING,
            1,
            "OSError: the line is down",
        )


def test_what_cannot_start_is_tried_again(log):
    class Late(Ticker):
        def start(self, log: ms.Log) -> None:
            self.starts += 1
            if self.starts < 3:
                raise ConnectionRefusedError("not yet")
            self.running = True

    late = Late()
    with ms.App(log, flows=[late]) as app:
        eventually(lambda: late.running)
        assert app.status()[0].restarts == 2


def test_what_another_start_would_not_change_fails_at_once(log):
    import polars as pl

    log.append("clicks", pl.DataFrame({"user": ["a"]}), type="Click")
    closed = log.append("closed", Added(n=1))
    log.close_stream("closed", expect=closed.version)
    missing = ms.stream("clicks").group_by("nobody").window(ms.tumbling("5m")).agg(n=pl.len()).to("out", type="X")
    full = ms.stream("clicks").select("user").to("closed", type="Y")
    with ms.App(log, flows=[missing, full]) as app:
        eventually(lambda: [s.state for s in app.status()] == [ms.State.FAILED, ms.State.FAILED])
        assert [s.restarts for s in app.status()] == [0, 0]
        assert "'nobody'" in str(app.status()[0].error)
        assert "closed" in str(app.status()[1].error)


@pytest.mark.parametrize(
    "given",
    [
        {"flows": ["x"]},
        {"captures": ["sqlite:///x"]},
        {"captures": "sqlite:///x"},
        {"projections": Numbers.into("read.db")},
        {"projections": Numbers},
        {"flows": ms.stream("a").to("b", type="B")},
        {"captures": ms.capture("sqlite:///x")},
    ],
    ids=["a flow's name", "a url", "one url", "one projection", "a class", "one flow", "one capture"],
)
def test_what_an_app_cannot_take_is_refused_with_an_example(log, given):
    (what,) = given
    with pytest.raises(ms.UsageError, match=rf"Write {what}=\["):
        ms.App(log, **given)


def test_a_flow_without_an_end_is_refused_before_anything_runs(log):
    with pytest.raises(ms.FlowError, match=r"needs an end.*\.to\(stream"):
        ms.App(log, flows=[ms.stream("clicks")])


def test_start_returns_when_captures_have_begun_or_failed_to(log):
    class Slow(Ticker):
        def start(self, log: ms.Log) -> None:
            time.sleep(0.1)
            super().start(log)

    class Absent(Ticker):
        name = "absent"

        def start(self, log: ms.Log) -> None:
            raise OSError("there is no such file")

    slow = Slow()
    app = ms.App(log, captures=[slow, Absent()])
    for _ in range(2):
        app.start()
        assert slow.running
        assert "no such file" in str(app.status()[1].error)
        app.stop()


def test_a_second_app_stands_by_while_the_first_one_runs(log, tmp_path):
    path = tmp_path / "read.db"
    app, newer = (ms.App(log, projections=[Numbers.into(path)]) for _ in range(2))
    thread = threading.Thread(target=app.run)
    thread.start()
    log.append("a", Added(n=1))
    eventually(lambda: app.status()[0].position == 1)
    with newer:
        eventually(lambda: newer.status()[0].state is ms.State.STANDBY)
        app.stop()
        thread.join()
        eventually(lambda: newer.status()[0].state is ms.State.RUNNING)


def test_what_is_fenced_is_not_started_again(log):
    ticker = Ticker()
    with ms.App(log, flows=[ticker]) as app:
        eventually(lambda: ticker.running)
        ticker.error = ms.ConsumerFenced("ticker")
        eventually(lambda: app.status()[0].state is ms.State.FENCED)
        assert ticker.starts == 1
        assert not ticker.running


def test_status_tells_how_far_each_projection_is(log, tmp_path):
    class Inline(Numbers):
        schema = "create table numbers (n integer)"

    log.append("a", [Added(n=n) for n in range(5)])
    app = ms.App(log, projections=[Inline.inline(), Numbers.into(tmp_path / "read.db")])
    assert [(s.name, s.state, s.position, s.behind) for s in app.status()] == [
        ("Inline", ms.State.RUNNING, 5, 0),
        ("Numbers", ms.State.STOPPED, 0, 5),
    ]
    with app:
        eventually(lambda: app.status()[1].behind == 0)
        assert app.status()[1].state is ms.State.RUNNING


def test_two_flows_or_captures_of_one_name_are_refused(log, tmp_path):
    clicks = ms.stream("clicks")
    a, b = clicks.to("out", type="X"), ms.stream("views").to("out", type="X")
    with pytest.raises(ms.UsageError, match=r"two flows of this app are named 'out/X'.*name="):
        ms.App(log, flows=[a, b])
    url = f"sqlite:///{tmp_path}/shop.sqlite"
    with pytest.raises(ms.UsageError, match=r"two captures of this app are named 'sqlite:///.*name="):
        ms.App(log, captures=[ms.capture(url, tables=["a"]), ms.capture(url, tables=["b"])])
    ticker = Ticker()
    with pytest.raises(ms.UsageError, match="two captures"):
        ms.App(log, captures=[ticker, ticker])
    ms.App(
        log,
        flows=[a, ms.stream("views").to("out", type="X", name="views")],
        captures=[ms.capture(url, tables=["a"]), ms.capture(url, tables=["b"], name="b")],
    )


def test_a_flow_without_an_end_is_refused_when_the_app_is_made(log):
    with pytest.raises(ms.FlowError, match=r"a flow of an app needs an end. End it with .to\("):
        ms.App(log, flows=[ms.stream("clicks").select("user")])


def test_status_tells_how_far_each_flow_is(log):
    import polars as pl

    log.append("clicks", pl.DataFrame({"user": ["a", "b"]}), type="Click")
    app = ms.App(log, flows=[ms.stream("clicks").select("user").to("users", type="User")])
    assert (app.status()[0].position, app.status()[0].behind) == (0, 2)
    with app:
        eventually(lambda: app.status()[0].position == 4 and app.status()[0].behind == 0)


def test_an_app_that_several_threads_start_at_once_is_stopped_whole(log, tmp_path):
    app = ms.App(log, projections=[Numbers.into(tmp_path / "read.db")])
    for _ in range(20):
        begin = threading.Barrier(8)

        def start(begin=begin):
            begin.wait()
            app.start()

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        app.stop()
        assert [each.name for each in threading.enumerate() if "millstream-projection" in each.name] == []


def test_start_and_stop_may_be_repeated(log, tmp_path):
    app = ms.App(log, projections=[Numbers.into(tmp_path / "read.db")])
    for _ in range(2):
        app.start()
        app.start()
        app.stop()
        app.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("millstream-projection")]


def test_run_ends_when_another_thread_stops_it(log):
    ticker = Ticker()
    app = ms.App(log, captures=[ticker])
    thread = threading.Thread(target=app.run)
    thread.start()
    eventually(lambda: ticker.running)
    app.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert not ticker.running


PROCESS = """
import signal, sys
import millstream as ms
from test_app import Numbers

log = ms.open(sys.argv[1])
app = ms.App(log, projections=[Numbers.into(sys.argv[2])])
# A test run in the background of a shell hands down that SIGINT is ignored; at a terminal it is not.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
app.run()
log.close()
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_cleanly_on_a_signal(tmp_path, shared_home, number):
    env = {**os.environ, "PYTHONPATH": ":".join([*sys.path, __file__.rpartition("/")[0]])}
    read = str(tmp_path / "read.db")
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, shared_home, read],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with ms.open(shared_home) as log:
        receipt = log.append("a", Added(n=1))
        app = ms.App(log, projections=[Numbers.into(read)])

        class Count(ms.Query[int]):
            pass

        @app.query
        def count(query: Count, db: ms.Database) -> int:
            return db.one("select count(*) as n from numbers")["n"]

        # The other process keeps the read model; this one only asks.
        assert app.query(Count(), after=receipt) == 1
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("ended\n", "", 0)


def test_what_ends_or_shakes_a_worker_is_told_to_the_programs_log(log, caplog):
    class Unruly(ms.Projection):
        schema = "create table unruly (n integer)"

        @ms.on
        def added(self, event: Added, db: ms.Database) -> None:
            raise ValueError("nobody counts that")

    class Shaky(Ticker):
        def start(self, log: ms.Log) -> None:
            self.starts += 1
            if self.starts == 1:
                raise OSError("no room")

    log.append("numbers", Added(n=1))
    app = ms.App(log, projections=[Unruly.into()], captures=[Shaky()])
    with caplog.at_level("WARNING", logger="millstream.workers"), app:
        eventually(lambda: len({record.levelname for record in caplog.records}) == 2)
    told = {record.levelname: record for record in caplog.records}
    assert told["ERROR"].getMessage().startswith("projection Unruly: projection 'Unruly' stopped at position 1")
    assert told["WARNING"].getMessage() == "capture ticker: OSError: no room; it starts again"
    assert told["WARNING"].exc_info is not None  # where it arose


def test_time_limits_are_seconds_or_durations(log):
    class Sum(ms.Query[int], frozen=True):
        pass

    app = ms.App(log, projections=[Numbers.into()])

    @app.query
    def total(query: Sum, db: ms.Database) -> int:
        return int(db.query("select count(*) as n from numbers")[0]["n"])

    receipt = log.append("numbers", Added(n=1))
    with pytest.raises(ms.TimedOut, match=r"within 0\.05 s"):
        app.query(Sum(), after=receipt, timeout="50ms")
    with pytest.raises(ms.UsageError, match="no number of seconds"):
        app.query(Sum(), after=receipt, timeout=True)
    app.start()
    assert app.query(Sum(), after=receipt, timeout="10s") == 1
    app.stop(timeout="1s")
