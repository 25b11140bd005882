"""The commands on a log in PostgreSQL, and on one that is named by a sqlite:/// URL."""

from __future__ import annotations

import json

import polars as pl
import psycopg
import pytest

import millstream as ms


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    """A log of four events, by a URL."""
    url = request.getfixturevalue("postgres") if request.param == "postgres" else f"sqlite:///{tmp_path}/shop.db"
    with ms.open(url) as log:
        log.append("account-1", [ms.Plain("Opened", {"owner": "Ann"}), ms.Plain("Deposited", {"amount": 5})])
        log.append("clicks", pl.DataFrame({"page": ["a", "b"]}), type="Click")
    return url


def answer(done) -> list[dict]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_command_takes_a_url(invoke, url, tmp_path):
    assert [row["type"] for row in answer(invoke("read", url))] == ["Opened", "Deposited", "Click", "Click"]
    assert [row["position"] for row in answer(invoke("read", url, "account-*", "--range", "2:"))] == [2]
    assert [row["position"] for row in answer(invoke("tail", url, "--lines", "1"))] == [4]
    assert [row["stream"] for row in answer(invoke("streams", url))] == ["account-1", "clicks"]
    assert answer(invoke("append", url, "account-1", "--type", "Closed", input="{}"))[0]["position"] == 5
    assert answer(invoke("sql", url, "select page from clicks order by 1")) == [{"page": "a"}, {"page": "b"}]
    assert answer(invoke("export", url, str(tmp_path / "all.ndjson")))[0]["count"] == 5
    assert answer(invoke("import", url, str(tmp_path / "all.ndjson"), "--stream", "copy"))[0]["count"] == 5
    assert answer(invoke("compact", url)) == [{"runs": 0, "bodies": 0}]
    assert answer(invoke("verify", url))[0]["position"] == 10


def test_commands_but_append_and_import_make_no_log(invoke, postgres, tmp_path):
    places = [f"{postgres}?schema=none", f"sqlite:///{tmp_path}/none.db"]
    for place in places:
        for words in (["read", place], ["compact", place], ["verify", place]):
            done = invoke(*words)
            assert (done.exit_code, "there is no log" in done.stderr) == (3, True), done.output
    with psycopg.connect(postgres) as connection:
        assert connection.execute("select to_regnamespace('none')").fetchone() == (None,)
    assert not (tmp_path / "none.db").exists()
    for place in places:
        assert answer(invoke("append", place, "a", "--type", "T", input="{}"))[0]["position"] == 1


def test_what_another_process_appends_is_followed(start, postgres):
    with ms.open(postgres) as log:
        log.append("a", ms.Plain("Tick", {"n": 1}))
        following = start("tail", postgres, "--follow")
        for n in (1, 2, 3):
            assert json.loads(following.stdout.readline())["data"] == {"n": n}
            log.append("a", ms.Plain("Tick", {"n": n + 1}))


# --- passwords ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@127.0.0.1:1/shop",
        "postgresql://127.0.0.1:1/shop?user=ann&password=s3cret",
        "postgresql://ann:s3@cret@127.0.0.1:1/shop",
        "postgresql://ann:s3/cret@127.0.0.1:1/shop",
        "postgresql://ann:s3cret@127.0.0.1:port/shop",
        "postgresql://ann:s3cret@127.0.0.1:1/shop?nonsense=1",
        "postgresql://ann:s3cret@127.0.0.1:1/shop?schema=pg_x",
        "mysql://ann:s3cret@127.0.0.1:1/shop",
    ],
)
@pytest.mark.parametrize("words", [["read"], ["postgres", "status"], ["append", "--debug"], ["postgres", "grants"]])
def test_errors_show_no_password(invoke, url, words):
    for rest in ([], ["surplus", url, "again", "and again"]):
        done = invoke(*words, url, *rest)
        assert done.exit_code in (1, 2)
        assert "s3" not in done.output
        assert "cret" not in done.output


def test_a_server_that_cannot_be_reached_or_refuses_is_told_with_a_hint(invoke, postgres_server):
    done = invoke("read", "postgresql://ann@127.0.0.1:1/shop")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: postgresql://ann@127.0.0.1:1/shop: ")
    assert "hint: Check the URL and that the server runs" in done.stderr
    done = invoke("read", postgres_server.url("nowhere"))
    assert done.exit_code == 1
    assert 'database "nowhere" does not exist' in done.stderr
    assert "hint: Create the database first" in done.stderr


# --- millstream postgres -------------------------------------------------------------------------------


def test_status_tells_where_a_log_is_and_how_large(invoke, postgres):
    with ms.open(f"{postgres}?schema=shop") as log:
        log.append("a", ms.Plain("Opened", {}))
    [status] = answer(invoke("postgres", "status", f"{postgres}?schema=shop"))
    assert (status["log"], status["schema"]) == (f"{postgres}?schema=shop", "shop")
    assert (status["version"], status["position"], status["standby"], status["appends"]) == (3, 1, False, True)
    assert status["bytes"] > 50_000
    assert invoke("postgres", "status", f"{postgres}?schema=none").exit_code == 3
    assert "sqlite" in (done := invoke("postgres", "status", "sqlite:///shop.db")).stderr
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("ability", "appends", "reads"), [("--read", False, True), ("--append", True, False), ("--consume", True, True)]
)
def test_the_statements_that_grants_prints_do_what_it_says(invoke, postgres, postgres_server, ability, appends, reads):
    role = f"cli{ability}"
    with ms.open(postgres) as log:
        log.append("a", ms.Plain("Opened", {}))
    done = invoke("postgres", "grants", postgres, "--role", role, ability)
    assert done.exit_code == 0, done.output
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'create role "{role}" login')
        connection.execute(done.stdout)
    url = postgres_server.url(postgres.rpartition("/")[2], user=role)
    [status] = answer(invoke("postgres", "status", url))
    assert (status["position"], status["appends"]) == (1, appends)
    read = invoke("read", url)
    assert (read.exit_code == 0) == reads, read.output
    assert reads or "hint: Grant the role what it needs" in read.stderr
    append = invoke("append", url, "a", "--type", "T", input="{}")
    assert (append.exit_code == 0) == appends, append.output
    assert appends or "hint: The role may only read" in append.stderr


@pytest.mark.parametrize("words", [[], ["--read", "--append"]])
def test_a_role_is_granted_one_thing(invoke, words):
    done = invoke("postgres", "grants", "postgresql://localhost/shop", "--role", "web", *words)
    assert done.exit_code == 2
    assert "one of --read, --append and --consume" in done.stderr
