"""Who can become a customer."""

from __future__ import annotations

import millstream as ms
from millstream.testing import given

from ..customers import Register, register
from ..events import CustomerRegistered

ANN = Register("customer-1", "Ann Miller", "ann@example.org")


def registered(command: Register) -> ms.Draft:
    event = CustomerRegistered(customer=command.customer, name=command.name, email=command.email)
    return ms.Draft(event, tags=[command.customer, command.email_tag])


with_ann = given({"customer-1": registered(ANN)}, of=register)


def test_a_customer_registers_in_a_stream_of_their_own() -> None:
    given(of=register).when(ANN).then({"customer-1": registered(ANN)})


def test_no_two_have_the_same_address_in_whatever_case() -> None:
    with_ann.when(Register("customer-2", "Another Ann", "Ann@Example.org")).rejects("address is in use")


def test_no_two_have_the_same_number() -> None:
    with_ann.when(Register("customer-1", "Ben Okafor", "ben@example.org")).rejects("registered already")


def test_another_may_come() -> None:
    ben = Register("customer-2", "Ben Okafor", "ben@example.org")
    with_ann.when(ben).then({"customer-2": registered(ben)})
