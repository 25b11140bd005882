"""The proof: random commands from many threads, killed again and again, and then everything is counted.

`python -m shop.proof --rounds 30 --commands 10000` is the whole of it; each round begins with an empty shop. With
`--server postgresql://…` its log is in PostgreSQL, in a database that is made for the round. What must hold after each:
no command is lost or doubled, no constraint was ever broken, the write tables and the view are what a fold of the log
gives, and the view is what a fresh replay builds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import millstream as ms

from .app import make
from .events import ArticleStocked, OrderCancelled, OrderPaid, OrderPlaced, OrderShipped
from .orders import CancelOrder, PayOrder, PlaceOrder, ShipOrder, StockArticle, Wanted
from .tables import Tables
from .view import OrderView

ARTICLES = [f"article-{n}" for n in range(12)]
PRICE = Decimal("2.50")


def command(seed: int, number: int, orders: int) -> ms.Command:
    """The command of a number: the same whenever it is asked for."""
    chance = random.Random(f"{seed}:{number}")
    order = f"order-{chance.randrange(orders)}"
    kind = chance.random()
    if kind < 0.15:
        return StockArticle(chance.choice(ARTICLES), chance.randint(1, 12))
    if kind < 0.55:
        lines = [Wanted(a, chance.randint(1, 4), PRICE) for a in chance.sample(ARTICLES, chance.randint(1, 3))]
        return PlaceOrder(order, f"customer {chance.randrange(20)}", lines)
    if kind < 0.75:
        return PayOrder(order, PRICE * chance.randint(1, 8))
    if kind < 0.88:
        return ShipOrder(order, chance.choice(["rail", "road"]))
    return CancelOrder(order, "changed my mind")


# --- the shop that is killed -----------------------------------------------------------------------------


def shop(folder: Path, home: str) -> ms.App:
    """The shop of a round; its log is in the round's folder, or elsewhere."""
    return make(home or str(folder / "shop.db"), view=str(folder / "view.db"), dunning=False)


