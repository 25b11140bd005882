"""Where a stream's events from a position on begin."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

import millstream as ms


@given(sizes=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=30))
def test_a_stream_is_read_from_any_position_on_whatever_runs_it_has(sizes: list[tuple[bool, int]]) -> None:
    with ms.open() as log:
        mine: list[int] = []
        for is_mine, count in sizes:
            receipt = log.append("mine" if is_mine else "other", [ms.Plain("Bounded", {"n": 1})] * count)
            if is_mine:
                mine.extend(range(receipt.first, receipt.position + 1))
        if not mine:
            return
        for after in range(log.head + 1):
            assert [each.position for each in log.read("mine", after=after)] == [p for p in mine if p > after]
            found = [each.position for each in log.read("mine", until_position=after + 1)]
            assert found == [p for p in mine if p <= after]


@pytest.mark.parametrize("name", ["\ud800", "a\0", "", "a*b", 5])
def test_what_no_stream_is_called_is_refused_wherever_a_stream_is_asked_for(name):
    with ms.open() as log:
        for ask in (log.version, log.stream, log.read, log.scan):
            with pytest.raises(ms.InvalidStreamName):
                ask(name)
        for ask in (log.streams, log.compact):
            with pytest.raises(ms.UsageError if name == 5 else ms.InvalidStreamName):
                ask(name)
        if isinstance(name, str):
            with pytest.raises((ms.NotFound, ms.InvalidQuery)):
                log.sql(f'select * from "{name}"')


@pytest.mark.parametrize("given", [5, b"log.db", "\ud800", "a\0b"])
def test_what_is_no_path_is_refused_wherever_a_file_is_asked_for(given):
    with ms.open() as log:
        for ask in (ms.open, log.backup, log.export, log.import_):
            with pytest.raises(ms.UsageError, match="is not a path"):
                ask(given)


@pytest.mark.parametrize("given", [5, b"users", "\ud800"])
def test_what_no_table_is_called_is_refused(given):
    with ms.open() as log:
        for ask in (log.table, lambda name: log.row_history(name, 1), lambda name: log.table_diff(name, 1)):
            with pytest.raises(ms.UsageError, match="is not the name of a table"):
                ask(given)


def test_what_is_no_clock_is_refused_before_there_is_a_log(tmp_path):
    with pytest.raises(ms.UsageError, match="5 is not a clock"):
        ms.open(tmp_path / "log.db", clock=5)
    assert not list(tmp_path.iterdir())
    with ms.open(clock=lambda: "noon") as log, pytest.raises(ms.InvalidTime, match="the log's clock"):
        log.now()
