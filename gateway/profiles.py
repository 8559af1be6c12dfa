"""Servers whose behaviour is known from tests of ours: what a short trial cannot find out.

A profile is chosen by what the server says of its product. It never overrules what a trial has seen; it
answers what a trial cannot try without harm, such as whether a queue that runs over is told.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.capabilities import Capabilities


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a product.

    Attributes:
        product: Its name.
        known_by: Parts of product name, manufacturer or product URI, in lower case.
        sets_overflow: Whether a queue that ran over is told by the Overflow bit.
        kept_messages: Messages kept for Republish; 0: as many as there are.
        session_timeout_s_max: Longest life of a session that is granted.
        transfer: What becomes of TransferSubscriptions.
        notes: What else an operator should know.
        source: Where it is known from.
    """

    product: str
    known_by: tuple[str, ...]
    sets_overflow: bool
    kept_messages: int
    session_timeout_s_max: float
    transfer: str
    notes: tuple[str, ...]
    source: str


PROFILES = (
    Profile(
        "asyncua", ("freeopcua",), False, 5_000, 600.0,
        "answers Good, and the subscription never publishes again; the user is not checked",
        (
            "Republish answers Good with an empty message for numbers that it does not have",
            "no sampling: values are stamped when they are written",
            "session tokens can be guessed",
        ),
        "tried with asyncua 2.1.0: tests/live, tests/gateway/test_opcua.py",
    ),
    Profile(
        "node-opcua", ("nodeopcua",), True, 100, 3_000.0,
        "works for the same user; on the owning session it answers BadNothingToDo",
        (
            "PublishTime is null in every message; the response's own time takes its place",
            "changes within 50 ms are joined unless minSupportedSampleRate allows more",
        ),
        "tried with node-opcua: tests/live",
    ),
    Profile(
        "open62541", ("open62541",), True, 0, 3_600.0,
        "works for the same user; anonymous users need Sign or SignAndEncrypt and the same ApplicationUri",
        ("values stamped at sampling differ between two subscriptions",),
        "measured once with open62541 1.5.7; no test repeats it",
    ),
)  # fmt: skip


def profile_of(said: Capabilities) -> Profile | None:
    """Return the profile of a server's product, None for an unknown one."""
    words = f"{said.product} {said.manufacturer} {said.product_uri}".lower()
    return next((p for p in PROFILES if any(word in words for word in p.known_by)), None)
