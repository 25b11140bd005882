"""The prefix of a capture's streams stays what it was."""

import sqlite3
from pathlib import Path

import pytest

import millstream as ms


@pytest.fixture
def shop(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "shop.sqlite") as db:
        db.execute("create table u (id integer primary key, name text)")
        db.execute("insert into u values (1, 'Ann')")
    db.close()
    return f"sqlite:///{tmp_path / 'shop.sqlite'}"


def insert(shop: str, number: int) -> None:
    with sqlite3.connect(shop.removeprefix("sqlite:///")) as db:
        db.execute("insert into u values (?, 'Bob')", (number,))
    db.close()


def test_a_capture_that_would_go_on_in_other_streams_is_refused_and_goes_on_as_before(shop: str) -> None:
    with ms.open() as log:
        ms.capture(shop, tables=["u"], prefix="a/").catch_up(log)
        insert(shop, 2)
        for other in ("b/", ""):
            with pytest.raises(ms.UsageError, match="'a/'"):
                ms.capture(shop, tables=["u"], prefix=other).catch_up(log)
        assert log.version("b/u") == log.version("u") == 0
        ms.capture(shop, tables=["u"], prefix="a/").catch_up(log)
        assert log.table("u", prefix="a/")["id"].to_list() == [1, 2]


def test_one_that_is_refused_fences_nobody(shop: str) -> None:
    with ms.open() as log:
        running = ms.capture(shop, tables=["u"], prefix="a/")
        running.start(log)
        with pytest.raises(ms.UsageError, match="'a/'"):
            ms.capture(shop, tables=["u"], prefix="b/").catch_up(log)
        insert(shop, 2)
        for recorded in log.follow("a/u", types=[ms.Change], timeout=30):
            if recorded.event.after["id"] == 2:  # type: ignore[union-attr, index]
                break
        assert running.running
        running.stop()


@pytest.mark.parametrize("how", [{"resync": True}, {"name": "second"}], ids=["resync", "name"])
def test_one_that_reads_its_tables_anew_may_write_them_elsewhere(shop: str, how: dict[str, object]) -> None:
    with ms.open() as log:
        ms.capture(shop, tables=["u"], prefix="a/").catch_up(log)
        insert(shop, 2)
        named = {"name": "second"} if "name" in how else {}
        ms.capture(shop, tables=["u"], prefix="b/", **named).catch_up(log, resync="resync" in how)
        insert(shop, 3)
        ms.capture(shop, tables=["u"], prefix="b/", **named).catch_up(log)
        assert sorted(log.table("u", prefix="b/")["id"].to_list()) == [1, 2, 3]


def test_one_that_has_written_nothing_yet_may_still_choose(shop: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("create table u (id integer primary key, name text)")
        db.execute("insert into u values (7, 'Cy')")
    db.close()
    with ms.open() as log:
        ms.capture(shop, tables=["u"]).catch_up(log)
        with pytest.raises(ms.CaptureError, match="prefix="):
            ms.capture(other, tables=["u"]).catch_up(log)
        ms.capture(other, tables=["u"], prefix="other/").catch_up(log)
        assert log.table("u", prefix="other/")["id"].to_list() == [7]
