"""Classes for the rows of captured tables."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

import millstream as ms
from millstream.cdc import types
from millstream.cdc.change import decode_change

from .conftest import Shop
from .past import Made, shape


def test_rows_of_a_log_are_typed_by_its_newest_shape() -> None:
    made = Made(shape(("id", "int"), ("price", "decimal")))
    made.read({"id": 1, "price": "1.50"})
    made.reshape(
        shape(("id", "int"), ("price", "decimal"), ("at", "timestamptz"), ("order-id", "int"), ("class", "text"))
    )
    row = {"id": 2, "price": "NaN", "at": "2024-01-15T00:00:00Z", "order-id": 5, "class": None}
    made.write(made.change("INSERT", None, row))
    User = types(made.log, "users")
    assert User.__struct_fields__ == ("id", "price", "at", "order_id", "class_")
    *_, last = made.log.read("users")
    for change in (last.event, decode_change(last.event, last.run.schema)):  # type: ignore[arg-type]
        user = User.of(change.after)
        assert (user.id, user.at, user.order_id, user.class_) == (2, datetime(2024, 1, 15, tzinfo=UTC), 5, None)
        assert user.price.is_nan()
    assert User.of({"id": 3, "price": "1.50"}) == User(id=3, price=Decimal("1.50"))


def test_rows_of_a_source_are_typed_by_its_table(shop: Shop) -> None:
    with pytest.raises(ms.CaptureError, match="is not captured"):
        types(shop.url, "users")
    shop.capture("users").catch_up(shop.log)
    assert types(shop.url, "users").of({"id": 1, "email": {"$bytes": "AA=="}}).email == b"\x00"
    with pytest.raises(ms.CaptureError, match="no table 'nope'"):
        types(shop.url, "nope")
    with pytest.raises(ms.StreamNotFound):
        types(shop.log, "nope")
