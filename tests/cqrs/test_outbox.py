"""Outboxes: from the commit that decides, at least once, and in order per key."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from fulfilment import Paid, Place, fulfilling
from test_process import eventually

import millstream as ms
from millstream.cqrs import delivery


class Say(ms.Command):
    text: str
    key: str = ""
    fail: bool = False


class Post:
    """The outside: takes messages, but not those that it was told to refuse."""

    def __init__(self) -> None:
        self.messages: list[ms.Message] = []
        self.refused: list[str] = []
        self.down = False
        self.lock = threading.Lock()

    def __call__(self, message: ms.Message) -> None:
        with self.lock:
            if self.down:
                raise ms.SinkUnavailable("the post is on strike")
            if message.body in self.refused:
                raise ValueError(f"no such street as {message.body}")
            self.messages.append(message)

    @property
    def texts(self):
        return [message.body for message in self.messages]


@pytest.fixture
def log(home):
    with ms.open(home) as log:
        yield log


@pytest.fixture
def post():
    return Post()


def make(log, post, **options):
    app = ms.App(log, outboxes=[ms.Outbox("mail", post, **options)])

    @app.command
    def say(command: Say, mail: ms.Outbox) -> None:
        mail.post(command.text, key=command.key)
        if command.fail:
            raise ms.Rejected("no")

    return app


def test_messages_are_sent_once_they_are_committed(log, post):
    with make(log, post) as app:
        app.execute(Say("one"), correlation="visit-1")
        with pytest.raises(ms.Rejected):
            app.execute(Say("never", fail=True))
        app.execute(Say("two"))
        eventually(lambda: post.texts == ["one", "two"])
    first, second = post.messages
    assert (first.id, first.position, first.correlation) == (f"{log.id}:1", 1, "visit-1")
    assert second.time >= first.time
    assert [e.type for e in log.read("outbox-mail")] == ["OutboxMessage"] * 2


def test_what_was_sent_is_not_sent_again_at_the_next_start(log, post):
    with make(log, post) as app:
        app.execute(Say("one"))
        eventually(lambda: post.texts == ["one"] and app.status()[0].behind == 0)
    with make(log, post) as app:
        app.execute(Say("two"))
        eventually(lambda: post.texts == ["one", "two"])


def test_one_that_cannot_be_sent_holds_up_its_key_alone(log, post):
    post.refused = ["a1"]
    with make(log, post) as app:
        app.execute_all([Say("a1", "a"), Say("b1", "b"), Say("a2", "a"), Say("plain"), Say("b2", "b"), Say("a3", "a")])
        eventually(lambda: post.texts == ["b1", "plain", "b2"])
        eventually(lambda: [each.state for each in delivery.unsent(log)] == ["retry", "waiting", "waiting"])
        post.refused = []
        eventually(lambda: post.texts == ["b1", "plain", "b2", "a1", "a2", "a3"])
        eventually(lambda: delivery.unsent(log) == [])


def test_one_that_failed_too_often_is_parked_until_someone_looks(log, post):
    post.refused = ["a1"]
    with make(log, post, attempts=2) as app:
        app.execute_all([Say("a1", "a"), Say("a2", "a")])
        eventually(lambda: [each.state for each in delivery.unsent(log, "mail")] == ["parked", "waiting"])
        parked = delivery.unsent(log, "mail")[0]
        assert (parked.position, parked.key, parked.attempts) == (1, "a", 2)
        assert parked.error == "ValueError: no such street as a1"
        app.execute(Say("a3", "a"))
        eventually(lambda: len(delivery.unsent(log, "mail")) == 3)
        post.refused = []
        assert delivery.retry(log, "mail") == 1
        eventually(lambda: post.texts == ["a1", "a2", "a3"])


def test_one_may_be_skipped(log, post):
    post.refused = ["a1"]
    with make(log, post, attempts=1) as app:
        app.execute_all([Say("a1", "a"), Say("a2", "a")])
        eventually(lambda: [each.state for each in delivery.unsent(log, "mail")] == ["parked", "waiting"])
        delivery.skip(log, "mail", 1)
        eventually(lambda: post.texts == ["a2"])
    with pytest.raises(ms.NotFound):
        delivery.skip(log, "mail", 1)
    with pytest.raises(ms.NotFound):
        delivery.retry(log, "mail", 7)


def test_when_the_outside_is_away_all_wait_and_nothing_is_parked(log, post):
    post.down = True
    with make(log, post, attempts=1) as app:
        app.execute_all([Say("one"), Say("two")])
        time.sleep(0.3)
        assert delivery.unsent(log) == []
        post.down = False
        eventually(lambda: post.texts == ["one", "two"])


def test_a_process_posts_in_the_commit_of_its_reaction(log, post):
    with fulfilling(log, outboxes=[ms.Outbox("mail", post)]) as app:
        app.execute(Place("order-1"))
        log.append("payments", Paid(order="order-1"))
        eventually(lambda: post.texts == [{"shipped": "order-1"}])
    assert post.messages[0].key == "order-1"


def test_outside_of_a_handler_nothing_is_posted():
    with pytest.raises(ms.UsageError, match="not part of a command"):
        ms.Outbox("mail", print).post("x")


SENDER = """
import sys
import millstream as ms

