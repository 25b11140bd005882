"""The help and the reference: nothing is undocumented, and the examples run."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from rich.cells import cell_len

import millstream as ms
from millstream.cli.app import _DEMO, command
from millstream.cli.reference import commands, reference
from millstream.cqrs.delivery import TABLE, TABLES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
GROUP = command()
CONTEXT = GROUP.make_context("millstream", ["read", "--help"], resilient_parsing=True)
VERBS = {" ".join(words): verb for words, verb, _ in commands(GROUP, CONTEXT)}
NAMES = [name for name in VERBS if name != "demo"]


def verb(name):
    return VERBS[name]


def examples(name):
    return [line.strip()[2:] for line in verb(name).help.splitlines() if line.strip().startswith("$ ")]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_says_what_it_does_and_how_with_examples(name):
    found = verb(name)
    assert found.help.splitlines()[0].endswith(".")
    assert len(examples(name)) >= 2
    assert all(f"millstream {name} " in example for example in examples(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_and_option_is_explained(name):
    unexplained = [param.name for param in verb(name).params if not (param.help or "").strip()]
    assert unexplained == []


def test_the_reference_is_what_the_commands_say():
    how = "Write it anew: python -m millstream.cli.reference docs/reference/cli.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), how


@pytest.mark.parametrize("name", ["", *NAMES])
def test_the_help_fits_eighty_columns(invoke, name):
    done = invoke(*name.split(), "--help", columns=80)
    assert done.exit_code == 0
    assert max(map(cell_len, done.stdout.splitlines())) <= 80
    for example in examples(name) if name else []:
        assert f"$ {example}" in done.stdout  # in one line


def test_the_version_is_told(invoke):
    assert invoke("--version").stdout.startswith("millstream ")


READ_MODELS = """
import os
import millstream as ms


class OrderPlaced(ms.Event):
    cents: int


class OrderSummary(ms.Projection):
    schema = "create table order_summary (id text primary key, cents integer)"
    on_failure = "park"

    @ms.on
    def placed(self, event: OrderPlaced, db: ms.Database, recorded: ms.Recorded) -> None:
        if event.cents < 0 and not os.path.exists("mended"):
            raise ValueError("nobody pays that")
        db.execute("insert into order_summary values (?, ?)", (recorded.stream, event.cents))


class GetOrder(ms.Query[dict]):
    order: str


log = ms.open("orders.db")
app = ms.App(log, projections=[OrderSummary.into("orders.read.db")])


@app.query
def get_order(query: GetOrder, db: ms.Database) -> dict:
    return db.one("select * from order_summary where id = ?", (query.order,))
"""
MADE = """
import shop
for number, cents in enumerate([5, 7, -1, -2], start=1):
    receipt = shop.log.append(f"order-{number}", shop.OrderPlaced(cents=cents))
with shop.app as app:
    app.query(shop.GetOrder("order-1"), after=receipt)
    app.rebuild("OrderSummary")
"""
SHOP = """
import millstream as ms
import polars as pl

class UserAdded(ms.Event):
    email: str

class User(ms.Aggregate):
    @ms.on
    def added(self, event: UserAdded) -> None: ...

class AddUser(ms.Command):
    user: ms.Ref[User]
    email: str

def make_app():
    app = ms.App(ms.open("users.db"), outboxes=[ms.Outbox("mail", print)])

    @app.command
    def add(command: AddUser, user: User) -> None:
        user.record(UserAdded(email=command.email))

    return app

