"""Debezium's envelope beside what Debezium itself said of the same changes (`tests/golden/make_debezium.py`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import millstream as ms

GOLDEN = Path(__file__).parents[2] / "golden"
sys.path.insert(0, str(GOLDEN))

from debezium_story import BEFORE, LATER, TABLE, VARYING  # noqa: E402

from .conftest import Database  # noqa: E402


def told(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what differs from run to run."""
    source = {name: value for name, value in event["source"].items() if name not in VARYING}
    source["snapshot"] = str(source["snapshot"] != "false").lower()  # Debezium also tells which is the last one
    return {"op": event["op"], "before": event["before"], "after": event["after"], "source": source}


def test_each_event_is_what_debezium_says(shop: Database) -> None:
    shop.sql(TABLE, BEFORE)
    capture = shop.capture("everything", "keyed")
    capture.catch_up(shop.log)
    for statement in LATER:
        shop.sql(statement)
    capture.catch_up(shop.log)
    changes = list(shop.log.read(types=[ms.Change]))
    ours = [told(json.loads(json.dumps(event))) for change in changes for event in ms.cdc.debezium_events(change)]
    golden = json.loads((GOLDEN / "debezium.json").read_text())
    theirs = [told(event) for event in golden["events"]]
    for event in ours:
        event["source"]["db"] = "postgres"
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine == its
