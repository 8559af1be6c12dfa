"""Turn the bytes of a Publish or Republish response into columns of samples.

Here the envelope is read: headers, sequence numbers, notifications, results. The samples in it become
columns in `gateway.walk`. The answers to Read and HistoryRead are read the same way.

The rule: a response whose parts do not end exactly where their lengths say is Corrupt as a whole; half a
message is never used. The ClientHandle of a monitored item is the tag's handle.

What it does not do: judge sequence numbers, or acknowledge.

Source: OPC UA Part 4, 5.14.5 and 7.25; Part 6, 5.2 (encoding).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway import canary
from gateway.walk import Walk
from mirror.batch import ARRAY, Batch, Kind, take
from mirror.errors import Corrupt
from mirror.wire import body_size

DATA_CHANGE = 811  # encoding ids of the three kinds of notification, namespace 0
STATUS_CHANGE = 820
EVENT_LIST = 916

OVERFLOW = 0x0480  # InfoType DataValue and the Overflow bit: values before this one were discarded


@dataclass(frozen=True, slots=True)
class Message:
    """One response as the server sent it, with its samples still encoded.

    Attributes:
        subscription: SubscriptionId; 0 in the answer to a Republish, which does not carry it.
        available: AvailableSequenceNumbers; None for a null list, empty after a Republish.
        more: MoreNotifications: ask again at once.
        sequence: Number of the message, or of the next one in a keep-alive.
        publish_ticks: PublishTime; 0 where the server leaves it null.
        response_ticks: Timestamp of the response header.
        service_result: ServiceResult of the response header; when it is bad, nothing else is told.
        ack_results: One StatusCode for each acknowledgement of the request.
        notifications: (encoding id, start, end) in `body`; -1 as id for types outside namespace 0.
        status_change: StatusCode of a StatusChangeNotification, the last one if there are several.
        body: The whole response.
    """

    subscription: int
    available: tuple[int, ...] | None
    more: bool
    sequence: int
    publish_ticks: int
    response_ticks: int
    service_result: int
    ack_results: tuple[int, ...]
    notifications: tuple[tuple[int, int, int], ...]
    status_change: int | None
    body: bytes

    @property
    def keepalive(self) -> bool:
        """Whether the message only says that the subscription lives; its number is not used up."""
        return not self.notifications and not self.service_result & 0x80000000


@dataclass(frozen=True, slots=True)
class Decoded:
    """The samples of one message.

    Attributes:
        batch: Rows in the order of the wire.
        overflow: uint32[], ascending: handles with a value before which the server discarded others.
        refused: Items left out because their handle is not one of ours.
        canary: The server's clock in ticks as the canary tells it, 0 if it is not readable; None without one.
        slow: Items whose size was found one by one, in Python.
    """

    batch: Batch
    overflow: NDArray[np.uint32]
    refused: int
    canary: int | None
    slow: int


def read_publish(body: bytes) -> Message:
    """Read everything but the samples of a PublishResponse (or of a ServiceFault in its place).

    Args:
        body: The response from its TypeId on, after reassembly and decryption.

    Raises:
        Corrupt: The bytes are not such a response.
    """
    try:
        return _read_publish(body)
    except (struct.error, IndexError) as error:
        raise Corrupt(f"PublishResponse of {len(body)} bytes ends early: {error}") from error


def read_republish(body: bytes) -> Message:
    """Read everything but the samples of a RepublishResponse; see `read_publish`."""
    try:
        type_id, pos = _type_id(body, 0)
        ticks, result, pos = _response_header(body, pos)
        if type_id == _SERVICE_FAULT:
            return Message(0, (), False, 0, 0, ticks, result, (), (), None, body)
        if type_id != _REPUBLISH_RESPONSE:
            raise Corrupt(f"response has encoding id {type_id}; a RepublishResponse has {_REPUBLISH_RESPONSE}")
        sequence, publish_ticks, notifications, pos = _notification_message(body, pos)
        status = _status_change(body, notifications)
    except (struct.error, IndexError) as error:
        raise Corrupt(f"RepublishResponse of {len(body)} bytes ends early: {error}") from error
    return Message(0, (), False, sequence, publish_ticks, ticks, result, (), notifications, status, body)


def decode(message: Message, *, handle_limit: int, monitored: NDArray[np.bool_] | None = None) -> Decoded:
    """Decode the data changes of a message into one batch.

    Nothing of the batch refers to the message's bytes. A timestamp that is absent and one that is 0,
    which is how a null DateTime is encoded, are both flagged null.

    Args:
        message: From `read_publish` or `read_republish`.
        handle_limit: Handles from here on are not ours; their items are counted and left out.
        monitored: Which of those below the server was asked for, as `handle_mask` gives it; None: all of them.

    Raises:
        Corrupt: The notifications are not what their lengths claim; no sample of the message is used.
    """
    walk = Walk(message.body)
    for type_id, start, end in message.notifications:
        if type_id == DATA_CHANGE:
            _diagnostics(message.body, walk.items(start, end), end)
    batch = walk.gather()
    assert monitored is None or len(monitored) <= handle_limit + 1, "nothing beyond the limit is monitored"
    ours = batch.handle < handle_limit if monitored is None else monitored.take(batch.handle, mode="clip")
    refused, heard = 0, None
    if not ours.all():
        heard, others = _canary(batch)
        refused = len(ours) - int(np.count_nonzero(ours)) - others
        batch = take(batch, np.flatnonzero(ours))
    lost = (batch.status & np.uint32(OVERFLOW)) == OVERFLOW
    overflow = np.unique(batch.handle[lost]) if lost.any() else _NO_HANDLES
    return Decoded(batch, overflow, refused, heard, walk.slow)


def handle_mask(handles: Iterable[int]) -> NDArray[np.bool_]:
    """Return a mask for `decode`: by handle, whether it is one of these; the last entry stands for all beyond."""
    wanted = np.fromiter(handles, np.int64)
    mask = np.zeros(int(wanted.max(initial=-1)) + 2, np.bool_)
    mask[wanted] = True
    return mask


def _canary(batch: Batch) -> tuple[int | None, int]:
    """Return what the last row of the canary tells, None without one, and how many it has."""
    rows = np.flatnonzero(batch.handle == canary.HANDLE)
    if not len(rows):
        return None, 0
    last = rows[-1]
    told = batch.kind[last] == Kind.DATETIME and not batch.status[last] & 0x80000000
    return (int(batch.bits[last]) if told else 0), len(rows)


_NO_HANDLES = np.zeros(0, np.uint32)

# ---- the envelope ---------------------------------------------------------------------------------------

_SERVICE_FAULT = 397
_PUBLISH_RESPONSE = 829
_REPUBLISH_RESPONSE = 835

_U16 = struct.Struct("<H")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_RESPONSE_HEADER = struct.Struct("<qII")
_SEQUENCE_AND_TIME = struct.Struct("<Iq")


def _read_publish(body: bytes) -> Message:
    type_id, pos = _type_id(body, 0)
    ticks, result, pos = _response_header(body, pos)
    if type_id == _SERVICE_FAULT:
        return Message(0, (), False, 0, 0, ticks, result, (), (), None, body)
    if type_id != _PUBLISH_RESPONSE:
        raise Corrupt(f"response has encoding id {type_id}; a PublishResponse has {_PUBLISH_RESPONSE}")
    (subscription,) = _U32.unpack_from(body, pos)
    available, pos = _numbers(body, pos + 4)
    more = body[pos] != 0
    sequence, publish_ticks, notifications, pos = _notification_message(body, pos + 1)
    acks, pos = _numbers(body, pos)
    status = _status_change(body, notifications)
    return Message(
        subscription, available, more, sequence, publish_ticks, ticks, result, acks or (), notifications, status, body
    )


def _type_id(body: bytes, pos: int) -> tuple[int, int]:
    """Return the numeric id in namespace 0 (else -1) of the NodeId at pos, and where it ends."""
    form = body[pos]
    if form == 0:
        return body[pos + 1], pos + 2
    if form == 1:
        return (-1 if body[pos + 1] else _U16.unpack_from(body, pos + 2)[0]), pos + 4
    if form == 2:
        return (-1 if body[pos + 1] or body[pos + 2] else _U32.unpack_from(body, pos + 3)[0]), pos + 7
    return -1, pos + body_size(body, pos, Kind.NODEID)


def _response_header(body: bytes, pos: int) -> tuple[int, int, int]:
    """Return timestamp, ServiceResult and the end of the ResponseHeader at pos."""
    ticks, _, result = _RESPONSE_HEADER.unpack_from(body, pos)
    pos += _RESPONSE_HEADER.size
    pos += body_size(body, pos, Kind.DIAGNOSTICINFO)
    pos += body_size(body, pos, Kind.STRING | ARRAY)
    pos += body_size(body, pos, Kind.EXTENSIONOBJECT)
    return ticks, result, pos


def _numbers(body: bytes, pos: int) -> tuple[tuple[int, ...] | None, int]:
    """Return the array of UInt32 at pos, None if it is null, and where it ends."""
    (n,) = _I32.unpack_from(body, pos)
    pos += 4
    if n <= 0:
        return (None if n < 0 else ()), pos
    if n > (len(body) - pos) // 4:
        raise Corrupt(f"array of {n} numbers in the {len(body) - pos} bytes that are left")
    return struct.unpack_from(f"<{n}I", body, pos), pos + 4 * n


def _notification_message(body: bytes, pos: int) -> tuple[int, int, tuple[tuple[int, int, int], ...], int]:
    """Return sequence number, publish time, notifications and the end of the NotificationMessage at pos."""
    sequence, publish_ticks = _SEQUENCE_AND_TIME.unpack_from(body, pos)
    (n,) = _I32.unpack_from(body, pos + 12)
    pos += 16
    notifications = []
    for _ in range(n):
        type_id, pos = _type_id(body, pos)
        encoding, pos = body[pos], pos + 1
        start = end = pos
        if encoding:
            (size,) = _I32.unpack_from(body, pos)
            start, end = pos + 4, pos + 4 + size
            if encoding > 2 or size < 0 or end > len(body):
                raise Corrupt(f"notification of encoding {encoding} and {size} bytes, {len(body) - pos} left")
        elif type_id == DATA_CHANGE:
            raise Corrupt("data change notification without a body")
        notifications.append((type_id if encoding < 2 else -1, start, end))
        pos = end
    return sequence, publish_ticks, tuple(notifications), pos


def _status_change(body: bytes, notifications: tuple[tuple[int, int, int], ...]) -> int | None:
    """Return the StatusCode of the last StatusChangeNotification, if there is one."""
    status: int | None = None
    for type_id, start, end in notifications:
        if type_id == STATUS_CHANGE:
            if end - start < 4:
                raise Corrupt(f"status change notification of {end - start} bytes")
            (status,) = _U32.unpack_from(body, start)
    return status


def _diagnostics(body: bytes, pos: int, end: int) -> None:
    """Check that the array of DiagnosticInfos at pos ends the notification."""
    if end - pos < 4:
        raise Corrupt("data change notification ends inside its items")
    (n,) = _I32.unpack_from(body, pos)
    pos += 4
    if n > end - pos:
        raise Corrupt(f"{n} diagnostics in {end - pos} bytes")
    for _ in range(n):
        pos += body_size(body, pos, Kind.DIAGNOSTICINFO)
    if pos != end:
        raise Corrupt(f"items and diagnostics end at {pos}, the notification at {end}")


# ---- the answers to Read and HistoryRead ----------------------------------------------------------------

_READ_RESPONSE = 634
_HISTORY_READ_RESPONSE = 667
_HISTORY_DATA = 658


@dataclass(frozen=True, slots=True)
class HistoryResult:
    """What a HistoryRead said of one node.

    Attributes:
        status: StatusCode of this node's part.
        continuation: Where the server goes on when asked with it; empty at the end.
        batch: The page's values, oldest first as the server sends them; all handles 0.
    """

    status: int
    continuation: bytes
    batch: Batch


def read_values(body: bytes, count: int) -> Batch:
    """Decode a ReadResponse.

    Args:
        body: The response from its TypeId on.
        count: Number of ReadValueIds in the request.

    Returns:
        One row for each ReadValueId, in the order of the request; all handles 0.

    Raises:
        Corrupt: The bytes are not a ReadResponse of so many values, or one with a bad ServiceResult.
    """
    try:
        pos = open_answer(body, _READ_RESPONSE, "ReadResponse")
        walk = Walk(body, bare=True)
        walk.items(pos, len(body), count)
    except (struct.error, IndexError) as error:
        raise Corrupt(f"ReadResponse of {len(body)} bytes ends early: {error}") from error
    if walk.rows != count:
        raise Corrupt(f"ReadResponse with {walk.rows} values where {count} were asked for")
    return walk.gather()


def read_history(body: bytes, count: int, rows_max: int) -> list[HistoryResult]:
    """Decode a HistoryReadResponse.

    Args:
        body: The response from its TypeId on.
        count: Number of nodes in the request.
        rows_max: More values than this for one node are Corrupt.

    Returns:
        One result for each node, in the order of the request.
    """
    try:
        pos = open_answer(body, _HISTORY_READ_RESPONSE, "HistoryReadResponse")
        (n,) = _I32.unpack_from(body, pos)
        pos += 4
        if n != count:
            raise Corrupt(f"{n} history results where {count} were asked for")
        results = []
        for _ in range(n):
            (status,) = _U32.unpack_from(body, pos)
            (size,) = _I32.unpack_from(body, pos + 4)
            continuation = body[pos + 8 : pos + 8 + max(size, 0)]
            pos += 4 + body_size(body, pos + 4, Kind.BYTESTRING)
            type_id, start = _type_id(body, pos)
            pos += body_size(body, pos, Kind.EXTENSIONOBJECT)
            results.append(HistoryResult(status, continuation, _history_data(body, type_id, start, pos, rows_max)))
    except (struct.error, IndexError) as error:
        raise Corrupt(f"HistoryReadResponse of {len(body)} bytes ends early: {error}") from error
    return results


def _history_data(body: bytes, type_id: int, pos: int, end: int, rows_max: int) -> Batch:
    """Decode the HistoryData whose encoding byte stands at pos; nothing for other kinds of history."""
    if type_id != _HISTORY_DATA or body[pos] != 1:
        return Batch.zeros(0)
    data = body[pos + 5 : end]
    walk = Walk(data, bare=True)
    if walk.items(0, len(data), rows_max) != len(data):
        raise Corrupt("history data does not end where its length says")
    return walk.gather()


def response_ticks(body: bytes) -> int:
    """Return the Timestamp of a response's header. Raises Corrupt."""
    return _opened(body)[1]


def service_result(body: bytes) -> int:
    """Return the ServiceResult of a response's header. Raises Corrupt."""
    try:
        return _response_header(body, _type_id(body, 0)[1])[1]
    except (struct.error, IndexError) as error:
        raise Corrupt(f"response of {len(body)} bytes ends early: {error}") from error


def open_answer(body: bytes, expected: int, name: str) -> int:
    """Check type and ServiceResult of a response and return where its parameters begin. Raises Corrupt."""
    type_id, _, result, pos = _opened(body)
    if type_id != expected or result & 0x80000000:
        raise Corrupt(f"response has encoding id {type_id} and result {result:#010x}; a {name} has {expected}")
    return pos


def _opened(body: bytes) -> tuple[int, int, int, int]:
    """Return encoding id, Timestamp, ServiceResult and where the parameters of a response begin."""
    try:
        type_id, pos = _type_id(body, 0)
        return type_id, *_response_header(body, pos)
    except (struct.error, IndexError) as error:
        raise Corrupt(f"response of {len(body)} bytes ends early: {error}") from error
