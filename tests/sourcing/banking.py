"""A bank in both styles, for the tests of what both must do alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

import millstream as ms


class Opened(ms.Event):
    owner: str


class Deposited(ms.Event):
    amount: Decimal


class Withdrawn(ms.Event):
    amount: Decimal


class Account(ms.Aggregate):
    owner: str = ""
    balance: Decimal = Decimal(0)
    entries: list[Decimal] = []

    def open(self, owner: str) -> None:
        self.record(Opened(owner=owner))

    def deposit(self, amount: int) -> None:
        if amount <= 0:
            raise ms.Rejected("deposit must be positive")
        self.record(Deposited(amount=Decimal(amount)))

    def withdraw(self, amount: int) -> None:
        if self.balance < amount:
            raise ms.Rejected("there is not enough money")
        self.record(Withdrawn(amount=Decimal(amount)))

    @ms.on
    def opened(self, event: Opened) -> None:
        self.owner = event.owner

    @ms.on
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount
        self.entries.append(event.amount)

    @ms.on
    def withdrawn(self, event: Withdrawn) -> None:
        self.balance -= event.amount
        self.entries.append(-event.amount)


@dataclass(frozen=True)
class Open:
    owner: str


@dataclass(frozen=True)
class Deposit:
    amount: int


@dataclass(frozen=True)
class Withdraw:
    amount: int


Command = Open | Deposit | Withdraw


@dataclass(frozen=True)
class State:
    owner: str = ""
    balance: Decimal = Decimal(0)
    entries: tuple[Decimal, ...] = ()


def decide(state: State, command: Command) -> ms.Event:
    match command:
        case Open(owner):
            return Opened(owner=owner)
        case Deposit(amount):
            if amount <= 0:
                raise ms.Rejected("deposit must be positive")
            return Deposited(amount=Decimal(amount))
        case Withdraw(amount):
            if state.balance < amount:
                raise ms.Rejected("there is not enough money")
            return Withdrawn(amount=Decimal(amount))


def evolve(state: State, event: Opened | Deposited | Withdrawn) -> State:
    match event:
        case Opened():
            return replace(state, owner=event.owner)
        case Deposited():
            return replace(state, balance=state.balance + event.amount, entries=(*state.entries, event.amount))
        case Withdrawn():
            return replace(state, balance=state.balance - event.amount, entries=(*state.entries, -event.amount))


account = ms.Decider(State(), decide, evolve, name="Account")
