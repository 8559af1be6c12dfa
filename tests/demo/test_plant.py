"""The plant writes what its log says, and a plain client sees all of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncua import Client, ua
from asyncua.ua.ua_binary import variant_to_binary

from demo import ledger
from demo.signals import plant as signals
from mirror.batch import ARRAY, DIMENSIONS, Batch, Kind, concat, take
from mirror.tags import Tag, TagTable


class Process:
    """The plant as a process of its own."""

    def __init__(self, log: Path, seed: int) -> None:
        self.log = log
        command = [sys.executable, "-m", "demo.plant", "--log", str(log), "--seed", str(seed), "--paused"]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        return dict(json.loads(self.popen.stdout.readline()))

    def tell(self, do: str) -> dict[str, Any]:
        assert self.popen.stdin is not None
        print(json.dumps({"do": do}), file=self.popen.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.popen.stdin.close()
        self.popen.wait(20)
        self.popen.stdout.close()


@pytest.fixture
def works(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path / "plant.log", 7)
    yield process
    process.close()


class Notes:
    """Keeps every data change as the log would write it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def datachange_notification(self, node: Any, value: Any, data: Any) -> None:
        value = data.monitored_item.Value
        wire = variant_to_binary(value.Value)
        self.seen.append((node.nodeid.Identifier, value.StatusCode.value, wire[0], wire[1:].hex()))


def logged(path: Path) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(x["node"].split(";s=")[1], x["status"], x["kind"], x["body"]) for x in lines]


def test_a_client_sees_every_value_that_the_plant_logs(works: Process) -> None:
    async def go() -> list[tuple[Any, ...]]:
        notes = Notes()
        async with Client(works.ready["endpoint"]) as client:
            await client.load_data_type_definitions()
            subscription = await client.create_subscription(50, notes)
            nodes = [client.get_node(f"ns=2;s={s.identifier}") for s in signals()]
            await subscription.subscribe_data_change(nodes, queuesize=1000, sampling_interval=0.0)
            await asyncio.to_thread(works.tell, "run")
            while len(notes.seen) < 5 * len(nodes):
                await asyncio.sleep(0.05)
            written = (await asyncio.to_thread(works.tell, "pause"))["written"]
            async with asyncio.timeout(10):
                while len(notes.seen) < written:
                    await asyncio.sleep(0.05)
            return notes.seen

    seen = asyncio.run(go())
    assert sorted(seen) == sorted(logged(works.log))


def test_a_client_finds_units_ranges_descriptions_and_the_structure(works: Process) -> None:
    async def go() -> tuple[Any, Any, Any, Any]:
        async with Client(works.ready["endpoint"]) as client:
            await client.load_data_type_definitions()
            force = client.get_node("ns=2;s=Press7/Force")
            unit = await (await force.get_child("0:EngineeringUnits")).read_value()
            span = await (await force.get_child("0:EURange")).read_value()
            text = await force.read_description()
            cycle = await client.get_node("ns=2;s=Press7/Cycle").read_value()
            return unit.DisplayName.Text, (span.Low, span.High), text.Text, cycle

    unit, span, text, cycle = asyncio.run(go())
    assert (unit, span, text) == ("kN", (0.0, 1000.0), "Ram force, 20 times a second")
    assert type(cycle).__name__ == "PressCycle"
    assert (cycle.Number, cycle.Force) == (0, [])


def test_the_plant_ends_in_order_and_its_log_reads_back_as_a_batch(works: Process) -> None:
    written = works.tell("stop")["written"]
    assert works.popen.wait(20) == 0
    tags = TagTable()
    batch = ledger.read(works.log, works.ready["uri"], tags)
    assert len(batch) == written == len(tags) == works.ready["tags"] == len(signals())
    assert ledger.compare(batch, [batch]).clean


def test_values_follow_from_the_seed_alone() -> None:
    def values(seed: int) -> list[str]:
        return [repr((s.value(seed, n), s.status(seed, n))) for s in signals() for n in range(30)]

    assert values(3) == values(3)
    assert values(3) != values(4)


def test_the_signals_cover_every_type_and_every_trap() -> None:
    assert {s.type.value for s in signals()} >= set(range(1, 23))
    kinds, bodies = set(), set()
    for s in signals():
        if s.type != ua.VariantType.ExtensionObject:
            for n in range(12):
                wire = variant_to_binary(s.value(1, n))
                kinds.add(wire[0])
                bodies.add(wire)
    assert {Kind.DOUBLE | ARRAY, Kind.STRING | ARRAY, Kind.FLOAT | ARRAY | DIMENSIONS, Kind.NULL} <= kinds
    minus_one, nothing = b"\xff\xff\xff\xff", b"\0\0\0\0"
    assert {b"\x0c" + minus_one, b"\x0c" + nothing, b"\x86" + minus_one, b"\x86" + nothing} <= bodies
    assert b"\x09" + b"\xff" * 8 in bodies and b"\x0b" + b"\0" * 7 + b"\x80" in bodies
    assert {s.stamps for s in signals()} == {"both", "no source", "no server", "stale"}
    codes = {s.status(1, n) for s in signals() for n in range(200)}
    assert {code >> 30 for code in codes} == {0, 1, 2}
    assert not any(code & 0x0480 == 0x0480 for code in codes), "looks like a queue overflow"


def rows(values: list[int]) -> Batch:
    batch = Batch.zeros(len(values))
    batch.kind[:] = Kind.INT32
    batch.bits[:] = values
    batch.handle[:] = [v % 2 for v in values]
    batch.source_ticks[:] = values
    return batch


def test_the_comparison_counts_losses_copies_and_inventions() -> None:
    plant_rows = rows(list(range(10)))
    assert ledger.compare(plant_rows, [plant_rows]) == ledger.Verdict(10, frozenset(), 0, 0)
    late = take(plant_rows, plant_rows.source_ticks >= 4)
    assert ledger.compare(plant_rows, [late]) == ledger.Verdict(10, frozenset(range(4)), 0, 0)
    holed = take(late, late.source_ticks != 7)
    assert ledger.compare(plant_rows, [holed]).missing == {0, 1, 2, 3, 7}
    assert ledger.compare(plant_rows, [late, late]).duplicates == 6
    assert ledger.compare(plant_rows, [concat([plant_rows, rows([11])])]).foreign == 1
    other = rows([3])
    other.status[0] = 1
    assert not ledger.compare(plant_rows, [concat([plant_rows, other])]).clean
    assert ledger.compare(plant_rows, []).lost == 10


def test_reading_a_log_keeps_known_facts_and_leaves_a_torn_line_out(tmp_path: Path) -> None:
    line = {"node": "nsu=urn:x;s=a", "source_ticks": None, "server_ticks": 5, "source_ps": 0, "status": 0, "kind": 6}
    log = tmp_path / "log"
    log.write_text(json.dumps(line | {"body": "feffffff"}) + "\n" + '{"node": "torn')
    tags = TagTable([Tag("urn:s", "urn:x", "s=a", unit="bar")])
    batch = ledger.read(log, "urn:s", tags)
    assert len(batch) == 1 and tags[0].unit == "bar"
    assert batch.value_bytes(0) == b"\xfe\xff\xff\xff" and int(batch.bits[0]) == 2**64 - 2
