"""The peer to beat: what an engineer writes in an afternoon instead of installing a gateway.

asyncua subscription -> handler -> list -> sqlite3.executemany every 200 ms; with a store also gzip NDJSON
-> put_object every 2 s behind a cursor table. WAL with synchronous=NORMAL, queue 10, sampling 0,
reconnect after 1 s: the settings with which it does best. It knows no gap, no replay, no second box.

    python -m tests.bench.peers.script ENDPOINT SECONDS FOLDER [S3_ENDPOINT BUCKET]
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvloop
from asyncua import Client

from tests.bench.peers import Meter, variables

PUBLISH_MS = 200
FLUSH_S = 0.2
UPLOAD_S = 2.0
QUEUE = 10
RECONNECT_S = 1.0


class Script:
    """The handler, its list and its table."""

    def __init__(self, database: Path) -> None:
        self.rows: list[tuple[str, float, float]] = []
        self.db = sqlite3.connect(database)
        self.db.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
            "CREATE TABLE IF NOT EXISTS samples (node TEXT, ts REAL, value);"
            "CREATE TABLE IF NOT EXISTS cursor (uploaded INTEGER)"
        )

    def datachange_notification(self, node: Any, value: Any, data: Any) -> None:
        stamp = data.monitored_item.Value.SourceTimestamp
        self.rows.append((node.nodeid.Identifier, stamp.timestamp() if stamp else 0.0, value))

    def flush(self) -> None:
        rows, self.rows = self.rows, []
        with self.db:
            self.db.executemany("INSERT INTO samples VALUES (?, ?, ?)", rows)


def upload(database: Path, client: Any, bucket: str, stop: threading.Event) -> None:
    """Put what is new in the table into the store, every 2 s; the cursor survives a restart."""
    db = sqlite3.connect(database)
    while not stop.wait(UPLOAD_S):
        done = db.execute("SELECT coalesce(max(uploaded), 0) FROM cursor").fetchone()[0]
        rows = db.execute("SELECT rowid, node, ts, value FROM samples WHERE rowid > ?", (done,)).fetchall()
        if rows:
            body = gzip.compress("\n".join(json.dumps(row) for row in rows).encode())
            client.put_object(Bucket=bucket, Key=f"script/{rows[-1][0]:020d}.ndjson.gz", Body=body)
            with db:
                db.execute("INSERT INTO cursor VALUES (?)", (rows[-1][0],))


async def follow(endpoint: str, script: Script, meter: Meter) -> None:
    while True:
        try:
            async with Client(endpoint, timeout=10) as client:
                subscription = await client.create_subscription(PUBLISH_MS, script)
                nodes = await variables(client)
                for i in range(0, len(nodes), 1000):
                    await subscription.subscribe_data_change(
                        nodes[i : i + 1000], queuesize=QUEUE, sampling_interval=0.0
                    )
                while True:
                    await asyncio.sleep(FLUSH_S)
                    meter.count(len(script.rows))
                    script.flush()
                    await client.check_connection()
        except (TimeoutError, OSError):
            await asyncio.sleep(RECONNECT_S)


async def work(endpoint: str, seconds: float, script: Script, meter: Meter) -> None:
    try:
        await asyncio.wait_for(follow(endpoint, script, meter), seconds)
    except TimeoutError:
        script.flush()


def main(endpoint: str, seconds: str, folder: str, *store: str) -> None:
    database = Path(folder) / "script.db"
    script, meter, stop = Script(database), Meter("script"), threading.Event()
    if store:
        import boto3

        client = boto3.client("s3", endpoint_url=store[0])
        threading.Thread(target=upload, args=(database, client, store[1], stop), daemon=True).start()
    started = time.monotonic()
    uvloop.run(work(endpoint, float(seconds), script, meter))
    stop.set()
    print(json.dumps(meter.result(time.monotonic() - started, script.db)))


if __name__ == "__main__":
    main(*sys.argv[1:])
