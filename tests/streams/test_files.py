"""Files as a past, and as an end."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from killing import killed_until_done
from polars.testing import assert_frame_equal
from referee import clicks

import millstream as ms
from millstream.errors import ConsumerFenced, NotFound, StorageError, UsageError
from millstream.streams import FlowError, MissingColumn, Running, files, run, stream, tumbling
from millstream.streams.runner import Worker

source = stream("clicks", time="ts", lateness="2s")
counts = source.group_by("user").window(tumbling("1m")).agg(n=pl.len(), total=pl.col("amount").sum())
Format = Any


def written(folder: Path, rows: pl.DataFrame, format: Format, parts: int = 3) -> str:
    """Rows in files of a format, packed but for Parquet; the pattern that finds them."""
    size = -(-rows.height // parts)
    for number in range(parts):
        part = rows.slice(number * size, size)
        name = str(folder / f"part-{number}.{format}")
        if format == "parquet":
            part.write_parquet(name)
            continue
        text = part.write_ndjson() if format == "ndjson" else part.write_csv()
        with gzip.open(f"{name}.gz", "wt") as out:
            out.write(text)
    return str(folder / f"part-*.{format}*")


@pytest.mark.parametrize("format", ["parquet", "ndjson", "csv"])
def test_files_of_any_format_are_a_past_like_the_log(format: Format, tmp_path: Path) -> None:
    rows = clicks(1, 500)
    past = files(written(tmp_path, rows, format))
    assert_frame_equal(counts.over(past), counts.over(rows), check_dtypes=False)
    with ms.open() as log:
        assert past.load(log, "clicks", type="FiledClick") == 500
        assert_frame_equal(counts.over(log), counts.over(rows), check_dtypes=False)
        assert past.load(log, "clicks", type="FiledClick") == 0


def test_a_load_goes_on_where_it_was_and_takes_new_files(home: str | None, tmp_path: Path) -> None:
    rows = clicks(2, 400)
    pattern = written(tmp_path, rows[:300], "csv")
    with ms.open(home) as log:
        assert files(pattern).load(log, "clicks", type="FiledClick") == 300
        rows[300:].write_csv(tmp_path / "part-9.csv")
        (tmp_path / "part-99.csv").touch()
        assert files(pattern).load(log, "clicks", type="FiledClick") == 100
        assert log.scan("clicks").collect()["amount"].to_list() == rows["amount"].to_list()
        rows[300:].write_csv(tmp_path / "part-9.csv", separator=";", include_header=False)
        with pytest.raises(UsageError, match="when it was loaded"):
            files(pattern).load(log, "clicks", type="FiledClick")


def test_two_loads_at_once_append_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clicks(3, 400)
    past = files(written(tmp_path, rows, "ndjson", parts=4))
    with ms.open() as log:
        frames = type(past).rows_of
        taken = []

        def slow(self: Any, name: str, *, after: int = 0) -> Any:
            if len(taken) == 2:
                taken.append(name)
                # Another one takes over in the middle, and does it all.
                past.load(log, "clicks", type="FiledClick")
            taken.append(name)
            return frames(self, name, after=after)

        monkeypatch.setattr(type(past), "rows_of", slow)
        with pytest.raises(ConsumerFenced):
            past.load(log, "clicks", type="FiledClick")
        assert log.scan("clicks").collect()["amount"].to_list() == rows["amount"].to_list()


def test_a_load_of_many_rows_goes_on_within_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.streams.filesource._ROWS", 30)
    rows = clicks(4, 200)
    past = files(written(tmp_path, rows, "parquet", parts=1))
    with ms.open() as log:
        commit, made = type(log).commit, []

        def fails(self: Any, *args: Any, **more: Any) -> Any:
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append(1)
            return commit(self, *args, **more)

        monkeypatch.setattr(type(log), "commit", fails)
        with pytest.raises(KeyboardInterrupt):
            past.load(log, "clicks", type="FiledClick")
        monkeypatch.undo()
        assert log.head == 90
        assert past.load(log, "clicks", type="FiledClick") == 110
        assert log.scan("clicks").collect()["amount"].to_list() == rows["amount"].to_list()


def test_columns_that_some_files_lack_are_null_and_types_widen_from_file_to_file(tmp_path: Path) -> None:
    (tmp_path / "1.ndjson").write_text('{"ts": "2024-01-15", "v": 1}\n')
    (tmp_path / "2.ndjson").write_text('{"ts": "2024-01-16", "v": 2.5, "w": "x"}\n')
    (tmp_path / "3.ndjson").write_text("")
    past = files(str(tmp_path / "*.ndjson"))
    flow = stream("s", time="ts").select("v", "w")
    assert flow.over(past).rows() == [(1.0, None), (2.5, "x")]
    with pytest.raises(MissingColumn):
        stream("s", time="ts").select("z").over(past)
    typed = files(str(tmp_path / "*.ndjson"), schema={"ts": pl.String, "v": pl.Float64, "w": pl.String})
    with ms.open() as log:
        assert typed.load(log, "s", type="FiledNumber", tags=["backfill"]) == 2
        assert log.scan("s").select("v", "w").collect().rows() == [(1.0, None), (2.5, "x")]
        assert [event.tags for event in log.read("s")] == [("backfill",)] * 2


def test_a_column_of_text_files_that_has_no_value_in_one_keeps_the_type_it_has_in_others(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("user,v,ts\n1,2,2024-01-15\n")
    (tmp_path / "2.csv").write_text("user,v,ts\n")
    (tmp_path / "3.csv").write_text("user,v,ts\n1,,2024-01-15\n2,,2024-01-15\n")
    past = files(str(tmp_path / "*.csv"))
    totals = stream("s", time="ts").group_by("user").window(tumbling("1d")).agg(total=pl.col("v").sum())
    assert totals.over(past).select("user", "total").rows() == [(1, 2), (2, 0)]
    with ms.open() as log:
        assert past.load(log, "s", type="FiledTotal") == 3
        assert log.scan("s").collect().schema["v"] == pl.Int64
    typed = files(str(tmp_path / "3.csv"), schema={"v": pl.Float64})
    assert stream("s", time="ts").select("v").over(typed).schema["v"] == pl.Float64


def test_columns_that_schema_does_not_name_stay_whatever_the_format(tmp_path: Path) -> None:
    written(tmp_path, pl.DataFrame({"user": [1], "ts": ["2024-01-15"], "v": [3]}), "ndjson", 1)
    (tmp_path / "part.csv").write_text("user,ts,v\n1,2024-01-15,3\n")
    pl.DataFrame({"user": [1], "ts": ["2024-01-15"], "v": [3]}).write_parquet(tmp_path / "part.parquet")
    for name in ("part-0.ndjson.gz", "part.csv", "part.parquet"):
        [frame] = files(tmp_path / name, schema={"user": pl.Int32, "more": pl.String}).frames()
        assert frame.select("user", "v").schema == {"user": pl.Int32, "v": pl.Int64}
        assert "ts" in frame.columns


def test_a_file_is_known_by_where_it_is_however_its_path_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clicks(1, 20).write_csv("a.csv")
    os.symlink("a.csv", "b.csv")
    with ms.open() as log:
        assert files("a.csv", "./a.csv", "*.csv").load(log, "clicks", type="FiledClick") == 20
        for name in ("./a.csv", str(tmp_path / "a.csv"), "b.csv"):
            assert files(name).load(log, "clicks", type="FiledClick") == 0
        (tmp_path / "below").mkdir()
        monkeypatch.chdir("below")
        assert files("../a.csv").load(log, "clicks", type="FiledClick") == 0
        assert log.head == 20


def test_files_without_rows_are_empty_and_rows_without_values_are_rows(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "1.ndjson.gz", "wt"), gzip.open(tmp_path / "2.ndjson.gz", "wt") as blank:
        blank.write("\n \n")
    (tmp_path / "3.ndjson").write_text("\n\n")
    with gzip.open(tmp_path / "4.csv.gz", "wt"):
        pass
    past = files(tmp_path / "*")
    typed = files(tmp_path / "*", schema={"v": pl.Int64})
    assert sum(frame.height for each in (past, typed) for frame in each.frames()) == 0
    (tmp_path / "5.ndjson").write_text('{"v": null}\n{"v": null}\n')
    (tmp_path / "6.ndjson").write_text('{"v": 1}\n')
    with ms.open() as log:
        assert past.load(log, "s", type="FiledNothing") == 3
        assert [event.data["v"] for event in log.read("s")] == [None, None, 1]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "ndjson", "parquet"])
def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path: Path, ending: str) -> None:
    rows = pl.DataFrame({"v": [1, 2], "ts": ["2024-01-15T12:00:00Z"] * 2})
    path = tmp_path / "week[1]" / f"sums[2].{ending}"
    path.parent.mkdir()
    if ending == "csv.gz":
        path.write_bytes(gzip.compress(rows.write_csv().encode()))
    else:
        getattr(rows, f"write_{ending}")(path)
    assert stream("sums", time="ts").over(files(path))["v"].to_list() == [1, 2]


def test_what_is_no_file_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        files(str(tmp_path / "*.csv")).names()
    with pytest.raises(NotFound) as found:
        files(tmp_path).names()
    assert repr(str(tmp_path / "*.csv.gz")) in found.value.hint
    (tmp_path / "x.bin").write_text("?")
    with pytest.raises(UsageError, match="may be anything"):
        counts.over(files(tmp_path / "x.bin"))
    with pytest.raises(UsageError, match="cannot be read as ndjson"):
        counts.over(files(tmp_path / "x.bin", format="ndjson"))
    with pytest.raises(UsageError, match="several sources"):
        counts.merge(stream("other", time="ts")).over(files(tmp_path / "x.bin", format="ndjson"))
    with pytest.raises(UsageError, match="no files"):
        files()


# --- to files ----------------------------------------------------------------------------------------


def read_back(folder: Path, format: Format) -> pl.DataFrame:
    paths = sorted(folder.rglob(f"*.{format}"), key=lambda path: path.name)
    read = {"parquet": pl.read_parquet, "ndjson": pl.read_ndjson, "csv": pl.read_csv}[format]
    more = {"hive_partitioning": False} if format == "parquet" else {}
    return pl.concat([read(path, **more) for path in paths], how="vertical_relaxed")


@pytest.mark.parametrize("format", ["parquet", "ndjson", "csv"])
def test_rows_go_to_files_in_their_order_each_once(format: Format, home: str | None, tmp_path: Path) -> None:
    rows = clicks(5, 600)
    with ms.open(home) as log:
        flow = counts.select("n", "total", "user").to_files(tmp_path / "out", format=format, name="kept")
        for start in range(0, 600, 200):
            log.append("clicks", rows.slice(start, 200), type="FiledClick")
            run(log, flow, until="head")
        found = read_back(tmp_path / "out", format)
        expected = counts.select("n", "total", "user").over(log, final=False)
        assert_frame_equal(found, expected, check_dtypes=False)
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names[0] == f"kept-{1:020}-{200:020}.{format}"
        assert len(names) == 3


def test_rows_are_put_into_folders_by_their_values(tmp_path: Path) -> None:
    rows = clicks(6, 300)
    with ms.open() as log:
        log.append("clicks", rows, type="FiledClick")
        kind = pl.when(pl.col("kind") == "view").then(pl.lit("a/b = c")).otherwise(pl.col("kind"))
        flow = source.with_columns(kind=kind).select("user", "kind", "amount")
        run(log, flow.to_files(tmp_path / "out", partition_by=["kind", "user"]), until="head")
        everything = pl.read_parquet(tmp_path / "out/**/*.parquet", hive_partitioning=False)
        assert everything.sort(pl.all()).equals(flow.over(log).sort(pl.all()))
        folders = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert folders == ["kind=a%2Fb %3D c", "kind=click", "kind=purchase"]
        [file] = (tmp_path / "out" / "kind=click" / "user=__HIVE_DEFAULT_PARTITION__").iterdir()
        assert set(pl.read_parquet(file, hive_partitioning=False).select("kind", "user").rows()) == {("click", None)}
        [file] = (tmp_path / "out" / "kind=a%2Fb %3D c" / "user=1").iterdir()
        assert set(pl.read_parquet(file, hive_partitioning=False).select("kind", "user").rows()) == {("a/b = c", 1)}
        with pytest.raises(MissingColumn):
            run(log, flow.to_files(tmp_path / "other", partition_by="country"), until="head")


def test_a_flow_that_is_killed_again_and_again_leaves_each_row_in_one_file(tmp_path: Path) -> None:
    log_path, folder = str(tmp_path / "log.db"), tmp_path / "out"
    rows = clicks(7, 1_600, minutes=120)
    with ms.open(log_path) as log:
        for start in range(0, rows.height, 16):
            log.append("clicks", rows.slice(start, 16), type="FiledClick")
        expected = counts.over(log, final=False)
    code = Path(__file__).with_name("files_worker.py")
    kills = killed_until_done(code, log_path, str(folder), seed=7, kills=4, longest=0.3, rounds=30)
    assert kills >= 2
    assert_frame_equal(read_back(folder, "parquet"), expected)
    assert not list(folder.rglob("*.part"))


def test_a_file_that_was_committed_gets_its_name_when_the_flow_is_taken_up_and_others_go(tmp_path: Path) -> None:
    rows, folder = clicks(8, 400), tmp_path / "out"
    with ms.open() as log:
        flow = counts.to_files(folder, every="0s")
        log.append("clicks", rows[:200], type="FiledClick")
        first = Worker(log, flow)
        # Killed after the commit, before the file has its name.
        first._delivery.finish = lambda: None  # type: ignore[union-attr, method-assign]
        first.advance(log.head)
        assert not list(folder.rglob("*.parquet"))
        log.append("clicks", rows[200:], type="FiledClick")
        # Taken over: what the first one writes from here on is not committed.
        second = Worker(log, flow)
        assert len(list(folder.rglob("*.parquet"))) == 1
        with pytest.raises(ConsumerFenced):
            first.advance(log.head)
        assert len(list(folder.rglob("*.part"))) == 1
        second.advance(log.head)
        third = Worker(log, flow)
        assert not list(folder.rglob("*.part"))
        assert_frame_equal(read_back(folder, "parquet"), counts.over(log, final=False))
        assert third.position == log.head


def test_a_live_flow_gathers_the_rows_of_a_while_in_a_file(tmp_path: Path) -> None:
    with ms.open() as log, Running(log, source.to_files(tmp_path / "out", every="1h")) as running:
        log.append("clicks", clicks(9, 5), type="FiledClick")
        assert running.wait(1, timeout=10)
        for n in range(5):
            log.append("clicks", clicks(n, 5), type="FiledClick")
            time.sleep(0.02)
        running.stop()
        assert len(list((tmp_path / "out").iterdir())) == 2
        assert read_back(tmp_path / "out", "parquet").height == 30


def test_a_folder_that_cannot_be_written_stops_the_flow_which_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with ms.open() as log:
        log.append("clicks", clicks(1, 100), type="FiledClick")
        flow = counts.to_files(folder, every="0s")
        worker = Worker(log, flow)
        os.rmdir(folder)
        folder.touch()
        with pytest.raises(StorageError, match="cannot be written"):
            worker.advance(log.head)
        folder.unlink()
        run(log, flow, until="head")
        assert_frame_equal(read_back(folder, "parquet"), counts.over(log, final=False))
        shutil.rmtree(folder)
        with pytest.raises(FlowError, match="cannot be written as csv"):
            run(log, source.with_columns(o=pl.struct("user")).to_files(folder, format="csv", name="csv"), until="head")


def test_flows_that_write_to_one_folder_however_it_is_spelled_keep_their_files_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = clicks(11, 60)
    with ms.open() as log:
        log.append("clicks", rows, type="FiledClick")
        folders = ["out", str(tmp_path / "out"), "./other/../out/"]
        for n, folder in enumerate(folders):
            flow = source.filter(pl.col("user") == n).select("user").to_files(folder, name="third" if n == 2 else None)
            run(log, flow, until="head")
        wanted = rows.filter(pl.col("user") < 3)["user"].sort()
        assert read_back(tmp_path / "out", "parquet")["user"].sort().to_list() == wanted.to_list()
    with ms.open() as other:
        other.append("clicks", rows, type="FiledClick")
        with pytest.raises(StorageError, match="is there already"):
            run(other, source.to_files("out"), until="head")


def test_a_flow_finishes_its_files_from_another_folder_and_misses_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    rows, flow = clicks(12, 90), source.to_files("out", every="0s")
    with ms.open() as log:
        for n, lost in enumerate((False, True, False)):
            monkeypatch.chdir(tmp_path)
            log.append("clicks", rows.slice(n * 30, 30), type="FiledClick")
            worker = Worker(log, flow)
            # Killed after the commit, before the file has its name.
            worker._delivery.finish = lambda: None  # type: ignore[union-attr, method-assign]
            worker.advance(log.head)
            [part] = (tmp_path / "out").glob("*.part")
            monkeypatch.chdir(tmp_path / "elsewhere")
            if lost:
                part.rename(tmp_path / "kept")
                with pytest.raises(StorageError, match=rf"{part.name[:40]}.* is not there"):
                    Worker(log, flow)
                (tmp_path / "kept").rename(part)
            Worker(log, flow)
        assert not list((tmp_path / "elsewhere" / "out").iterdir())
        assert read_back(tmp_path / "out", "parquet")["amount"].to_list() == rows["amount"].to_list()
        # What was finished may be moved on.
        shutil.rmtree(tmp_path / "out")
        run(log, flow, until="head")


def test_files_of_a_flow_are_seen_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ms.open() as log:
        log.append("clicks", clicks(13, 20), type="FiledClick")
        for name in (None, "a/" + "b" * 300, "ü " * 100):
            run(log, source.to_files(".", name=name), until="head")
        run(log, source.to_files(".", name="a/c"), until="head")
        assert pl.scan_parquet("*.parquet").select(pl.len()).collect().item() == 80


def test_values_that_cannot_name_a_folder_are_refused(tmp_path: Path) -> None:
    times = clicks(1, 2)["ts"]
    with ms.open() as log:
        log.append("s", pl.DataFrame({"c": [None, "__HIVE_DEFAULT_PARTITION__"], "ts": times}), type="FiledText")
        for column in ("c", "o"):
            flow = (
                stream("s", time="ts").with_columns(o=pl.struct("c")).to_files(tmp_path / column, partition_by=column)
            )
            with pytest.raises(FlowError, match="partition_by="):
                run(log, flow, until="head")
            assert not list((tmp_path / column).rglob("*.parquet"))


# --- to a function -----------------------------------------------------------------------------------


def test_a_function_is_given_all_rows_in_order_and_again_what_was_not_committed(home: str | None) -> None:
    rows, given, broken = clicks(10, 600), [], []

    def take(frame: pl.DataFrame) -> None:
        if broken:
            raise ValueError("no")
        given.append(frame)

    with ms.open(home) as log:
        flow = counts.to_function(take, name="told")
        log.append("clicks", rows[:300], type="FiledClick")
        run(log, flow, until="head")
        before = sum(frame.height for frame in given)
        log.append("clicks", rows[300:], type="FiledClick")
        broken.append(1)
        with pytest.raises(FlowError, match="ValueError: no"):
            run(log, flow, until="head")
        broken.clear()
        run(log, flow, until="head")
        assert_frame_equal(pl.concat(given), counts.over(log, final=False))
        assert 0 < before < sum(frame.height for frame in given)


def test_a_flow_has_one_end(tmp_path: Path) -> None:
    ended = counts.to_files(tmp_path)
    with pytest.raises(FlowError, match="ended already"):
        ended.to_function(print, name="x")
    with pytest.raises(UsageError, match="not known"):
        counts.to_files(tmp_path, format="xlsx")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no function"):
        counts.to_function("print", name="x")  # type: ignore[arg-type]
