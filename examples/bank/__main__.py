"""The command line of the bank: ``python -m bank --help``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import millstream as ms

from . import story
from .bank import Bank

cli = typer.Typer(help="A small bank on Millstream.", no_args_is_help=True, add_completion=False)


def money(text: str) -> Decimal:
    """An amount, in whole cents."""
    try:
        amount = Decimal(text)
        if amount == amount.quantize(Decimal("0.01")):
            return amount.quantize(Decimal("0.01"))
    except InvalidOperation:
        pass
    raise typer.BadParameter(f"{text!r} is no amount of money")


def end_of(day: datetime | None) -> datetime | None:
    """The last moment of a day."""
    return None if day is None else datetime.combine(day, time.max, UTC)


def show(rows: Iterable[Mapping[str, Any]], *names: str) -> None:
    """Print rows as a table; numbers stand right."""
    table = Table(box=None, pad_edge=False)
    rows = list(rows)
    for name in names:
        right = any(isinstance(row[name], Decimal | int) for row in rows)
        table.add_column(name, justify="right" if right else "left")
    for row in rows:
        # As Text: what is in brackets is markup for rich, and a name that was erased reads "[erased]".
        table.add_row(*(Text(f"{v:.2f}" if isinstance(v := row[name], Decimal) else str(v)) for name in names))
    Console().print(table)


def day(help: str) -> Any:
    """An option that is a day."""
    return typer.Option(metavar="DAY", formats=["%Y-%m-%d"], help=help)


Context = typer.Context
Amount = Annotated[Decimal, typer.Argument(parser=money, metavar="AMOUNT")]


def bank_of(context: Context) -> Bank:
    """The bank of the log that was named; closed when the command ends."""
    return Bank(context.with_resource(ms.open(context.obj)))


@cli.callback()
def options(context: Context, log: Annotated[str, typer.Option(help="The bank's log.")] = "bank.db") -> None:
    context.obj = log


@cli.command()
def demo(context: Context) -> None:
    """Fill a new log with a quarter of a bank's life."""
    print(f"{context.obj} has {story.play(context.obj)} events now")


@cli.command()
def register(context: Context, customer: str, name: str, email: str, account: str) -> None:
    """Register a customer, and open an account for them."""
    bank = bank_of(context)
    bank.register(customer, name, email)
    bank.open(account, customer)
    print(f"{account}: {bank.balance(account):.2f}")


@cli.command()
def deposit(context: Context, account: str, amount: Amount) -> None:
    """Put money on an account."""
    print(f"{account}: {bank_of(context).deposit(account, amount):.2f}")


@cli.command()
def withdraw(context: Context, account: str, amount: Amount) -> None:
    """Take money from an account."""
    print(f"{account}: {bank_of(context).withdraw(account, amount):.2f}")


@cli.command()
def transfer(context: Context, source: str, target: str, amount: Amount) -> None:
    """Send money from one account to another."""
    print(f"{source}: {bank_of(context).transfer(source, target, amount):.2f}")


@cli.command()
def statement(context: Context, account: str) -> None:
    """Show all that happened to an account."""
    show(bank_of(context).statement(account), "recorded", "effective", "what", "amount", "balance")


@cli.command()
def sheet(
    context: Context,
    at: Annotated[datetime | None, day("At the end of this day (UTC).")] = None,
    known: Annotated[datetime | None, day("What was true then, as far as it was known at the end of this day.")] = None,
) -> None:
    """Show all accounts, today or as they stood."""
    found = bank_of(context).sheet(end_of(at), known=end_of(known))
    show(found.iter_rows(named=True), "id", "customer", "balance")


@cli.command()
def customers(context: Context) -> None:
    """Show all customers, and what they have."""
    show(bank_of(context).customers(), "customer", "name", "accounts", "balance")


@cli.command()
def forget(context: Context, customer: str) -> None:
    """Forget a customer for good: their accounts stay, their name and address are erased."""
    found = bank_of(context).forget(customer)
    print(f"{customer} is forgotten; events with personal data of theirs: {found.events}")


def main() -> None:
    try:
        cli(prog_name="python -m bank")
    except ms.MillstreamError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
