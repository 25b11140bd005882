from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from referee import START, agree, clicks, play

from millstream.streams import Flow, FlowError, hopping, sliding, stream, tumbling

source = stream("clicks", time="ts", lateness="2s")


def hot(cooldown: str) -> Flow:
    counts = source.group_by("user").window(hopping("5m", every="1m")).agg(clicks=pl.len())
    return counts.alert(pl.col("clicks") >= 12, cooldown=cooldown)


@pytest.mark.parametrize(("cooldown", "sql"), [("0s", "0 second"), ("3m", "3 minute"), ("10m", "10 minute")])
@pytest.mark.parametrize("seed", range(4))
def test_an_alert_is_the_first_window_of_a_burst(seed: int, cooldown: str, sql: str) -> None:
    rows = clicks(seed, 1_500, minutes=180)
    counts = play(source.group_by("user").window(hopping("5m", every="1m")).agg(clicks=pl.len()), rows)
    result = play(hot(cooldown), rows, seed)
    agree(
        result,
        f"""select * from counts where clicks >= 12 qualify coalesce(
            window_end - lag(window_end) over (partition by user order by window_end)
            >= interval '{sql}', true)""",
        counts=counts,
    )
    assert result.equals(play(hot(cooldown), rows))


def test_one_long_burst_is_one_alert_and_the_next_after_a_pause_is_another() -> None:
    def rows(*minutes: int) -> pl.DataFrame:
        ts = [START + timedelta(minutes=m, seconds=s) for m in minutes for s in range(25)]
        return pl.DataFrame({"user": [1] * len(ts), "ts": ts})

    assert play(hot("5m"), rows(*range(30))).height == 1
    assert play(hot("5m"), rows(0, 3, 6, 9)).height == 1
    assert play(hot("5m"), rows(0, 60)).height == 2


def test_alerts_over_all_rows_and_on_sliding_windows() -> None:
    rows = clicks(2)
    flow = source.window(sliding("1m")).agg(n=pl.len()).alert(pl.col("n") > 40, cooldown="2m")
    whole = play(flow, rows)
    assert whole.height > 1
    assert play(flow, rows, 2).equals(whole)


def test_an_alert_with_a_cooldown_needs_rows_in_order_of_time() -> None:
    with pytest.raises(FlowError, match="order of time"):
        source.alert(pl.col("amount") > 1, cooldown="1m")
    assert play(source.alert(pl.col("amount") > 90), clicks(1)).height


@pytest.mark.parametrize("on", ["meet", "enter"])
def test_a_key_that_is_not_a_number_is_one_key_from_batch_to_batch(on: str) -> None:
    nan = float("nan")
    ts = [START + timedelta(seconds=20 * each) for each in range(30)]
    rows = pl.DataFrame({"user": [nan, 1.5, -0.0, 0.0, nan] * 6, "ts": ts})
    counts = source.group_by("user").window(tumbling("1m")).agg(n=pl.len())
    flow = counts.alert(pl.col("n") > 0, on="enter") if on == "enter" else counts.alert(pl.col("n") > 0, cooldown="1h")
    whole = play(flow, rows)
    assert sorted(map(str, whole["user"].abs().to_list())) == ["0.0", "1.5", "nan"]
    for seed in range(4):
        assert play(flow, rows, seed).equals(whole)