app = make_app()
pages = ms.stream("clicks").filter(pl.col("page") == "b").to("pages", type="PageSeen")
"""


@pytest.fixture
def workshop(tmp_path, environment, ready_commands, request):
    """A folder in which every example can run, in the order of the page."""
    import polars as pl

    bin = tmp_path / "bin"
    bin.mkdir()
    script = bin / "millstream"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(ready_commands.command)} "$@"\n')
    script.chmod(0o755)
    with ms.open(str(tmp_path / "shop.db")) as log:
        log.append(
            "account-1", [ms.Plain("AccountCreated", {"owner": "Ann"}), ms.Plain("MoneyDeposited", {"amount": 5})]
        )
        log.append("clicks", pl.DataFrame({"page": ["a", "b"]}), type="Click")
        for name in ("Customers", "Emails"):
            log.append("outbox-mail", ms.Plain("OutboxMessage", {"key": "", "body": name}))
            log.inline(f"projection:{name}", ["OrderPlaced"], lambda db, runs: None, fingerprint="1")
        with log.transaction() as tx:
            tx.db.ensure_table(TABLE, TABLES[TABLE])
            for position in (5, 6):
                tx.db.execute(f"insert into {tx.db.own(TABLE)} values ('mail', ?, '', 'parked', 1, 0, '')", (position,))
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "user.json").write_text('{"user": "u2", "email": "b"}')
    (tmp_path / "events.ndjson").write_text('{"type": "Login", "data": {"user": 7}}\n')
    pl.DataFrame({"page": ["a", "b"]}).write_parquet(tmp_path / "clicks.parquet")
    with gzip.open(tmp_path / "past.csv.gz", "wt") as past:
        past.write("user,at\n7,2024-01-15T12:00:00Z\n")
    (tmp_path / "shop.ndjson").write_text('{"stream": "a", "type": "Login", "data": {"user": 7}}\n')
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as db:
        db.execute("create table users (id integer primary key, email text)")
        db.execute("pragma journal_mode = wal")
    with ms.open(str(tmp_path / "shop.db")) as log:
        ms.capture(f"sqlite:///{tmp_path}/shop.sqlite").catch_up(log)
        pages = ms.stream("clicks").filter(pl.col("page") == "b").to("pages", type="PageSeen")
        ms.run(log, pages, until="head")
    if request.node.callspec.params["name"].startswith(("projection", "query")):
        (tmp_path / "shop.py").write_text(READ_MODELS)
        subprocess.run([sys.executable, "-c", MADE], cwd=tmp_path, env=environment, check=True)
    with ms.open(str(tmp_path / "shop.db"), readonly=True) as log:
        (tmp_path / "kept-hash.txt").write_text(log.verify().hash)
    environment["PATH"] = f"{bin}{os.pathsep}{environment['PATH']}"
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="the examples are for a shell")
@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run(workshop, environment, name, request):
    if name in ("sql", "flow check"):
        pytest.importorskip("duckdb")
    if name == "projection retry":
        (workshop / "mended").touch()
    if name == "export":
        (workshop / "shop.ndjson").unlink()
    if "postgresql://" in "".join(examples(name)):
        url = request.getfixturevalue("postgres")
        ms.open(url).close()
    for example in examples(name):
        if "postgresql://" in example:
            example = example.replace("postgresql://localhost/shop", url)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", example], cwd=workshop, env=environment, capture_output=True, timeout=50
        )
        early = "| head" in example and done.returncode == 141
        assert done.returncode == 0 or early, f"{example}: {done.stderr.decode()}"
        assert done.stderr in (b"", b"nothing stands in the way of a capture\n"), example


def test_commands_need_no_demo_and_take_it_when_it_is_there(invoke, monkeypatch):
    from millstream.cli import app

    monkeypatch.setattr(app, "_DEMO", "millstream_without.a_demo")
    fresh = command()
    assert "demo" not in fresh.list_commands(CONTEXT)
    assert fresh.get_command(CONTEXT, "demo") is None

    monkeypatch.setattr(app, "_DEMO", "millstream_with_demo.command")
    import types

    module = types.ModuleType("millstream_with_demo.command")
    module.__spec__ = types.SimpleNamespace(name="millstream_with_demo.command")

    def demo(speed: int = 1) -> None:
        """Show all at once."""
        print("played at", speed)

    module.demo = demo
    parent = types.ModuleType("millstream_with_demo")
    parent.__path__ = []
    monkeypatch.setitem(sys.modules, "millstream_with_demo", parent)
    monkeypatch.setitem(sys.modules, "millstream_with_demo.command", module)
    fresh = command()
    assert fresh.list_commands(CONTEXT)[-1] == "demo"
    assert "Show all at once." in invoke("--help").stdout
    done = invoke("demo", "--speed", "600")
    assert (done.exit_code, done.stdout) == (0, "played at 600\n")
    assert _DEMO == "millstream.demo.command"


def test_reading_commands_start_without_what_only_others_need(environment, shop):
    code = (
        "import sys; from millstream.cli import main\n"
        f"try: main(['read', {shop!r}])\nexcept SystemExit: pass\n"
        "print([m for m in ('duckdb', 'pyarrow', 'pandas', 'rich.progress') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_program_does_not_look_for_rubbish_in_what_it_has_imported(environment, shop):
    code = (
        f"import gc, sys; from millstream.cli import main; sys.argv = ['millstream', 'read', {shop!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000, len(gc.get_objects()) < gc.get_freeze_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert done.stdout.splitlines()[-1] == "True True True"


@pytest.mark.parametrize("name", ["", *NAMES])
def test_nothing_of_the_help_is_taken_for_markup(invoke, name):
    shown = " ".join(invoke(*name.split(), "--help", columns=200).stdout.split())
    text = (verb(name) if name else GROUP).help.replace("\b", "").replace("\\[", "[")
    assert [word for word in text.split() if word not in shown] == []
