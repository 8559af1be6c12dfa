"""What the machines of the simulated plant say: about 60 signals, every one a function of seed and count.

Three machines: a press, a welding robot, an oven. Together they speak every scalar type of OPC UA,
arrays, a matrix and a structure, and what mirrors stumble over: NaN, -0.0, the largest UInt64, the
null String beside the empty one, null and empty arrays, null Variants, times at both ends of the
calendar, bad and uncertain statuses, stamps that are stale or missing.

The n-th value of a signal depends on nothing but the seed, the signal and n. Time stamps are the
server's business (`demo.plant`).
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from asyncua import ua
from asyncua.ua import VariantType as T

#: A value maker gets a random source of its own for the n-th value, and n; it returns a Python value.
Make = Callable[[Random, int], Any]

BAD_NO_COMMUNICATION = 0x80310000
BAD_SENSOR_FAILURE = 0x808C0000
UNCERTAIN_LAST_USABLE = 0x40900000
GOOD_LIMIT_HIGH = 0x00000600
GOOD_LOCAL_OVERRIDE = 0x00960000
NUMBER = 26  # the abstract data type above all numbers
#: A good null after a bad value: the one place where this server lets a variable be null and good.
FALLS_OFF = (0, BAD_NO_COMMUNICATION, 0)
EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
#: What a structured signal makes; the server puts it into the class of its own data type.
CYCLE = "PressCycle"
MATERIALS = ("", "DC04", "S355", "1.4301", "AlMg3 µ-geprüft", "钢板", None)


@dataclass(frozen=True)
class Signal:
    """One variable of a machine.

    Attributes:
        machine: Name of the object that it belongs to.
        name: Browse name; `Zone1/Temperature` puts it into a folder.
        type: Built-in type.
        period_s: Time between two writes.
        make: Gives the n-th value.
        unit, low, high: Engineering unit and range, where it has them.
        text: Description.
        statuses: Every so many writes a status other than Good; 0: always Good; or the codes in turn.
        stamps: `both`, `no source`, `no server`, `stale` (the source time stands an hour behind).
        data_type: Identifier of the declared data type in namespace 0; 0: that of `type`.
    """

    machine: str
    name: str
    type: T
    period_s: float
    make: Make
    unit: str = ""
    low: float = 0.0
    high: float = 0.0
    text: str = ""
    statuses: int | tuple[int, ...] = 0
    stamps: str = "both"
    data_type: int = 0

    @property
    def identifier(self) -> str:
        return f"{self.machine}/{self.name}"

    def value(self, seed: int, n: int) -> ua.Variant:
        """Return the n-th value."""
        value = self.make(Random(f"{seed}/{self.identifier}/{n}"), n)
        return value if isinstance(value, ua.Variant) else ua.Variant(value, self.type)

    def status(self, seed: int, n: int) -> int:
        """Return the n-th status code."""
        if isinstance(self.statuses, tuple):
            return self.statuses[n % len(self.statuses)]
        if not self.statuses or n % self.statuses != self.statuses - 1:
            return 0
        choice = (
            UNCERTAIN_LAST_USABLE, BAD_NO_COMMUNICATION, GOOD_LIMIT_HIGH, BAD_SENSOR_FAILURE, GOOD_LOCAL_OVERRIDE,
        )  # fmt: skip
        return Random(f"{seed}/{self.identifier}/{n}/status").choice(choice)


def wave(middle: float, swing: float, period: float, noise: float = 0.01) -> Make:
    """Return a slow sine with noise, as temperatures and pressures have it."""
    return lambda r, n: middle + swing * math.sin(2 * math.pi * n / period) + r.gauss(0, swing * noise)


def count(step: int = 1, start: int = 0) -> Make:
    """Return a counter, the signal on which one sees a loss."""
    return lambda _, n: start + n * step


def flip(_: Random, n: int) -> bool:
    return n % 2 == 0


def one_of(*values: Any) -> Make:
    """Return the values in turn."""
    return lambda _, n: values[n % len(values)]


def array(type_: T, make: Callable[[Random, int], list[Any] | None]) -> Make:
    """Return arrays, the null one (None) and the empty one among them."""
    return lambda r, n: ua.Variant(make(r, n), type_, is_array=True)


def _cycle(r: Random, n: int) -> dict[str, Any]:
    stamp = EPOCH if n % 50 == 49 else datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n)
    return {
        "Number": n, "PeakForce": 800 + r.gauss(0, 20), "Good": r.random() > 0.02, "Material": r.choice(MATERIALS),
        "Began": stamp, "Force": [round(r.uniform(0, 900), 1) for _ in range(n % 5)],
    }  # fmt: skip


def _digest(r: Random, n: int) -> bytes | None:
    return None if n % 7 == 6 else r.randbytes(n % 40)


def _probe(_: Random, n: int) -> float | ua.Variant:
    return ua.Variant(None, T.Null) if n % 3 == 2 else float(n)


def press() -> list[Signal]:
    """Return the signals of the press: fast ones, counters, a structure."""
    m = "Press7"
    return [
        Signal(m, "Force", T.Double, 0.05, wave(420, 400, 40), "kN", 0, 1000, "Ram force, 20 times a second"),
        Signal(m, "Position", T.Double, 0.05, wave(120, 118, 40, 0.001), "mm", 0, 250, "Ram position"),
        Signal(m, "Strokes", T.UInt32, 0.2, count(), text="Counts up by one; a hole in it is a lost sample"),
        Signal(m, "Oil/Temperature", T.Float, 1.0, wave(55, 8, 300), "°C", 0, 90, "Hydraulic oil", statuses=11),
        Signal(m, "Oil/Pressure", T.Float, 0.5, wave(210, 15, 60), "bar", 0, 315, "Hydraulic pressure"),
        Signal(m, "Oil/Level", T.Byte, 2.0, lambda r, n: 200 + r.randrange(50), "%", 0, 255),
        Signal(m, "Vibration", T.Float, 0.2, one_of(0.5, math.nan, -0.0, 1e-45, math.inf, -math.inf), "mm/s", 0, 30),
        Signal(m, "Running", T.Boolean, 1.5, flip, text="Main drive on"),
        Signal(m, "Speed", T.Int16, 0.5, lambda r, n: 40 + r.randrange(3), "1/min", -60, 60, "Repeats itself"),
        Signal(m, "Correction", T.SByte, 1.0, one_of(-128, -1, 0, 1, 127), text="Slide correction"),
        Signal(m, "Order", T.String, 2.0, one_of("A-4711", "", None, "Größe 7 µm"), text="Order on the machine"),
        Signal(m, "ShotId", T.Guid, 1.0, lambda r, n: uuid.UUID(int=r.getrandbits(128)), text="Identity of the part"),
        Signal(m, "Energy", T.UInt64, 1.0, one_of(2**64 - 1, 2**63, 0), "Wh", text="Meter, up to its last value"),
        Signal(m, "Profile", T.Double, 0.5, array(T.Double, lambda r, n: [r.gauss(400, 90) for _ in range(16)]), "kN"),
        Signal(m, "Cycle", T.ExtensionObject, 0.5, _cycle, text="What the control knows of the last stroke"),
        Signal(m, "Serviced", T.DateTime, 3.0, one_of(EPOCH, END_OF_TIME, datetime(2024, 2, 29, 12, tzinfo=UTC))),
        Signal(m, "Safety", T.Boolean, 2.0, flip, text="Light curtain free", statuses=5),
        Signal(m, "Lubrication", T.Double, 1.0, wave(3, 1, 30), "l/h", 0, 10, "Its clock is wrong", stamps="stale"),
        Signal(m, "Clutch", T.Double, 0.5, wave(6, 1, 20), "bar", 0, 10, "Has no clock", stamps="no source"),
        Signal(m, "Encoder", T.Int64, 0.1, count(1_000_003, -(2**40)), text="Position of the encoder"),
    ]  # fmt: skip


def robot() -> list[Signal]:
    """Return the signals of the welding robot: identifiers, texts and arrays of all kinds."""
    m = "Robot3"
    return [
        *[
            Signal(m, f"Axis{i}/Angle", T.Double, 0.2, wave(0, 60 + 20 * i, 50 + 7 * i), "°", -180, 180)
            for i in range(1, 7)
        ],
        Signal(m, "Current", T.Float, 0.1, wave(180, 30, 15), "A", 0, 400, "Welding current", statuses=23),
        Signal(m, "Voltage", T.Double, 0.2, wave(24, 2, 15), "V", 0, 60, "Welding voltage"),
        Signal(m, "Spots", T.Int64, 0.5, count(1, -5), text="Counts from before zero"),
        Signal(m, "Torque", T.Int32, 0.2, lambda r, n: r.randrange(-(2**31), 2**31), "Nm", -500, 500),
        Signal(m, "Program", T.QualifiedName, 2.0, lambda r, n: ua.QualifiedName(f"weld_{n % 9}", 2)),
        Signal(m, "Message", T.LocalizedText, 2.0, lambda r, n: ua.LocalizedText(f"Naht {n} geschweißt", "de")),
        Signal(m, "Tool", T.NodeId, 3.0, lambda r, n: ua.NodeId(f"tool-{n % 4}", 2)),
        Signal(m, "Part", T.ExpandedNodeId, 3.0, lambda r, n: ua.ExpandedNodeId(n, 2)),
        Signal(m, "Seam", T.ByteString, 1.0, _digest, text="Fingerprint of the seam, null now and then"),
        Signal(m, "LastError", T.StatusCode, 2.0, one_of(*map(ua.StatusCode, (0, BAD_NO_COMMUNICATION, 0x80AB0000)))),
        Signal(m, "Job", T.XmlElement, 3.0, lambda r, n: ua.XmlElement(f'<job no="{n}"><seam/></job>')),
        Signal(m, "Inputs", T.Boolean, 1.0, array(T.Boolean, lambda r, n: [r.random() < 0.5 for _ in range(8)])),
        Signal(m, "Faults", T.Int32, 1.0, array(T.Int32, lambda r, n: ([n], None, [], [n, -n])[n % 4])),
        Signal(m, "Operators", T.String, 3.0, array(T.String, lambda r, n: ["", None, "Ada", f"shift {n}"])),
        Signal(m, "Stamps", T.DateTime, 2.0, array(T.DateTime, lambda r, n: [EPOCH, EPOCH + timedelta(days=n)])),
        Signal(m, "Wear", T.UInt16, 1.0, one_of(0, 65535, 1), text="No time of the server", stamps="no server"),
    ]  # fmt: skip


def oven() -> list[Signal]:
    """Return the signals of the oven: slow zones, a matrix, values that go missing."""
    m = "Oven1"
    celsius = "°C"
    return [
        *[
            Signal(m, f"Zone{i}/Temperature", T.Double, 1.0, wave(640 + 20 * i, 15, 200), celsius, 0, 1200, statuses=13)
            for i in range(1, 9)
        ],
        *[
            Signal(m, f"Zone{i}/Setpoint", T.Float, 5.0, one_of(640.0 + 20 * i, 660.0 + 20 * i), celsius, 0, 1200)
            for i in range(1, 9)
        ],
        Signal(m, "Field", T.Float, 1.0, lambda r, n: [[r.gauss(650, 9) for _ in range(4)] for _ in range(3)], celsius),
        Signal(m, "Belt/Speed", T.Double, 0.5, wave(1.2, 0.1, 90), "m/min", 0, 3),
        Signal(m, "Belt/Position", T.UInt32, 0.2, count(17), "mm", 0, 2**32 - 1),
        Signal(m, "Gas/Flow", T.Double, 0.5, wave(35, 4, 70), "m³/h", 0, 80),
        Signal(m, "Gas/Oxygen", T.Double, 1.0, one_of(20.9, math.nan, -0.0, 5e-324, 1.79e308), "%", 0, 25),
        Signal(m, "Door", T.Boolean, 4.0, flip, text="Open"),
        Signal(m, "Batch", T.String, 4.0, lambda r, n: f"charge {n:05d}", statuses=3),
        Signal(m, "Shift", T.Int32, 5.0, one_of(1, 2, 3)),
        Signal(
            m, "Probe", T.Double, 1.0, _probe, text="Falls off, then is null and good", statuses=FALLS_OFF,
            data_type=NUMBER,
        ),
    ]  # fmt: skip


def plant() -> list[Signal]:
    """Return all signals of the three machines."""
    return [*press(), *robot(), *oven()]
