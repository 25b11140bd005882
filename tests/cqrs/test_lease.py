"""Leases: one worker keeps a projection at a time; when it dies or is paused, another does, and nothing is doubled."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import pytest
from children import begun
from kept import eventually

import millstream as ms


class Ticked(ms.Event, type="LeaseTicked"):
    n: int


class Ticks(ms.Projection):
    schema = "create table ticks (position integer primary key, n integer)"

    @ms.on
    def ticked(self, event: Ticked, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into ticks values (?, ?)", (recorded.position, event.n))


class AllTicks(ms.Query[list[int]]):
    pass


def make(log: ms.Log, path: str | None) -> ms.App:
    app = ms.App(log, projections=[Ticks.into(path)])

    @app.query
    def ticks(query: AllTicks, db: ms.Database) -> list[int]:
        return [row["n"] for row in db.query("select n from ticks order by position")]

    return app


def worker(home: str, path: str) -> subprocess.Popen[str]:
    return begun(f"""
import millstream as ms
from test_lease import make
app = make(ms.open({home!r}), {path!r})
app.start()
while app.status()[0].state is not ms.State.RUNNING: pass
print("running", flush=True)
app.run()
""")


def test_a_dead_holder_is_replaced_and_each_event_takes_effect_once(tmp_path: Any) -> None:
    home, path = str(tmp_path / "log.db"), str(tmp_path / "read.db")
    with ms.open(home) as log:
        log.append("a", Ticked(n=0))
        child = worker(home, path)
        with make(log, path) as app:
            assert app.query(AllTicks(), after=log.head) == [0]
            eventually(lambda: app.status()[0].state is ms.State.STANDBY)
            child.send_signal(signal.SIGKILL)
            child.wait()
            receipt = log.append("a", Ticked(n=1))
            assert app.query(AllTicks(), after=receipt) == [0, 1]
            eventually(lambda: app.status()[0].state is ms.State.RUNNING)


def test_a_paused_holder_that_wakes_doubles_nothing_and_stands_by(tmp_path: Any) -> None:
    home, path = str(tmp_path / "log.db"), str(tmp_path / "read.db")
    with ms.open(home) as log:
        child = worker(home, path)
        try:
            with make(log, path) as app:
                assert app.query(AllTicks(), after=log.append("a", Ticked(n=0))) == [0]
                child.send_signal(signal.SIGSTOP)
                # It lives, but shows no sign of it: after some seconds it is taken for dead.
                receipt = log.append("a", Ticked(n=1))
                assert app.query(AllTicks(), after=receipt, timeout=20) == [0, 1]
                child.send_signal(signal.SIGCONT)
                for n in range(2, 30):
                    receipt = log.append("a", Ticked(n=n))
                assert app.query(AllTicks(), after=receipt) == list(range(30))
                assert app.status()[0].state is ms.State.RUNNING
            # Now that this one has let go, the other keeps it.
            assert app.query(AllTicks(), after=log.append("a", Ticked(n=30)), timeout=20) == list(range(31))
        finally:
            child.send_signal(signal.SIGCONT)
            child.terminate()
            child.wait()


@pytest.mark.parametrize("own", [True, False], ids=["own file", "the log's database"])
def test_a_paused_projection_is_kept_by_nobody_until_it_is_resumed(tmp_path: Any, own: bool) -> None:
    path = str(tmp_path / "read.db") if own else None
    with ms.open(str(tmp_path / "log.db")) as log, make(log, path) as app:
        assert app.query(AllTicks(), after=log.append("a", Ticked(n=0))) == [0]
        with ms.open(log.path) as other:
            make(other, path).pause("Ticks")  # by another process, as it were
        eventually(lambda: app.status()[0].state is ms.State.PAUSED)
        receipt = log.append("a", Ticked(n=1))
        with pytest.raises(ms.TimedOut):
            app.query(AllTicks(), after=receipt, timeout=0.3)
        assert app.read_models()[0].paused
        app.resume(Ticks)
        assert app.query(AllTicks(), after=receipt) == [0, 1]
        app.pause(Ticks)
        eventually(lambda: app.status()[0].state is ms.State.PAUSED)
        app.resume(Ticks)
        eventually(lambda: app.status()[0].state is ms.State.RUNNING)
