"""Images of the past on disk: within bounds, nothing left by those who died, nothing taken from those who live."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import begun

import millstream as ms
from millstream.cqrs import past, shelf


class Poured(ms.Event, type="ImagesPoured"):
    drops: int


class Pours(ms.Projection):
    schema = "create table pours (position integer, drops integer)"

    @ms.on
    def poured(self, event: Poured, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into pours values (?, ?)", (recorded.position, event.drops))


class Twice(Pours):
    name = "Pours"

    @ms.on
    def poured(self, event: Poured, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into pours values (?, ?)", (recorded.position, 2 * event.drops))


class Total(ms.Query[int]):
    pass


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ms.Log]:
    with ms.open(tmp_path / "log.db") as log:
        log.append("s", [Poured(drops=1) for _ in range(12)])
        yield log


@pytest.fixture(params=["read.db", "read.duckdb"])
def into(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def made(log: ms.Log, projection: Any, into: Path) -> ms.App:
    app = ms.App(log, projections=[projection.into(into)])

    @app.query
    def total(query: Total, db: ms.Database) -> int:
        return int(db.query("select sum(drops) as n from pours")[0]["n"])

    return app


def positions(folder: Path) -> list[int]:
    names = [name.rpartition(".")[0] for name in os.listdir(folder)]
    return sorted(int(name.rpartition("-")[2]) for name in names)


def folder_of(into: Path) -> Path:
    return into.with_name(into.name + ".images")


def test_images_of_versions_that_nobody_asks_for_go_when_another_has_some(log: ms.Log, into: Path) -> None:
    assert made(log, Pours, into).query(Total(), at=ms.Position(5)) == 5
    assert made(log, Twice, into).query(Total(), at=ms.Position(4)) == 8
    assert positions(folder_of(into)) == [4, 5]  # another process may still be of the older code
    for path in folder_of(into).iterdir():
        os.utime(path, (time.time() - shelf.GONE - 60,) * 2)
    assert made(log, Twice, into).query(Total(), at=ms.Position(6)) == 12
    assert positions(folder_of(into)) == [4, 6]


def test_all_together_are_no_larger_than_the_bound(log: ms.Log, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = made(log, Pours, into)
    for at in (3, 4, 5):
        app.query(Total(), at=ms.Position(at))
    sizes = [path.stat().st_size for path in folder_of(into).iterdir()]
    monkeypatch.setattr(shelf, "BYTES", sum(sizes) - 1)
    app.query(Total(), at=ms.Position(3))
    app.query(Total(), at=ms.Position(6))  # which does not count: it is what was asked for
    assert len(positions(folder_of(into))) == 3
    assert {6} < set(positions(folder_of(into)))
    monkeypatch.setattr(shelf, "BYTES", 0)
    assert app.query(Total(), at=ms.Position(7)) == 7
    assert positions(folder_of(into)) == [7]


def test_none_goes_that_is_in_use(log: ms.Log, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "BYTES", 0)
    app = made(log, Pours, into)
    app.query(Total(), at=ms.Position(3))
    [kept] = list(folder_of(into).iterdir())
    claims = [shelf.Claim.take(str(kept)), shelf.Claim.take(str(kept))]
    assert shelf.Claim.take(str(kept), alone=True, wait=False) is None
    app.query(Total(), at=ms.Position(4))
    assert kept.exists()
    for claim in claims:
        assert claim is not None
        app.query(Total(), at=ms.Position(5))
        assert kept.exists()
        claim.free()
        claim.free()
    assert app.query(Total(), at=ms.Position(6)) == 6
    assert positions(folder_of(into)) == [6]


CHILD = """
import time
from pathlib import Path
import millstream as ms
from test_past_images import Poured, Total, made

class Slow(ms.Projection):
    name = "Pours"
    schema = "create table pours (position integer, drops integer)"

    @ms.on
    def poured(self, event: Poured, db: ms.Database) -> None:
        print("running", flush=True)
        time.sleep(60)

with ms.open({log!r}) as log:
    made(log, Slow, Path({into!r})).query(Total(), at=ms.Position(2))
"""


def test_what_a_killed_process_was_making_goes_and_not_while_it_lives(log: ms.Log, tmp_path: Path) -> None:
    into = tmp_path / "read.db"

    def making() -> int:
        return sum(shelf.MAKING in path.name for path in folder_of(into).iterdir())

    child = begun(CHILD.format(log=str(tmp_path / "log.db"), into=str(into)))
    try:
        assert made(log, Pours, into).query(Total(), at=ms.Position(3)) == 3
        assert making() >= 2  # the file and its lock
    finally:
        child.kill()
        child.wait()
    assert made(log, Pours, into).query(Total(), at=ms.Position(3)) == 3
    assert making() == 0
    assert positions(folder_of(into)) == [3]


@pytest.mark.parametrize("name", ["read#1.db", "100%.db", "what?.db", "a%20b.db"])
def test_names_may_hold_what_stands_for_something_in_urls(log: ms.Log, tmp_path: Path, name: str) -> None:
    app = made(log, Pours, tmp_path / name)
    assert [app.query(Total(), at=ms.Position(at)) for at in (3, 7, 12)] == [3, 7, 12]
    assert positions(tmp_path / f"{name}.images") == [3, 7, 12]


@pytest.mark.parametrize("step", ["replay", "sweep"])
def test_a_folder_that_is_deleted_in_the_making_costs_another_try(
    log: ms.Log, into: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    app = made(log, Pours, into)
    real = getattr(past, step)
    deleted: list[Path] = []

    def deleting(*given: Any) -> Any:
        found = real(*given)
        if not deleted:
            deleted.append(folder_of(into))
            shutil.rmtree(deleted[0])
        return found

    monkeypatch.setattr(past, step, deleting)
    assert [app.query(Total(), at=ms.Position(at)) for at in (3, 3, 7)] == [3, 3, 7]
    assert deleted


def test_a_folder_that_cannot_be_used_is_a_typed_error(log: ms.Log, into: Path) -> None:
    folder_of(into).write_text("no folder")
    with pytest.raises(ms.StorageError, match="images"):
        made(log, Pours, into).query(Total(), at=ms.Position(3))


def test_an_app_that_is_stopped_meanwhile_answers_all_the_same() -> None:
    with ms.open() as log:
        log.append("s", [Poured(drops=1) for _ in range(12)])
        app = ms.App(log, projections=[Pours.into(":memory:")])

        @app.query
        def total(query: Total, db: ms.Database) -> int:
            app.stop()
            return int(db.query("select sum(drops) as n from pours")[0]["n"])

        assert [app.query(Total(), at=ms.Position(at)) for at in (3, 7)] == [3, 7]
