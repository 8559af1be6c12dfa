"""Events for people and machines: one line per change of state, past tense, a closed list of names.

`log("gap.opened", stream=..., reason=...)` writes one JSON line to standard error. Names and keys are
listed in docs/operations.md; a name that is not in EVENTS is a bug and raises. Where nobody takes the line
(the reader of a pipe has gone, a disk is full, the file is closed) it is lost and nothing else is.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import msgspec

#: Every event this program writes, and what it tells.
EVENTS = {
    "gateway.started": "the process runs",
    "lease.promoted": "this replica acts for the group, under this epoch",
    "lease.demoted": "it acts no more",
    "lease.drifting": "its right has run out and the register does not answer: it keeps the broker's session alone",
    "lease.register_failed": "the register does not serve; told once for each reason",
    "lease.register_back": "it serves again",
    "gap.covered": "what was missed here, another replica has pushed",
    "supervisor.restarting": "the gateway has died and is started again",
    "supervisor.certified": "a dead gateway's lease was freed at once",
    "supervisor.certificate_failed": "it could not be; the lease runs out by itself",
    "lease.alarm": "something that a person should look into",
    "gateway.stopped": "the process ends in order",
    "gateway.failed": "the process ends because of an error",
    "health.changed": "the gateway is ready, or what keeps it from being so has changed",
    "source.connected": "a session exists",
    "source.lost": "the session or connection broke",
    "source.refused": "the server cannot be reached or refuses; tried again later",
    "source.root_missing": "a configured root does not exist on the server",
    "source.browsed": "the tags of a source are known",
    "source.tag_shared": "tags that an earlier device of the source has already were left out of another",
    "source.session_unreadable": "what was kept of a session cannot be decrypted; a new session is made",
    "stream.subscribed": "a new subscription delivers",
    "stream.resumed": "the former subscription delivers again",
    "stream.retired": "a subscription was replaced by one for other tags and has delivered its last",
    "stream.taken_over": "another client took the subscription over; a new one is made",
    "stream.unknown": "a subscription that this gateway does not know sent messages; it was deleted",
    "stream.items_refused": "the server refused to monitor some nodes",
    "stream.items_accepted": "nodes that the server had refused are monitored now",
    "audit.mismatch": "devices, when read, said something else than the mirror held; a gap row says which",
    "canary.silent": "a server's own clock is told no more in a subscription, which is made anew",
    "canary.refused": "a server does not let its clock be monitored: keep-alives alone are watched",
    "audit.refused": "the server refused to read tags for the audit",
    "gap.opened": "something is missing; a row says what and why",
    "gap.closed": "a gap was filled, or declared lost",
    "message.undecodable": "a message was set aside",
    "message.failed": "a message provoked an error of this program and was set aside",
    "journal.stalled": "the disk refuses; nothing more is asked of the servers",
    "journal.recovered": "the disk takes data again",
    "journal.trimmed": "old chunks that the cloud has were deleted",
    "journal.outgrown": "what may not be deleted needs more room than the journal has",
    "journal.fits": "the journal has room again",
    "journal.trim_failed": "old chunks could not be deleted; tried again later",
    "ingest.failed": "the ingest thread ended because of an error",
    "push.pushed": "a segment is in the bucket, read back where in doubt",
    "push.failed": "the store did not answer as hoped; tried again later",
    "push.fenced": "somebody with a higher epoch writes the log; this gateway stopped pushing",
    "push.floor_believed": "this replica knew nothing of the log and took the keys in floor.json at its word",
    "push.refused": "the store cannot be pushed to until somebody changes something",
    "mqtt.connected": "the broker accepted the connection",
    "mqtt.connect_failed": "the broker cannot be reached or refuses; tried again later",
    "mqtt.disconnected": "the broker is away",
    "mqtt.taken_over": "another client with the same id is at the broker; this one stays away",
    "mqtt.message_refused": "the broker refused a message and said why",
    "mqtt.payload_limited": "the broker hangs up on large messages; objects are split smaller from now on",
    "mqtt.payload_raised": "larger messages are tried again",
    "mqtt.failed": "a round of publishing was given up because of an error in this program",
}

_lock = threading.Lock()  # lines of several threads do not mix


def log(event: str, **facts: Any) -> None:
    """Write one event.

    Args:
        event: A name from EVENTS.
        **facts: Keys with units last; values are numbers or short texts.
    """
    assert event in EVENTS, f"{event} is not a known event"
    line = msgspec.json.encode({**facts, "event": event, "time": datetime.now(UTC)}, enc_hook=str).decode()
    with _lock, contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
