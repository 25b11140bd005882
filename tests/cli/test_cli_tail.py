"""millstream tail, and what ends it."""

from __future__ import annotations

import json
import signal

import pytest

import millstream as ms


def lines(done):
    assert done.exit_code == 0, done.stderr
    return [json.loads(line)["position"] for line in done.stdout.splitlines()]


def test_the_last_events_come_oldest_first(invoke, shop):
    assert lines(invoke("tail", shop)) == [1, 2, 3, 4, 5]
    assert lines(invoke("tail", shop, "-n", "2")) == [4, 5]
    assert lines(invoke("tail", shop, "-n", "0")) == []
    assert lines(invoke("tail", shop, "account-1", "--lines", "2")) == [2, 4]
    assert lines(invoke("tail", shop, "--from", "4")) == [4, 5]
    assert lines(invoke("tail", shop, "--type", "AccountCreated")) == [1, 3]


def test_following_begins_with_the_past_and_ends_when_nothing_comes(invoke, shop):
    assert lines(invoke("tail", shop, "-f", "--timeout", "50ms")) == [1, 2, 3, 4, 5]
    assert lines(invoke("tail", shop, "-f", "--from", "end", "--timeout", "50ms")) == []
    assert lines(invoke("tail", shop, "later", "-f", "--timeout", "50ms")) == []
    assert invoke("tail", shop, "-f", "--timeout", "50ms", "-o", "csv").stdout.count("\n") == 6
    assert len(invoke("tail", shop, "-f", "--timeout", "50ms", "-o", "table").stdout.splitlines()) == 6


@pytest.mark.parametrize(
    "words", [("--lines", "1", "--from", "1"), ("--timeout", "1s"), ("-f", "-o", "json"), ("-f", "--timeout", "x")]
)
def test_what_does_not_go_together_is_refused(invoke, shop, words):
    assert invoke("tail", shop, *words).exit_code == 2


def test_what_another_process_appends_is_seen_once_and_in_order(start, shop):
    process = start("tail", shop, "--follow", "--lines", "1", "--timeout", "3s")
    assert json.loads(process.stdout.readline())["position"] == 5
    with ms.open(shop) as log:
        for n in range(200):
            log.append(f"s-{n % 3}", ms.Plain("T", {"n": n}))
    out, err = process.communicate(timeout=50)
    assert (process.returncode, err) == (0, b"")
    assert [json.loads(line)["data"]["n"] for line in out.splitlines()] == list(range(200))


def test_an_event_is_handed_on_at_once(start, shop):
    process = start("tail", shop, "--follow", "--from", "5")
    assert json.loads(process.stdout.readline())["position"] == 5
    with ms.open(shop) as log:
        for position in (6, 7):
            log.append("s", ms.Plain("T", {}))
            assert json.loads(process.stdout.readline())["position"] == position


def test_a_place_beyond_the_end_is_waited_for(start, shop):
    process = start("tail", shop, "--follow", "--from", "7", "--timeout", "3s")
    with ms.open(shop) as log:
        for _ in range(3):
            log.append("s", ms.Plain("T", {}))
    out, _ = process.communicate(timeout=50)
    assert [json.loads(line)["position"] for line in out.splitlines()] == [7, 8]


def test_ctrl_c_ends_it_quietly(start, shop):
    process = start("tail", shop, "--follow")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_it_ends_when_its_reader_goes_away_though_nothing_comes(start, shop):
    process = start("tail", shop, "--follow")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""
