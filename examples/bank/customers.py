"""Customers: what is known of them is personal, and no two have the same e-mail address."""

from __future__ import annotations

import hashlib

import millstream as ms

from .events import CustomerRegistered


class Register(ms.Command):
    customer: str
    name: str
    email: str

    @property
    def email_tag(self) -> str:
        # Tags are plain, and stay. A hash cannot be read, but someone who has the address can look for it.
        return "email:" + hashlib.sha256(self.email.strip().lower().encode()).hexdigest()


def decide(found: list[CustomerRegistered], command: Register) -> ms.Draft:
    if any(each.customer == command.customer for each in found):
        raise ms.Rejected(f"{command.customer} is registered already", field="customer")
    if found:
        raise ms.Rejected("the e-mail address is in use", field="email")
    registered = CustomerRegistered(customer=command.customer, name=command.name, email=command.email)
    return ms.Draft(registered, tags=[command.customer, command.email_tag])


register = ms.Decision(
    query=lambda command: ms.Matching(tags=[command.customer]) | ms.Matching(tags=[command.email_tag]),
    decide=decide,
    stream=lambda command: command.customer,
    name="register",
)


def names(log: ms.Log) -> dict[str, str]:
    """The name of each customer; ``ms.Erased`` for those who were forgotten."""
    found = (recorded.event for recorded in log.read(types=[CustomerRegistered]))
    return {event.customer: event.name for event in found if isinstance(event, CustomerRegistered)}
