"""Balances say of each row what its key's rows of the last span come to, as does going over all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings

from millstream.streams import balances as balances_of_keys
from millstream.streams import compiled
from millstream.streams.balances import Balances
from millstream.streams.keys import KeyIds

KEYS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "close": (pl.Int64, st.one_of(st.none(), st.integers(0, 5))),
    "far apart": (pl.UInt64, st.sampled_from([0, 7, (1 << 40) + 1, (1 << 62) - 9, (1 << 62) + 5, (1 << 64) - 1])),
    "texts": (pl.String, st.one_of(st.none(), st.sampled_from(["", "a", "b", "ä"]))),
}


def test_loops_are_compiled_here() -> None:
    # What follows would else try the same way twice.
    assert compiled.loops() is not None


def test_loops_whose_file_is_broken_are_compiled_anew(tmp_path: Path) -> None:
    code = "from millstream.streams.compiled import loops; assert loops() is not None"
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}, check=True, timeout=80
        )
        kept = list(tmp_path.rglob("*.nbi"))
        assert kept
        for each in kept:
            each.write_bytes(each.read_bytes()[:20])


@settings(max_examples=40)  # of each of nine
@given(st.data())
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("worth_it", [1, 3, 1_000], ids=["by loops", "by both", "by arrays"])
def test_what_a_row_sees_is_what_going_over_all_rows_gives(worth_it: int, keys: str, data: st.DataObject) -> None:
    with patch.multiple(compiled, ROWS=worth_it, SOON=0), patch.object(balances_of_keys, "_PLACES", 1_000):
        _check_sight(keys, data)


def _check_sight(keys: str, data: st.DataObject) -> None:
    dtype, some = KEYS[keys]
    unit = data.draw(st.sampled_from([1, 1 << 20, 1 << 50]))
    size = data.draw(st.integers(1, 12)) * unit
    inclusive = data.draw(st.booleans())
    counted = data.draw(st.booleans())
    balances = Balances(KeyIds(["key"]))
    seen: list[tuple[Any, int, int]] = []
    start = -(10 * unit)
    for _ in range(data.draw(st.integers(1, 6))):
        # Each batch is later than all before, as settled rows are.
        times = st.integers(0, data.draw(st.integers(0, 30))).map(lambda n, start=start: start + n * unit)
        rows = data.draw(st.lists(st.tuples(some, times, st.integers(-(1 << 63), (1 << 63) - 1)), min_size=1))
        seen += rows
        start = max(at for _, at, _ in rows) + unit
        at = np.array([at for _, at, _ in rows])
        value = np.array([value for *_, value in rows])
        frame = pl.DataFrame({"key": [key for key, *_ in rows]}, schema={"key": dtype})
        balances, found = balances.step(frame, at, [None, value] if counted else [value], size, inclusive=inclusive)
        held = [_span(seen, key, at, size, inclusive) for key, at, _ in rows]
        assert found[-1].tolist() == [_wrapped(sum(span)) for span in held]
        if counted:
            assert found[0].tolist() == [len(span) for span in held]
        if data.draw(st.booleans()):
            # Also rows that the span has passed, which do not count any more.
            newest = max(at for _, at, _ in seen)
            last = data.draw(st.permutations([row for row in seen if row[1] > newest - 2 * size]))
            balances = _taken_up(last, data.draw(st.integers(1, 9)), dtype, size, counted=counted)


def _taken_up(rows: list[tuple[Any, int, int]], step: int, dtype: Any, size: int, *, counted: bool) -> Balances:
    """Balances as a state is taken up again: rows in the order in which they came, some at a time."""
    balances = Balances(KeyIds(["key"]))
    for first in range(0, len(rows), step):
        keys, at, values = zip(*rows[first : first + step], strict=True)
        frame = pl.DataFrame({"key": list(keys)}, schema={"key": dtype})
        balances = balances.hold(frame, np.array(at), [np.array(values)], size)
    return balances.added_up(size, counted=counted)


def _span(seen: list[tuple[Any, int, int]], key: Any, at: int, size: int, inclusive: bool) -> list[int]:
    first = at - size if inclusive else at - size + 1
    return [value for other, when, value in seen if other == key and first <= when <= at]


def _wrapped(total: int) -> int:
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)


@pytest.mark.parametrize("far", [9, 1_000, 10**12])
def test_a_key_whose_rows_come_to_nothing_has_its_place_until_they_are_gone(far: int) -> None:
    with patch.multiple(compiled, ROWS=1, SOON=0):
        balances = Balances(KeyIds(["key"]))
        for keys, at, values, totals in (
            ([7, 7], [0, 10], [5, -5], [5, 0]),
            ([far, far + 1, far], [302, 303, 304], [1, 1, 1], [1, 1, 2]),
            ([far, 7], [305, 311], [1, 3], [3, 3]),
        ):
            frame = pl.DataFrame({"key": keys})
            balances, (found,) = balances.step(frame, np.array(at), [np.array(values)], 300, inclusive=True)
            assert found.tolist() == totals


def test_keys_that_come_and_go_leave_nothing_behind() -> None:
    balances = Balances(KeyIds(["key"]))
    most = 0
    for batch in range(300):
        frame = pl.DataFrame({"key": [f"{batch}-{i}" for i in range(1_000)]})
        balances, (counts,) = balances.step(frame, np.full(1_000, batch), [None], 2, inclusive=True)
        assert counts.tolist() == [1] * 1_000
        most = max(most, balances.nbytes)
        assert balances.ids.count <= 120_000
    assert most < 400_000


def test_one_row_at_a_time_keeps_few_pieces() -> None:
    balances = Balances(KeyIds(["key"]))
    for at in range(2_000):
        balances, (counts,) = balances.step(
            pl.DataFrame({"key": [at % 7]}), np.array([at]), [None], 700, inclusive=False
        )
        assert counts.tolist() == [min(at // 7 + 1, 100)]
    assert len(balances.chunks) < 20
    assert len(balances.totals) < 5
