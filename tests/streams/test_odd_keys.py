"""Keys of every type, with nulls, NaN and equal times: in one piece, in lanes on disk, in two processes, and by SQL."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from inline import inline
from polars.testing import assert_frame_equal
from referee import START, play

import millstream as ms
from millstream.streams import CannotCheck, Flow, closing, state, stream
from millstream.streams.hashing import hashed
from millstream.streams.replay import replay
from millstream.streams.sharing.coordinator import SharedWorker
from millstream.streams.spilling import Spill

source = stream("odd", time="ts", lateness="2s").group_by("k")
some = pl.col("v").is_not_null()

FLOWS: dict[str, Flow] = {
    "tumbling": source.window(ms.tumbling("10s")).agg(n=pl.len(), total=pl.col("v").sum(), last=pl.col("v").last()),
    "sliding": source.window(ms.sliding("10s")).agg(n=pl.len(), most=pl.col("v").max()),
    "session": source.window(ms.session("5s")).agg(n=pl.len()),
    "match": source.match("a b", within="20s", define={"a": some, "b": some}),
    "latest": stream("odd", time="ts").latest("k"),
}

KEYS = {
    "float": pl.Series([float("nan"), 1.0, None, -0.0, 0.0, float("inf"), float("nan"), 1.0, None, 0.0]),
    "text": pl.Series(["é", "e\u0301", "", "\0", None, "日本", "é", "\U0001f600", "a:b", ""]),
    "truth": pl.Series([True, False, None, True, None] * 2),
    "day": pl.Series([date(2024, 1, 1), None] * 5),
    "far day": pl.Series([2**31 - 1, None, 1 - 2**31, 2**31 - 1, 5] * 2, dtype=pl.Int32).cast(pl.Date),
    "far time": pl.Series([2**63 - 1, None, 1 - 2**63, 2**63 - 1, 5] * 2, dtype=pl.Int64).cast(pl.Datetime("us")),
    "span": pl.Series([timedelta(1), None, timedelta(0), timedelta(1), None] * 2),
    "decimal": pl.Series(["1.50", "1.5", None, "2", "0"] * 2).cast(pl.Decimal(10, 2)),
    "unsigned": pl.Series([2**64 - 1, 0, None, 5, 1] * 2, dtype=pl.UInt64),
    "long": pl.Series([2**70, -(2**70), None, 5, 2**70] * 2, dtype=pl.Int128),
    "category": pl.Series(["b", "a", None, "b", "c"] * 2, dtype=pl.Categorical),
    "bytes": pl.Series([b"a", b"", None, b"\0", b"a"] * 2),
    "struct": pl.Series([{"a": 1, "b": "x"}, {"a": None, "b": "x"}, None, {"a": 1, "b": "x"}, {"a": 2, "b": ""}] * 2),
    "nothing": pl.Series([None] * 10, dtype=pl.Null),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_type_are_told_apart_alike_wherever_they_are(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (state, "FRESH", 4),
        (state, "FAN_IN", 2),
        (closing, "PIECE", 2),
        (closing, "BLOCK", 2),
    ):
        monkeypatch.setattr(module, name, value)
    ts = [START + timedelta(seconds=3 * (number // 2)) for number in range(10)]
    values = [1, 2, None, 4, 5, 6, 7, 8, 9, 10]
    rows = pl.DataFrame({"k": KEYS[kind], "v": values, "ts": ts})
    rows = pl.concat([rows, rows[-1:].with_columns(pl.col("ts") + timedelta(days=3))])
    for name, flow in FLOWS.items():
        if kind == "struct" and name in ("sliding", "match"):
            with pytest.raises(ms.MillstreamError, match="no key"):
                play(flow, rows)
            continue
        whole = play(flow, rows, final=False)
        assert_frame_equal(play(flow, rows, 1, final=False, spill=lambda: Spill(1, str(tmp_path))), whole)
        if kind == "long" or name not in ("tumbling", "match"):
            continue  # No log holds such long integers; and two flows say enough of what follows.
        ended = flow.to("out", type="OddOut")
        with ms.open(tmp_path / f"{name}.db") as log:
            for part in rows.iter_slices(3):
                log.append("odd", part, type="OddRow")
            worker = SharedWorker(log, ended, 2, rows=3, commit_every=0, begin=inline(log, ended))
            while worker.advance(log.head):
                pass
            worker.flush()
            worker.close()
            assert_frame_equal(log.scan("out").collect(), flow.over(log, final=False))
            try:
                assert flow.check(log).equal
            except CannotCheck:
                assert name == "match"


def test_equal_integers_have_equal_hashes_whatever_their_type() -> None:
    values = [0, 1, -1, 2**62, -(2**63)]
    plain = hashed(pl.Series(values, dtype=pl.Int64)).tolist()
    assert hashed(pl.Series(values, dtype=pl.Int128)).tolist() == plain
    large = [2**64 - 1, 2**63, 5]
    assert hashed(pl.Series(large, dtype=pl.Int128)).tolist() == hashed(pl.Series(large, dtype=pl.UInt64)).tolist()
    beyond = [2**64, 2**65, -(2**64), -(2**63) - 1, 2**126, None]
    assert len(set(hashed(pl.Series(beyond, dtype=pl.Int128)).tolist())) == len(beyond)


def summed(held: dict[str, Any], row: dict[str, Any]) -> int:
    return int(held["sum"] + row["v"])


def given(key: ms.KeyContext, row: dict[str, Any]) -> None:
    key.held["sum"] += row["v"]
    key.give(sum=key.held["sum"])


REMEMBERING: dict[str, Flow] = {
    "latest": stream("odd", time="ts").latest("k"),
    "distinct": stream("odd", time="ts").distinct("k", within="1h"),
    "count": source.window(ms.count(2)).agg(total=pl.col("v").sum()),
    "fold": source.fold(summed, start={"sum": 0}, schema={"sum": pl.Int64}),
    "process": source.process(
        given, start={"sum": 0}, schema={"sum": pl.Int64}, gives={"sum": pl.Int64}, reads=["v"]
    ).select("sum"),
    "burst": source.window(ms.tumbling("1s")).agg(n=pl.len()).alert(pl.col("n") > 0, cooldown="3s"),
    "enter": source.window(ms.tumbling("1s")).agg(n=pl.len()).alert(pl.col("n") > 0, on="enter"),
    "pairs": stream("odd", time="ts").select("k").join(stream("odd", time="ts").select("k", "v"), on="k", back="1h"),
}


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize("others", [[], [1.5], [None]])
def test_what_is_no_number_is_one_key_also_where_one_row_meets_one_that_is_held(
    name: str, others: list[float | None]
) -> None:
    keys = [float("nan"), *others] * 6
    ts = [START + timedelta(seconds=second if second % 5 else 0) for second in range(len(keys))]
    flow = REMEMBERING[name]
    with ms.open() as log:
        for row in pl.DataFrame({"k": keys, "v": range(len(keys)), "ts": ts}).iter_slices(1):
            log.append("odd", row, type="OddNumber")
        whole = replay(flow, log)
        assert_frame_equal(replay(flow, log, rows=1), whole)
        assert flow.explain(log, whole.row(0, named=True)).positions
        if name not in ("fold", "process"):
            assert flow.check(log).equal


@pytest.mark.parametrize(
    "name", ["match", "measures", "process", "tumbling", "hopping", "session", "count", "calendar"]
)
def test_zero_has_no_sign_where_a_row_is_made_of_several(name: str) -> None:
    a = {"a": some}
    flow = {
        "match": source.match("a{2}", within="20s", define=a),
        "measures": source.match("a{2}", within="20s", define=a, measures={"sum": ms.matched.sum("a.v")}),
        "process": source.process(
            given, start={"sum": 0}, schema={"sum": pl.Int64}, gives={"sum": pl.Int64}, reads=["v"]
        ),
        "tumbling": source.window(ms.tumbling("3s")).agg(sum=pl.col("v").sum()),
        "hopping": source.window(ms.hopping("4s", every="2s")).agg(sum=pl.col("v").sum()),
        "session": source.window(ms.session("1s")).agg(sum=pl.col("v").sum()),
        "calendar": source.window(ms.calendar("1d", time_zone="UTC")).agg(sum=pl.col("v").sum()),
        "count": source.window(ms.count(3)).agg(sum=pl.col("v").sum()),
    }[name]
    ts = [START + timedelta(seconds=second // 2) for second in range(12)]
    rows = pl.DataFrame({"k": [-0.0, 0.0, 0.0, -0.0, -0.0, -0.0] * 2, "v": range(12), "ts": ts})
    whole = play(flow, rows)
    assert {str(key) for key in whole["k"]} == {"0.0"}
    for seed in range(4):
        assert str(play(flow, rows, seed).rows()) == str(whole.rows())