def work(folder: Path, home: str, seed: int, commands: int, threads: int) -> None:
    """Execute what has no outcome yet; each thread notes the outcomes of its share in a file of its own."""
    app = shop(folder, home)

    def share(mine: int) -> None:
        path = folder / f"outcomes-{mine}.txt"
        noted = path.read_text().split("\n")[:-1] if path.exists() else []
        # The last ones once more, as a client that did not hear the answer would: they must not take effect again.
        # (Not those that were refused: their ids are free, and they might be accepted now.)
        begin = max(0, len(noted) - 3)
        with path.open("a") as file:
            for index in range(begin, len(range(mine, commands, threads))):
                number = mine + index * threads
                if index < len(noted) and " done " not in noted[index]:
                    continue
                try:
                    receipt = app.execute(command(seed, number, commands // 4), id=f"c-{number}")
                    outcome = f"{number} done {receipt.first} {receipt.count}"
                except (ms.Rejected, ms.ConstraintViolated) as refused:
                    outcome = f"{number} {refused.code}"
                if index < len(noted):
                    assert outcome == noted[index], f"{outcome} now, {noted[index]} before"
                    continue
                file.write(outcome + "\n")
                file.flush()

    with app:
        crowd = [threading.Thread(target=_or_die, args=(share, mine)) for mine in range(threads)]
        for thread in crowd:
            thread.start()
        print("ready", flush=True)
        for thread in crowd:
            thread.join()
    app.log.close()


def _or_die(share: Any, mine: int) -> None:
    try:
        share(mine)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(3)


# --- what must hold --------------------------------------------------------------------------------------


def check(folder: Path, home: str, commands: int, threads: int) -> dict[str, int]:
    """Count everything; returns what there was.

    Raises:
        AssertionError: Something is not as it must be.
    """
    outcomes = {}
    for mine in range(threads):
        noted = (folder / f"outcomes-{mine}.txt").read_text().split("\n")[:-1]
        outcomes.update({int(line.split()[0]): line.split()[1:] for line in noted})
    assert sorted(outcomes) == list(range(commands)), "a command has no outcome"
    app = shop(folder, home)
    log = app.log
    events = list(log.read())
    by_command = Counter(event.causation for event in events)
    assert max(by_command.values()) == 1, "a command took effect twice"
    done = {number for number, outcome in outcomes.items() if outcome[0] == "done" and outcome[2] == "1"}
    assert set(by_command) == {f"c-{number}" for number in done}, "a command is lost, or one that was refused is not"
    for event in events:
        assert outcomes[int(str(event.causation)[2:])][1] == str(event.position), "a receipt names another place"
    stock, orders, lines = folded(events)
    with log.connect() as db:
        assert {r["article"]: r["free"] for r in db.query("select * from stock")} == stock
        found = db.query("select o.id, c.name, o.status from orders o join customers c on c.id = o.customer")
        assert {r["id"]: (r["name"], r["status"]) for r in found} == orders
        assert {(r["order_id"], r["article"]): r["count"] for r in db.query("select * from order_lines")} == lines
        assert min(stock.values(), default=0) >= 0
        assert home or db.query("pragma foreign_key_check") == []
    _bind(app)
    with app:
        view = app.query(_Rows(), after=log.head, timeout=60)
    assert {r["id"]: (r["customer"], r["status"]) for r in view} == orders, "view and write tables do not agree"
    fresh = ms.App(log, projections=[Tables.inline(), OrderView.into(str(folder / "fresh.db"))])
    _bind(fresh)
    with fresh:
        assert fresh.query(_Rows(), after=log.head, timeout=60) == view, "a fresh replay gives another view"
    log.verify()
    log.close()
    kinds = Counter(outcome[0] for outcome in outcomes.values())
    return {"events": len(events), "orders": len(orders), **kinds}


class _Rows(ms.Query[list[dict[str, Any]]]):
    pass


def _bind(app: ms.App) -> None:
    @app.query(reads=[OrderView])
    def rows(query: _Rows, db: ms.Database) -> list[dict[str, Any]]:
        return db.query("select * from order_view order by id")


def folded(
    events: list[ms.Recorded],
) -> tuple[dict[str, int], dict[str, tuple[str, str]], dict[tuple[str, str], int]]:
    """Stock, orders and lines as the events say, worked out by other code than the shop's."""
    stock: dict[str, int] = {}
    orders: dict[str, tuple[str, str]] = {}
    lines: dict[tuple[str, str], int] = {}
    status = {OrderPaid: "paid", OrderShipped: "shipped", OrderCancelled: "cancelled"}
    for recorded in events:
        event, stream = recorded.event, recorded.stream
        if isinstance(event, ArticleStocked):
            stock[stream] = stock.get(stream, 0) + event.count
        elif isinstance(event, OrderPlaced):
            orders[stream] = (event.customer, "placed")
            for line in event.lines:
                lines[stream, line.article] = line.count
                stock[line.article] -= line.count
        else:
            if isinstance(event, OrderCancelled):
                for (order, article), count in lines.items():
                    if order == stream:
                        stock[article] += count
            orders[stream] = (orders[stream][0], status[type(event)])  # type: ignore[index]
        assert min(stock.values()) >= 0, f"the stock was broken at {recorded.position}"
    return stock, orders, lines


# --- rounds ----------------------------------------------------------------------------------------------


def play(folder: Path, seed: int, *, home: str = "", commands: int, threads: int = 8, kills: int = 3) -> dict[str, int]:
    """One round: an empty shop, commands, kills in between, and then the count."""
    words = [sys.executable, "-m", "shop.proof", "--work", str(folder), home, str(seed), str(commands), str(threads)]
    chance = random.Random(seed)
    killed = 0
    for attempt in range(kills + 50):
        # The last attempts are left alone, so that the round comes to its end.
        at = sorted(chance.sample(range(1, commands), kills))[attempt] if attempt < kills else None
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None:
            if at is not None and _noted(folder, threads) >= at:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.005)
        process.wait()
        process.stdout.close()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, f"the shop ended with {process.returncode}"
    return {**check(folder, home, commands, threads), "kills": killed}


def _noted(folder: Path, threads: int) -> int:
    files = [folder / f"outcomes-{mine}.txt" for mine in range(threads)]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


@contextmanager
def _home(server: str | None, round: int) -> Iterator[str]:
    """Where the log of a round is: in a new database of a server, if there is one; empty for the round's folder."""
    if server is None:
        yield ""
        return
    import psycopg

    name = f"shop_round_{round}"
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"create database {name}")
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            db.execute(f"drop database {name} with (force)")


def main() -> None:
    """Play rounds, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m shop.proof", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how many rounds")
    parser.add_argument("--first", type=int, default=1, help="the number of the first round, which seeds it")
    parser.add_argument("--commands", type=int, default=10_000, help="commands in a round")
    parser.add_argument("--kills", type=int, default=3, help="kill -9 so often in a round")
    parser.add_argument("--server", help="a PostgreSQL server's URL, to have the log there")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        folder, home, seed, commands, threads = given.work
        work(Path(folder), home, int(seed), int(commands), int(threads))
        return
    for round in range(given.first, given.first + given.rounds):
        with tempfile.TemporaryDirectory() as folder, _home(given.server, round) as home:
            found = play(Path(folder), round, home=home, commands=given.commands, kills=given.kills)
        print(f"round {round}:", ", ".join(f"{count} {what}" for what, count in found.items()), flush=True)


if __name__ == "__main__":
    main()
