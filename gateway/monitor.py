"""The request for monitored items and its answer as bytes, because there are tens of thousands of them.

Building and reading an object for each of 40,000 items takes seconds of a start; written and read as the
bytes that they are, a fraction of one. The rule: an answer whose parts do not end where their lengths say is
Corrupt as a whole.

Source: OPC UA Part 4, 5.13.2; Part 6, 5.2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from gateway.decode import open_answer, response_ticks, service_result
from gateway.server import MonitoredItem, Refused, Revised
from mirror.batch import Kind
from mirror.errors import Corrupt
from mirror.wire import body_size, encode

_RESPONSE = 754
_VALUE, _REPORTING, _NULL = 13, 2, -1

#: After the NodeId: attribute, index range, data encoding (null), mode, handle, sampling, no filter, queue, discard.
_REST = struct.Struct("<IiHiIId3xI?")
_RESULT = np.dtype([("status", "<u4"), ("id", "<u4"), ("sampling", "<f8"), ("queue", "<u4"), ("filter", "u1", 3)])
_FILTER_AT = 20


def items(wanted: Sequence[tuple[MonitoredItem, str]]) -> bytes:
    """Return the array of MonitoredItemCreateRequests for items and the nodes they have today.

    Every item reports its value, without a filter, the oldest discarded first; its handle is the ClientHandle.
    """
    parts = [len(wanted).to_bytes(4, "little")]
    for item, node in wanted:
        parts.append(encode(Kind.NODEID, node))
        parts.append(
            _REST.pack(_VALUE, _NULL, 0, _NULL, _REPORTING, item.handle, item.sampling_ms, item.queue_size, True)
        )
    return b"".join(parts)


def results(body: bytes) -> tuple[list[int], list[Revised], int]:
    """Read a CreateMonitoredItemsResponse.

    Returns:
        StatusCode and what was revised of each item, in the order of the request; the server's time.

    Raises:
        Refused: The service as a whole was refused.
        Corrupt: The bytes are not such a response.
    """
    if (code := service_result(body)) & 0x80000000:
        raise Refused("CreateMonitoredItems", code)
    try:
        pos = open_answer(body, _RESPONSE, "CreateMonitoredItemsResponse")
        (n,) = struct.unpack_from("<i", body, pos)
        rows = _rows(body, pos + 4, max(n, 0))
    except (struct.error, IndexError) as error:
        raise Corrupt(f"CreateMonitoredItemsResponse of {len(body)} bytes ends early: {error}") from error
    columns = [rows[name].tolist() for name in ("status", "id", "sampling", "queue")]
    return columns[0], [Revised(*row) for row in zip(*columns[1:], strict=True)], response_ticks(body)


def _rows(body: bytes, pos: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Return the n results that begin at pos, without what a filter has to say."""
    if n * _RESULT.itemsize > len(body) - pos:
        raise Corrupt(f"{n} results in the {len(body) - pos} bytes that are left")
    rows = np.frombuffer(body, _RESULT, n, pos)
    if not rows["filter"].any():  # all alike: each stands where the one before it says
        return rows
    parts = []
    for _ in range(n):
        end = pos + _FILTER_AT + body_size(body, pos + _FILTER_AT, Kind.EXTENSIONOBJECT)
        parts.append(body[pos : pos + _FILTER_AT] + bytes(3))
        pos = end
    return np.frombuffer(b"".join(parts), _RESULT)
