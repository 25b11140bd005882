"""A search index finds the rows as they are now: in a file by FTS5, and over the bulk API."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream as ms
from millstream.cdc import SchemaChanged, Unchanged, sync

from ..following import NOON, Source, change, put, shape, until
from .endpoints import IndexServer

USERS = shape(("id", "int"), ("email", "text"), ("bio", "text"))


@pytest.fixture
def server() -> Iterator[IndexServer]:
    server = IndexServer()
    yield server
    server.close()


def row(id: int, email: str, bio: Any = "") -> dict[str, Any]:
    return {"id": id, "email": email, "bio": bio}


def follow(log: ms.Log, index: ms.SearchIndex) -> int:
    followers = sync(log, "users", index, start=False)
    count = followers.catch_up()
    assert followers.parked() == []
    return count


def ids(index: ms.SearchIndex, query: str, **options: Any) -> list[Any]:
    return [hit.row["id"] for hit in index.search(query, **options)]


def test_rows_are_found_by_their_words_ranked_and_with_snippets(log: ms.Log, tmp_path: Path) -> None:
    index = ms.SearchIndex(str(tmp_path / "search.db"), fields=["email", "bio"])
    assert index.search("anything") == []
    put(log, USERS, change("READ", None, row(1, "ann@example.com", "Keeps bees, and writes about bees"), USERS))
    put(
        log,
        USERS,
        change("READ", None, row(2, "bob@example.com", "A very long story about a garden " * 9 + "bees"), USERS),
    )
    put(log, USERS, change("READ", None, row(3, "eve@example.com", "Café owner, naïve 漢字"), USERS))
    assert follow(log, index) == 3
    hits = index.search("bees", marks=("<b>", "</b>"))
    assert [hit.row["id"] for hit in hits] == [1, 2]
    assert hits[0].score > hits[1].score
    assert "<b>bees</b>" in hits[0].snippet
    assert hits[0].row == row(1, "ann@example.com", "Keeps bees, and writes about bees")
    assert ids(index, "cafe NAIVE") == [3]
    assert ids(index, "漢字") == [3]
    assert ids(index, "gard*") == [2]
    assert ids(index, "bees garden") == [2]
    assert ids(index, "example", limit=2) != []
    assert len(ids(index, "example", limit=2)) == 2


def test_what_changes_is_found_by_its_new_words_alone(log: ms.Log, tmp_path: Path) -> None:
    index = ms.SearchIndex(str(tmp_path / "search.db"))
    put(log, USERS, *(change("READ", None, row(i, f"user{i}", "same"), USERS) for i in (1, 2, 3)))
    follow(log, index)
    put(log, USERS, change("UPDATE", row(1, "user1"), row(1, "fresh", "same"), USERS))
    put(log, USERS, change("DELETE", row(2, "user2"), None, USERS))
    put(log, USERS, change("UPDATE", row(3, "user3"), row(30, "user3", "moved"), USERS))
    follow(log, index)
    assert ids(index, "user1") == []
    assert ids(index, "fresh") == [1]
    assert ids(index, "user2") == []
    assert ids(index, "moved") == [30]
    put(log, USERS, change("TRUNCATE", None, None, USERS), change("INSERT", None, row(7, "last"), USERS))
    follow(log, index)
    assert ids(index, "same") == []
    assert ids(index, "last") == [7]


def test_values_that_an_update_does_not_tell_are_still_found(log: ms.Log, tmp_path: Path) -> None:
    index = ms.SearchIndex(str(tmp_path / "search.db"))
    put(log, USERS, change("READ", None, row(1, "ann", "bees"), USERS))
    follow(log, index)
    put(log, USERS, change("UPDATE", None, row(1, "anna", Unchanged), USERS))
    follow(log, index)
    assert index.search("bees")[0].row == row(1, "anna", "bees")
    put(log, USERS, change("UPDATE", {"id": 1}, row(2, "anna", Unchanged), USERS))
    follow(log, index)
    assert [hit.row for hit in index.search("bees")] == [row(2, "anna", "bees")]


def test_columns_come_go_and_are_renamed(log: ms.Log, tmp_path: Path) -> None:
    index = ms.SearchIndex(str(tmp_path / "search.db"))
    put(log, USERS, change("READ", None, row(1, "ann", "bees"), USERS))
    new = shape(("id", "int"), ("mail", "text"), ("city", "text"))
    changed = SchemaChanged(
        table="users", columns=["id", "mail", "city"], added={"city": "Oslo"}, dropped=["bio"],
        renamed={"email": "mail"}, timestamp=NOON,
    )  # fmt: skip
    put(log, new, changed, change("INSERT", None, {"id": 2, "mail": "bob", "city": "Rome"}, new))
    follow(log, index)
    assert index.search("Oslo")[0].row == {"id": 1, "mail": "ann", "city": "Oslo"}
    assert ids(index, "ann") == [1]
    assert ids(index, "bees") == []
    assert ids(index, "rome") == [2]


def test_an_index_of_other_fields_is_made_anew_from_its_own_rows(log: ms.Log, tmp_path: Path) -> None:
    path = str(tmp_path / "search.db")
    put(log, USERS, change("READ", None, row(1, "ann", "bees"), USERS))
    follow(log, ms.SearchIndex(path, fields=["email"]))
    assert ids(ms.SearchIndex(path), "bees") == []
    index = ms.SearchIndex(path, fields=["email", "bio"])
    assert follow(log, index) == 0
    assert ids(index, "bees") == [1]
    stemmed = ms.SearchIndex(path, fields=["email", "bio"], tokenize="porter unicode61")
    assert follow(log, stemmed) == 0
    assert ids(stemmed, "bee") == [1]


def test_nothing_that_a_user_types_is_an_error_and_fts5s_syntax_can_be_asked_for(log: ms.Log, tmp_path: Path) -> None:
    index = ms.SearchIndex(str(tmp_path / "search.db"))
    put(log, USERS, change("READ", None, row(1, "ann@example.com", 'says "hello" AND -goodbye-'), USERS))
    follow(log, index)
    for query in ('"', "a AND", "NEAR(", "col:x", "*", "(", "-", "'; drop table users; --", "", "\0"):
        index.search(query)
    assert ids(index, "ann@example.com") == [1]
    assert ids(index, '"hello') == [1]
    assert ids(index, "bio : hello NOT zebra", syntax=True) == [1]
    with pytest.raises(ms.UsageError, match="not understood"):
        index.search("AND AND", syntax=True)


def test_a_file_has_indexes_of_several_tables(log: ms.Log, tmp_path: Path) -> None:
    path = str(tmp_path / "search.db")
    put(log, USERS, change("READ", None, row(1, "ann"), USERS))
    put(log, USERS, change("READ", None, row(7, "ann"), USERS, "people"), table="people")
    for table in ("users", "people"):
        sync(log, table, ms.SearchIndex(path), start=False).catch_up()
    assert ids(ms.SearchIndex(path, table="people"), "ann") == [7]
    with pytest.raises(ms.UsageError, match="several tables"):
        ms.SearchIndex(path).search("ann")


def test_a_table_without_a_key_needs_one(log: ms.Log, tmp_path: Path) -> None:
    keyless = shape(("id", "int"), ("email", "text"), key=())
    put(log, keyless, change("INSERT", None, {"id": 1, "email": "ann"}, keyless))
    with pytest.raises(ms.UsageError, match="key="):
        follow(log, ms.SearchIndex(str(tmp_path / "search.db")))
    index = ms.SearchIndex(str(tmp_path / "other.db"), key=["id"])
    follow(log, index)
    assert ids(index, "ann") == [1]
    with pytest.raises(ms.UsageError, match="no column 'nope'"):
        follow(log, ms.SearchIndex(str(tmp_path / "third.db"), key=["id"], fields=["nope"]))


FOLLOWS = """
import sys
import millstream as ms
log = ms.open(sys.argv[1])
ms.sync(log, "users", ms.SearchIndex(sys.argv[2], size=5)).run()
"""


def test_kill_9_leaves_an_index_that_goes_on_and_equals_the_table(tmp_path: Path) -> None:
    source = Source(tmp_path)
    path = str(tmp_path / "search.db")
    command = [sys.executable, "-c", FOLLOWS, source.log_path, path]
    child = subprocess.Popen(command)
    begun, n = time.monotonic(), 0
    while time.monotonic() < begun + 2.5:
        n += 1
        source.sql(f"INSERT INTO users VALUES ({n}, 'word{n}')")
        if n % 2:
            source.sql(f"UPDATE users SET email = 'changed{n}' WHERE id = {n}")
        if time.monotonic() > begun + 1.2 and child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
    index = ms.SearchIndex(path)
    follow(source.log, index)
    assert sorted(ids(index, "word*", limit=10_000)) == [i for i in range(1, n + 1) if i % 2 == 0]
    assert sorted(ids(index, "changed*", limit=10_000)) == [i for i in range(1, n + 1) if i % 2]
    source.close()


# --- over HTTP ---------------------------------------------------------------------------------------------


def test_documents_are_those_of_the_table(log: ms.Log, server: IndexServer) -> None:
    put(log, USERS, *(change("READ", None, row(i, f"user{i}", "same"), USERS) for i in range(1, 600)))
    put(log, USERS, change("UPDATE", row(1, "user1"), row(1, "fresh"), USERS))
    put(log, USERS, change("UPDATE", row(2, "user2"), row(1_000, "moved"), USERS))
    put(log, USERS, change("DELETE", row(3, "user3"), None, USERS))
    index = ms.SearchIndex(server.url)
    assert follow(log, index) == 602
    assert server.bulks == [603]
    assert server.documents["1"] == {**row(1, "fresh"), "millstream_position": 600}
    assert "2" not in server.documents
    assert "3" not in server.documents
    assert server.documents["1000"]["email"] == "moved"
    assert len(server.documents) == 598
    [hit] = index.search("fresh")
    assert (hit.row, hit.snippet) == (row(1, "fresh"), "[fresh]")


def test_what_comes_again_or_late_changes_nothing(log: ms.Log, server: IndexServer) -> None:
    put(log, USERS, change("READ", None, row(1, "old"), USERS), change("READ", None, row(2, "gone"), USERS))
    put(log, USERS, change("TRUNCATE", None, None, USERS))
    put(log, USERS, change("INSERT", None, row(1, "new"), USERS), change("INSERT", None, row(3, "x"), USERS))
    put(log, USERS, change("DELETE", row(3, "x"), None, USERS))
    for name in ("first", "second", "third"):
        follow(log, ms.SearchIndex(server.url, name=name))
        assert list(server.documents) == ["1"]
        assert server.documents["1"]["email"] == "new"


def test_values_that_an_update_does_not_tell_are_taken_from_the_index(log: ms.Log, server: IndexServer) -> None:
    put(log, USERS, change("READ", None, row(1, "ann", "bees"), USERS))
    put(log, USERS, change("UPDATE", None, row(1, "anna", Unchanged), USERS))
    put(log, USERS, change("UPDATE", {"id": 1}, row(2, "annb", Unchanged), USERS))
    follow(log, ms.SearchIndex(server.url))
    assert server.documents == {"2": {**row(2, "annb", "bees"), "millstream_position": 3}}


def test_a_document_that_is_refused_is_parked_and_those_around_it_are_not(log: ms.Log, server: IndexServer) -> None:
    emails = ["a", "unmappable", "c"]
    put(log, USERS, *(change("INSERT", None, row(i, e), USERS) for i, e in enumerate(emails)))
    followers = sync(log, "users", ms.SearchIndex(server.url), start=False)
    assert followers.catch_up() == 2
    [one] = followers.parked()
    assert "failed to parse" in one.error
    assert sorted(server.documents) == ["0", "2"]


def test_a_busy_server_is_asked_again(log: ms.Log, server: IndexServer) -> None:
    put(log, USERS, change("INSERT", None, row(1, "a"), USERS))
    server.busy = 2
    with sync(log, "users", ms.SearchIndex(server.url)) as followers:
        until(lambda: server.documents)
        until(lambda: not followers.errors)
    assert followers.parked() == []


def test_ids_are_the_keys_however_long_or_strange(log: ms.Log, server: IndexServer) -> None:
    two = shape(("a", "text"), ("b", "int"), key=("a", "b"))
    keys = ["ä/ö ?&#", "x" * 2_000, ""]
    put(log, two, *(change("INSERT", None, {"a": a, "b": 1}, two) for a in keys))
    put(log, two, change("DELETE", {"a": keys[1], "b": 1}, None, two))
    follow(log, ms.SearchIndex(server.url))
    assert list(server.documents) == ['["ä/ö ?&#","1"]', '["","1"]']


def test_addresses_without_an_index_and_credentials_in_names(server: IndexServer) -> None:
    with pytest.raises(ms.UsageError, match="no index"):
        ms.SearchIndex("http://localhost:9200")
    index = ms.SearchIndex("http://ann:secret@localhost:9200/users?token=secret")
    assert index.name == "search:http://localhost:9200/users"
