"""``millstream app`` and ``millstream command``."""

from __future__ import annotations

import json
import signal
import time

import pytest

import millstream as ms

SHOP = """
import millstream as ms

class UserAdded(ms.Event, type="CliUserAdded"):
    email: str

class User(ms.Aggregate):
    @ms.on
    def added(self, event: UserAdded) -> None: ...

class AddUser(ms.Command):
    user: ms.Ref[User]
    email: str
    vip: bool = False

class Emails(ms.Projection):
    name = "CliEmails"
    schema = "create table emails (email text primary key)"

    @ms.on
    def added(self, event: UserAdded, db: ms.Database) -> None:
        db.execute("insert into emails values (?)", (event.email,))

class Broken(ms.Projection):
    name = "CliBroken"

    @ms.on
    def added(self, event: UserAdded) -> None:
        raise ValueError(f"not {event.email}")

class Count(ms.Projection):
    name = "CliCount"

    @ms.on
    def added(self, event: UserAdded) -> None: ...

def make(*broken):
    app = ms.App(ms.open("users.db"), projections=[Emails.inline(), Count.into(), *broken])

    @app.command
    def add(command: AddUser, user: User) -> None:
        if command.email == "no":
            raise ms.Rejected("not this one", field="email")
        user.record(UserAdded(email=command.email))

    return app

def make_broken():
    return make(Broken.into())

nothing = 7
"""


@pytest.fixture(autouse=True)
def shop(tmp_path):
    (tmp_path / "clishop.py").write_text(SHOP)


def test_a_command_is_sent_and_takes_effect_once(run, tmp_path):
    first = run("command", "send", "clishop:make", "AddUser", '{"user": "user-1", "email": "a"}', "--id", "r-1")
    assert json.loads(first.stdout) == {"count": 1, "position": 1, "stream": "user-1", "version": 1}
    again = run("command", "send", "clishop:make", "AddUser", "--id", "r-1", input='{"user": "user-1", "email": "a"}')
    assert again.stdout == first.stdout
    # Past the inline projection there is no way.
    assert run("append", "users.db", "user-2", "--type", "CliUserAdded", input='{"email": "a"}').returncode == 4
    taken = run("command", "send", "clishop:make", "AddUser", '{"user": "user-2", "email": "a"}')
    assert (taken.returncode, "UNIQUE" in taken.stderr) == (4, True)
    with ms.open(tmp_path / "users.db", readonly=True) as log:
        assert log.head == 1


def test_a_command_that_is_refused_says_why(run):
    refused = run("command", "send", "clishop:make", "AddUser", '{"user": "user-1", "email": "no"}')
    assert (refused.returncode, refused.stderr) == (5, "error: not this one\n")
    misfit = run("command", "send", "clishop:make", "AddUser", '{"user": "user-1", "email": 7}')
    assert (misfit.returncode, misfit.stderr) == (5, "error: email: Expected `str`, got `int`\n")
    misspelt = run("command", "send", "clishop:make", "AddUser", '{"user": "user-1", "email": "a", "vp": true}')
    assert misspelt.returncode == 2
    assert misspelt.stderr == "error: AddUser has no field 'vp'\nhint: Its fields: user, email, vip\n"
    fields = run("command", "send", "clishop:make", "AddUser", '["user-1"]')
    assert (fields.returncode, "JSON object" in fields.stderr) == (2, True)
    unknown = run("command", "send", "clishop:make", "DropUser", "{}")
    assert (unknown.returncode, "AddUser" in unknown.stderr) == (2, True)


def test_the_fields_of_a_command_are_given_one_by_one_or_as_json(run):
    sent = run("command", "send", "clishop:make", "AddUser", "user=user-1", "email=a=b", "vip=true")
    assert json.loads(sent.stdout)["stream"] == "user-1"
    misspelt = run("command", "send", "clishop:make", "AddUser", "user=user-2", "email=b", "vp=true")
    assert (misspelt.returncode, "no field 'vp'" in misspelt.stderr) == (2, True)
    refused = run("command", "send", "clishop:make", "AddUser", "user=user-2", "email=no")
    assert (refused.returncode, refused.stderr) == (5, "error: not this one\n")


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        (['{"user": '], b"", "it is no JSON"),
        (["[1]"], b"", "is no JSON object"),
        ([], b"", "it is no JSON"),
        ([], b"\xff", "it is no JSON"),
        (["user"], b"", "is not a field and its value"),
        (["user=a", "user=b"], b"", "'user' is given twice"),
    ],
)
def test_what_are_no_fields_is_a_wrong_call(run, words, given, said):
    done = run("command", "send", "clishop:make", "AddUser", *words, input=given)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_the_commands_are_listed(run):
    assert json.loads(run("command", "ls", "clishop:make").stdout) == {
        "command": "AddUser",
        "fields": "user, email, vip?",
    }


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("clishop", "does not name an app"),
        ("nowhere:app", "cannot be imported: ModuleNotFoundError"),
        ("clishop.py:make", "clishop.py is a file\nhint: Name the module: clishop:make"),
        ("clishop:none", "has no none"),
        ("clishop:nothing", "is no millstream.App"),
        ("json:loads", "makes no millstream.App: loads() missing 1 required positional argument"),
    ],
)
def test_what_is_no_app_is_told(run, place, said):
    done = run("app", "status", place)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_status_of_an_app_says_nothing_of_a_process_that_is_not_asked(run):
    told = [json.loads(line) for line in run("app", "status", "clishop:make").stdout.splitlines()]
    assert [list(each) for each in told] == [["kind", "name", "position", "behind", "waiting", "since", "error"]] * len(
        told
    )


def test_an_app_runs_until_it_is_asked_to_end(start, run, tmp_path):
    process = start("app", "run", "clishop:make_broken")
    run("command", "send", "clishop:make", "AddUser", '{"user": "user-1", "email": "a"}')
    until = time.monotonic() + 30
    while json.loads(run("app", "status", "clishop:make", "--output", "json").stdout)[1]["position"] != 1:
        assert time.monotonic() < until
    time.sleep(1)  # two looks at the workers
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"projection CliBroken: projection 'CliBroken' stopped at position 1" in said
