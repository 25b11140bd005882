"""Flows as pictures: every part is there, nothing covers anything, and one at work says how it is getting on."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from test_explain import ALL
from test_flow_check import amount, by_user, filled, left, right

import millstream as ms
from millstream.errors import UsageError
from millstream.streams import stream, tumbling
from millstream.streams.describing import span, text

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SVG = "{http://www.w3.org/2000/svg}"


def boxes(picture: str) -> list[tuple[float, float, float, float]]:
    [_, *found] = ElementTree.fromstring(picture).iter(f"{SVG}rect")
    sides = [[float(each.attrib[name]) for name in ("x", "y", "width", "height")] for each in found]
    return [(x, y, x + width, y + height) for x, y, width, height in sides]


def words(picture: str) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(picture).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", ALL)
def test_a_picture_shows_every_stage_once_and_none_covers_another(name: str) -> None:
    picture = ALL[name].to("out", type="Out").late_to("aside").graph()
    found = boxes(picture)
    for number, (x, y, end, bottom) in enumerate(found):
        for a, b, c, d in found[number + 1 :]:
            assert end <= a or c <= x or bottom <= b or d <= y
    said = words(picture)
    assert "→ out" in said
    assert "late rows → aside" in said
    assert said.count("a") == 1  # a source that is read twice stands there once


def test_branches_of_one_source_have_columns_of_their_own() -> None:
    busy = left.filter(amount > 3).group_by("user").window(tumbling("1m")).agg(n=pl.len())
    quiet = left.filter(amount < 3).group_by("user").window(tumbling("1m")).agg(n=pl.len())
    found = boxes(busy.merge(quiet).graph())
    assert len(found) == 6
    assert len({x for x, *_ in found}) > 1


def test_a_flow_at_work_shows_its_rows_rates_and_watermarks() -> None:
    flow = by_user.window(tumbling("1m")).agg(n=pl.len()).join_latest(right, on="user").to("out", type="Out")
    with filled(1, 120) as log, ms.Running(log, flow) as running:
        assert running.wait(log.head, timeout=20)
        assert running.wait(log.head, timeout=20)  # what it has written itself, too
        found = running.progress()["out/Out"]
        assert found.rows == {"a": 120, "b": 120}
        assert found.behind == 0
        assert found.rows_per_second["a"] > 0
        assert found.given == log.scan("out").collect().height > 0
        assert found.late == running.late["out/Out"] > 0
        watermark = found.watermarks["a"]
        assert watermark is not None
        assert watermark < log.scan("a").collect()["ts"].max()  # type: ignore[operator]
        said = words(flow.graph(running))
        assert f"watermark {watermark:%Y-%m-%d %H:%M:%S}" in said
        assert any(line.startswith("120 rows, ") for line in said)
        assert f"holds {found.held[0]} rows" in said
        with pytest.raises(UsageError, match="not among those"):
            left.to("other", type="Other").graph(running)


def test_text_of_users_is_text_in_the_picture() -> None:
    flow = stream("<a & b>").filter(pl.col('"odd"') == "</text>").with_columns(x=pl.lit("]]>"))
    assert "<a & b>" in words(flow.graph())


def test_lengths_of_time_and_expressions_are_said_as_one_writes_them() -> None:
    assert [span(n) for n in (0, 5_000_000, 5_400_000_000, 90_061_000_001)] == ["0s", "5s", "1h30m", "1d1h1m1s1us"]
    assert text((pl.col("kind") == "click") & (amount > 3)) == '(kind == "click") & (amount > 3)'
    assert text(pl.col("n").sum() / pl.len()) == "n.sum() / len()"


def test_the_picture_in_the_example_is_what_its_flow_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from flights.flows import never_left

    assert (EXAMPLES / "flights" / "never-left.svg").read_text(encoding="utf-8") == never_left.graph()


def test_the_command_draws_a_flow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from millstream.cli import main

    (tmp_path / "graphed.py").write_text("import millstream as ms\nflow = ms.stream('a').to('b', type='B')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(SystemExit):
        main(["flow", "graph", "graphed:flow"])
    assert words(capsys.readouterr().out) == ["a", "time of recording", "→ b", "B"]


def test_a_picture_says_where_rows_go_outside_the_log_and_what_tables_are_looked_up_in() -> None:
    looked_up = left.join_asof(ms.table("people", key="id"), on="user")
    said = words(looked_up.to_files("past", format="csv", name="kept").graph())
    assert {"→ past", "csv files", "named kept", "table", "by id"} <= set(said)
    wide = left.join(right, on="user", window=tumbling("1m"), prefix="b_").window(tumbling("5m"))
    said = words(wide.agg(slow=ms.quantile("amount", 0.99)).to_function(print, name="shown").graph())
    assert {"→ print", "join inner in windows", "tumbling 1m", "slow = quantile(amount, 0.99)"} <= set(said)