def send(message):
    with open(sys.argv[2], "a") as file:
        file.write(f"{message.key} {message.body}\\n")

with ms.open(sys.argv[1]) as log:
    app = ms.App(log, outboxes=[ms.Outbox("mail", send)])
    app.start()
    print("ready", flush=True)
    sys.stdin.readline()
    app.stop()
"""


def test_none_is_lost_and_each_key_stays_in_order_though_the_sender_is_killed(shared_home, tmp_path):
    out = tmp_path / "sent.txt"
    out.touch()
    with ms.open(shared_home) as log:
        app = make(log, Post())
        app.execute_all([Say(str(n), f"k{n % 3}") for n in range(600)])

        def sent():
            return [tuple(line.split()) for line in out.read_text().split("\n")[:-1]]

        while len(set(sent())) < 600:
            before = len(sent())
            with subprocess.Popen(
                [sys.executable, "-c", SENDER, shared_home, str(out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": ":".join(sys.path)},
            ) as process:
                process.stdout.readline()
                eventually(lambda b=before: len(sent()) > b + 170 or len(set(sent())) == 600)
                process.kill()
    for key in range(3):
        first = list(dict.fromkeys(int(body) for k, body in sent() if k == f"k{key}"))
        assert first == list(range(key, 600, 3))


class Textless(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [SystemExit(1), Textless(), ValueError("half \ud800, nothing \0")])
def test_whatever_is_raised_in_sending_counts_as_an_attempt(log, error):
    def send(message):
        raise error

    with make(log, send, attempts=2) as app:
        app.execute(Say("one"))
        eventually(lambda: [each.state for each in delivery.unsent(log)] == ["parked"])
        assert (delivery.unsent(log)[0].attempts, app.status()[0].restarts) == (2, 0)


def test_what_is_sent_may_stop_the_app(log):
    sent = []

    def send(message):
        sent.append(message.body)
        app.stop()

    app = make(log, send)
    app.start()
    app.execute(Say("one"))
    eventually(lambda: app.status()[0].state == "stopped")
    assert (sent, delivery.unsent(log)) == (["one"], [])


def test_what_waits_to_be_sent_is_counted_also_of_an_outbox_that_nobody_runs(log, post):
    app = make(log, post, attempts=1)
    [status] = app.status()
    assert (status.waiting, status.since) == (0, None)
    first = app.execute(Say("one"))
    app.execute(Say("two"))
    [status] = app.status()
    assert (status.waiting, status.since) == (2, next(log.read(since_position=first.first)).time)
    post.refused.append("one")
    with app:
        eventually(lambda: post.texts == ["two"])
        eventually(lambda: app.status()[0].waiting == 1)
    log.append("outbox-nobody", ms.Plain("OutboxMessage", {"key": "", "body": "?"}))
    mail, nobody = delivery.backlogs(log)
    assert (mail.outbox, mail.messages, mail.aside, mail.since) == ("mail", 1, 1, status.since)
    assert (nobody.outbox, nobody.messages, nobody.aside) == ("nobody", 1, 0)
    delivery.skip(log, "mail", first.first)
    assert app.status()[0].waiting == 0
