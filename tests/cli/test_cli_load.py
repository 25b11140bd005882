"""``millstream load``."""

from __future__ import annotations

import json

import millstream as ms


def test_files_are_loaded_once_in_their_order_and_new_ones_later(invoke, tmp_path):
    path, pattern = str(tmp_path / "shop.db"), str(tmp_path / "past-*.csv")
    (tmp_path / "past-2.csv").write_text("user,at\n3,2024-01-16\n")
    (tmp_path / "past-1.csv").write_text("user,at\n1,2024-01-15\n2,2024-01-15\n")
    words = ("load", path, pattern, "--stream", "visits", "--type", "LoadedVisit", "--tag", "past")
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"stream": "visits", "rows": 3, "head": 3}
    (tmp_path / "past-3.csv").write_text("user,at\n4,2024-01-17\n")
    assert json.loads(invoke(*words).stdout) == {"stream": "visits", "rows": 1, "head": 4}
    with ms.open(path) as log:
        assert [event.data["user"] for event in log.read("visits")] == [1, 2, 3, 4]
        assert {event.tags for event in log.read("visits")} == {("past",)}
    (tmp_path / "past-3.csv").write_text("user,at\n4,2024-01-17\n5,2024-01-17\n")
    changed = invoke(*words)
    assert changed.exit_code == 2
    assert "when it was loaded" in changed.stderr


def test_without_a_file_nothing_is_made(invoke, tmp_path):
    path = tmp_path / "shop.db"
    done = invoke("load", str(path), str(tmp_path / "*.csv"), "-s", "visits", "-t", "LoadedVisit")
    assert done.exit_code == 3
    assert not path.exists()
