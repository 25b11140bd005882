"""What each customer has: a read model, kept in the very commits that change it. It holds no personal data."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import millstream as ms

from .events import AccountOpened, FeeCharged, MoneyDeposited, MoneyReceived, MoneySent, MoneyWithdrawn


class Balances(ms.Projection):
    schema = "create table balances (account text primary key, customer text, cents bigint)"

    @ms.on
    def opened(self, event: AccountOpened, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into balances values (?, ?, 0)", (recorded.stream, event.customer))

    @ms.on
    def credited(self, event: MoneyDeposited | MoneyReceived, db: ms.Database, recorded: ms.Recorded) -> None:
        self._add(event.amount, db, recorded)

    @ms.on
    def debited(self, event: MoneyWithdrawn | MoneySent | FeeCharged, db: ms.Database, recorded: ms.Recorded) -> None:
        self._add(-event.amount, db, recorded)

    def _add(self, amount: Decimal, db: ms.Database, recorded: ms.Recorded) -> None:
        # SQLite has no decimals; whole cents add up exactly.
        db.execute("update balances set cents = cents + ? where account = ?", (int(amount * 100), recorded.stream))


class BalancePerCustomer(ms.Query[list[dict[str, Any]]]):
    pass


def balance_per_customer(query: BalancePerCustomer, db: ms.Database) -> list[dict[str, Any]]:
    rows = db.query(
        "select customer, count(*) as accounts, sum(cents) as cents from balances group by customer order by 1"
    )
    return [{**row, "balance": Decimal(int(row["cents"])) / 100} for row in rows]
