"""Export to a file and import of it: what comes back is what went out."""

import asyncio

import polars as pl
import pytest

import millstream as ms


def test_ndjson_keeps_all_but_positions_and_times(tmp_path):
    log, other = ms.open(), ms.open()
    log.append("a-1", ms.Draft(ms.Plain("T", {"n": 1}), tags=["x"], effective="2020-01-01T00:00:00Z"))
    log.append("b", ms.Plain("U", {"s": "ä\n\U0001f333"}), metadata={"by": "ann"})
    log.append("a-1", ms.Plain("T", {"n": 2}))
    path = str(tmp_path / "events.ndjson")
    assert log.export(path) == 3
    assert other.import_(path) == 3

    def seen(of):
        return [(e.stream, e.version, e.type, e.data, e.tags, e.metadata, e.effective) for e in of.read()]

    assert seen(other) == seen(log)
    assert log.export(path, "a-*", types="T") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["events.ndjson"]


def test_parquet_keeps_the_columns_of_a_stream(tmp_path):
    log, other = ms.open(), ms.open()
    frame = pl.DataFrame({"n": [1, 2], "s": ["a", None]})
    log.append("f", frame, type="Row")
    path = str(tmp_path / "rows.parquet")
    assert log.export(path, "f") == 2
    assert other.import_(path, "g") == 2
    assert other.scan("g").collect().equals(frame)
    assert {e.type for e in other.read("g")} == {"Row"}
    for call in (lambda: log.export(path), lambda: other.import_(path)):
        with pytest.raises(ms.UsageError):
            call()


def test_a_file_whose_name_looks_like_a_pattern_is_no_other(tmp_path):
    log = ms.open()
    log.append("f", pl.DataFrame({"n": [1, 2, 3]}), type="Row")
    pl.DataFrame({"n": [1]}).write_parquet(tmp_path / "week1.parquet")
    assert log.export(str(tmp_path / "week[1].parquet"), "f") == 3
    assert ms.open().import_(str(tmp_path / "week[1].parquet"), "g") == 3


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("none.ndjson", "none.parquet"):
        with pytest.raises(ms.NotFound, match="none"):
            ms.open().import_(str(tmp_path / name), "s")


def test_a_coroutine_does_the_same(tmp_path):
    async def main():
        async with ms.aio.open() as log:
            await log.append("s", [ms.Plain("T", {"n": n}) for n in range(3)])
            path = str(tmp_path / "events.ndjson")
            assert await log.export(path) == 3
            assert await log.import_(path, "copy") == 3
            assert await log.version("copy") == 3
            assert (await log.compact()).runs == 0

    asyncio.run(main())


def test_paths_may_be_objects(tmp_path):
    log = ms.open()
    log.append("s", ms.Plain("T", {"n": 1}))
    for name in ("events.ndjson", "rows.parquet"):
        assert log.export(tmp_path / name, "s") == ms.open().import_(tmp_path / name, "s") == 1


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path):
    log = ms.open()
    log.append("s", ms.Plain("T", {"n": 1}))
    for name in ("events.ndjson", "rows.parquet"):
        path = str(tmp_path / "none" / name)
        with pytest.raises(ms.StorageError, match=rf"{name} cannot be written"):
            log.export(path, "s")
    with pytest.raises(ms.UsageError, match="cannot be read: Is a directory"):
        log.import_(tmp_path)
