"""millstream copy, promote, restore: to another home, off the machine, and back."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

import millstream as ms


def record(done):
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def content(path):
    with ms.open(str(path), readonly=True) as log:
        return [(e.position, e.stream, e.version, e.type, e.time, e.tags, e.data) for e in log.read()]


def test_a_copy_is_the_log_and_says_so_by_its_hash(invoke, shop):
    done = record(invoke("copy", shop, "copy.db", "--verify"))
    assert (done["position"], done["events"]) == (5, 5)
    assert done["hash"] == record(invoke("verify", shop))["hash"]
    assert content("copy.db") == content(shop)
    assert record(invoke("copy", shop, "copy.db"))["events"] == 0


def test_a_copy_takes_no_appends_until_it_is_promoted(invoke, shop):
    record(invoke("copy", shop, "copy.db"))
    line = '{"user": 8}\n'
    refused = invoke("append", "copy.db", "audit", "--type", "Login", input=line)
    assert refused.exit_code == 4
    assert "is a copy of" in refused.stderr
    assert record(invoke("promote", "copy.db"))["position"] == 5
    assert record(invoke("append", "copy.db", "audit", "--type", "Login", input=line))["position"] == 6
    assert invoke("promote", "copy.db").exit_code == 2


def test_a_switch_moves_the_home(invoke, shop):
    done = record(invoke("copy", shop, "new.db", "--switch", "--verify"))
    assert done["position"] == 5
    assert done["pause"] < 5
    line = '{"user": 8}\n'
    refused = invoke("append", shop, "audit", "--type", "Login", input=line)
    assert refused.exit_code == 4
    assert "moved to new.db" in refused.stderr
    assert record(invoke("append", "new.db", "audit", "--type", "Login", input=line))["position"] == 6


def test_another_log_is_no_target(invoke, shop):
    invoke("append", "other.db", "audit", "--type", "Login", input='{"user": 8}\n')
    done = invoke("copy", shop, "other.db")
    assert done.exit_code == 4
    assert "home of its events" in done.stderr
    assert len(content("other.db")) == 1


def test_a_copy_that_follows_reports_that_it_is_level_and_ends_on_ctrl_c(start, shop, tmp_path):
    process = start("copy", shop, "depot/", "--follow", "--every", "50ms")
    assert b"level at position 5" in process.stderr.readline()
    with ms.open(shop) as log:
        log.append("audit", ms.Plain("Login", {"user": 9}))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(os.listdir(tmp_path / "depot")) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(out)["position"] == 6


def test_a_depot_is_restored_to_a_moment(invoke, shop):
    record(invoke("copy", shop, "depot/"))
    moment = content(shop)[3][4].isoformat()
    done = record(invoke("restore", "depot/", "then.db", "--until", f"@{moment}", "--verify"))
    assert done["position"] == 3
    assert content("then.db") == content(shop)[:3]
    assert record(invoke("restore", "depot/", "now.db"))["position"] == 5
    again = invoke("restore", "depot/", "now.db")
    assert again.exit_code == 1
    assert "is a log already" in again.stderr


def test_a_backup_is_restored(invoke, shop):
    record(invoke("backup", shop, "monday.db"))
    assert record(invoke("restore", "monday.db", "new.db", "--verify"))["position"] == 5
    assert content("new.db") == content(shop)
    assert record(invoke("restore", "monday.db", "early.db", "--until", "3"))["position"] == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("copy", "nowhere.db", "x.db"), 3),
        (("copy", "empty/", "x.db"), 3),
        (("copy", "shop.db", "x.db", "--every", "1s"), 2),
        (("copy", "shop.db", "x.db", "--follow", "--switch"), 2),
        (("copy", "shop.db", "depot/", "--switch"), 2),
        (("copy", "shop.db", "depot/", "--verify"), 2),
        (("restore", "shop.db", "depot/"), 1),
        (("restore", "shop.db", "x.db", "--until", "noon"), 2),
        (("promote", "shop.db"), 2),
    ],
)
def test_what_cannot_be_is_refused_with_its_code(invoke, shop, words, code):
    done = invoke(*words)
    assert done.exit_code == code, done.stderr
    assert done.stderr.startswith("error: ")
