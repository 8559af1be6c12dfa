"""The footer of a segment: what the chain needs of a file, and all that it needs.

Header, facts and the number of the columns' format stand in the key-value metadata of the Parquet footer, so
that the end of a file is enough to follow the log, whatever the columns are.

What it does not do: read rows (`mirror.segment`), or judge a header (`mirror.header`).
"""

from __future__ import annotations

import base64
import binascii

import pyarrow as pa
import pyarrow.parquet as pq

from mirror.errors import Corrupt

FOOTER_BYTES_MAX = 64 * 1024**2  # header and facts stand there, so this bounds both
HEADER_KEY, FACTS_KEY, FORMAT_KEY = b"edgemirror.header", b"edgemirror.facts", b"edgemirror.format"

#: What pyarrow raises when it is given bytes that are not Parquet, or not the Parquet they claim to be.
ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, KeyError)


def footer_size(tail: bytes) -> int:
    """Return how many bytes at the end of a file `read_header` and `read_facts` need.

    Args:
        tail: The end of the file, at least 8 bytes.
    """
    if len(tail) < 8 or tail[-4:] != b"PAR1":
        raise Corrupt(f"{len(tail)} bytes that do not end in PAR1 are not a segment")
    return int.from_bytes(tail[-8:-4], "little") + 8


def read_header(data: bytes) -> bytes:
    """Return the header of a segment, of whatever format the rest of it is: the chain needs nothing else.

    Args:
        data: The file, or its end: at least `footer_size` bytes.
    """
    return _metadata(data)[HEADER_KEY]


def read_format(data: bytes) -> str:
    """Return the format of a segment's columns, from a whole file or its end; `decode` reads FORMAT alone."""
    return _metadata(data)[FORMAT_KEY].decode("utf-8", "replace")


def read_facts(data: bytes) -> bytes:
    """Return what was given to `encode` as facts, from a whole file or its end; empty where there are none."""
    try:
        return base64.b64decode(_metadata(data).get(FACTS_KEY, b""), validate=True)
    except binascii.Error as error:
        raise Corrupt("the facts of a segment are not base64") from error


def _metadata(data: bytes) -> dict[bytes, bytes]:
    size = footer_size(data)
    if size > min(len(data), FOOTER_BYTES_MAX):
        raise Corrupt(f"a footer of {size} bytes does not fit into the {len(data)} bytes given, or is too long")
    try:
        metadata: dict[bytes, bytes] = pq.read_metadata(pa.BufferReader(data[-size:])).metadata or {}
    except ARROW_ERRORS as error:
        raise Corrupt(f"a footer of {size} bytes cannot be read: {str(error)[:200]}") from error
    if FORMAT_KEY not in metadata or HEADER_KEY not in metadata:
        raise Corrupt(f"a footer with the keys {sorted(metadata)[:9]} is not that of a segment")
    return metadata
