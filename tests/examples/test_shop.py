"""The shop runs as its page shows, and its proof holds."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import millstream as ms
from millstream.testing import FakeClock

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
README = EXAMPLES / "shop" / "README.md"
SHELL = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_shop_answers_what_its_page_shows(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    script = tmp_path / "millstream"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m millstream.cli "$@"\n')
    script.chmod(0o755)
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS")}
    path = os.pathsep.join([str(Path(ms.__file__).parents[1]), str(EXAMPLES)])
    environment = {**plain, "PYTHONPATH": path, "PATH": f"{tmp_path}{os.pathsep}{plain['PATH']}"}
    calls = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(SHELL.findall(README.read_text())), re.MULTILINE)
    assert len(calls) == 9
    for words, expected in calls:
        words = words.replace("python ", f"{sys.executable} ")
        done = subprocess.run(
            ["bash", "-c", words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=80
        )
        assert "Traceback" not in done.stderr
        given = done.stdout + done.stderr
        assert doctest.OutputChecker().check_output(expected, given, doctest.ELLIPSIS), (
            f"{words}\nshows\n{expected}but gives\n{given}"
        )


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    paths = [str(Path(ms.__file__).parents[1]), str(EXAMPLES)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("seed", [101, 102])
def test_nothing_is_lost_or_doubled_though_it_is_killed(tmp_path: Path, seed: int) -> None:
    from shop.proof import play

    found = play(tmp_path, seed, commands=400, kills=3)
    assert found["kills"] == 3
    assert min(found["done"], found["rejected"], found["constraint-violated"]) > 20


@pytest.mark.usefixtures("shop")
def test_what_is_not_paid_in_time_is_cancelled_and_its_stock_is_free_again(tmp_path: Path) -> None:
    from decimal import Decimal

    from shop.app import make
    from shop.orders import PayOrder, PlaceOrder, StockArticle, Wanted
    from shop.view import GetOrder

    clock = FakeClock()
    with make(str(tmp_path / "shop.db"), clock=clock) as app:
        app.execute(StockArticle("tea", 5))
        for number in (1, 2):
            app.execute(PlaceOrder(f"order-{number}", "Ann", [Wanted("tea", 2, Decimal("4.50"))]))
        paid = app.execute(PayOrder("order-1", Decimal(9)))
        for e in app.log.follow(types=["ProcessReacted"], timeout=30):
            if e.data["position"] == paid.position:
                break
        clock.advance("15m")
        cancelled = next(app.log.follow(types=["OrderCancelled"], timeout=30))
        assert cancelled.stream == "order-2"
        shown = app.query(GetOrder("order-2"), after=cancelled.position)
        assert (shown["status"], shown["note"]) == ("cancelled", "not paid")
        assert app.query(GetOrder("order-1"))["status"] == "paid"
        with app.log.connect() as db:
            assert db.query("select * from stock") == [{"article": "tea", "free": 3}]
    app.log.close()
