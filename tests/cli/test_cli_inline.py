"""``millstream inline``."""

from __future__ import annotations

import json

import millstream as ms


class Paid(ms.Event, type="CliInlinePaid"):
    pass


class Payments(ms.Projection):
    name = "CliInlinePayments"
    schema = "create table cli_inline_payments (n integer)"

    @ms.on
    def paid(self, event: Paid, db: ms.Database) -> None: ...


def test_inline_projections_are_listed_and_retired(invoke, tmp_path):
    with ms.open(tmp_path / "shop.db") as log:
        ms.App(log, projections=[Payments.inline()])
    listed = invoke("inline", "ls", "shop.db")
    assert json.loads(listed.stdout) == {"projection": "CliInlinePayments", "types": "CliInlinePaid"}
    done = invoke("inline", "retire", "shop.db", "CliInlinePayments")
    assert json.loads(done.stdout) == {"retired": "CliInlinePayments"}
    assert invoke("inline", "ls", "shop.db").stdout == ""
    again = invoke("inline", "retire", "shop.db", "CliInlinePayments")
    assert again.exit_code == 3
    assert "There are: none" in again.stderr
