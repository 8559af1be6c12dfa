"""What a change costs in the bucket: bytes and time per change, over the size of a segment.

Everything is counted: a header of 1,000 bytes, the footer, the dictionaries of `source` and `tag`. Rows are
those of `tests.bench.mix` with 10,000 tags, so a segment of up to 10,000 rows has one row a tag and pays a
name for each. Times are CPU times of this process, best of a few runs, sorting into canonical order included.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirror import segment
from mirror.batch import Batch, canonical_order, concat, equal, take
from mirror.tags import TagTable
from tests.bench import mix
from tests.bench.rig import table, usage

TAGS = 10_000
SIZES = (10, 100, 1_000, 10_000, 100_000)
HEADER = b"{" + b" " * 998 + b"}"
REPEATS = 5


def run(_options: object = None) -> dict[str, Any]:
    """Return bytes and rates per change at the largest size, and the curve over all sizes."""
    tags = TagTable(mix.tags(TAGS))
    whole = concat(list(mix.mix(TAGS, max(SIZES) // TAGS)))
    curve = [_measure(take(whole, np.arange(size)), tags) for size in SIZES]
    print(table([list(curve[0]), *(list(point.values()) for point in curve)]))
    last = curve[-1]
    stamps = {f"{share:.0%}": _bytes(share, tags) for share in (0.0, 1.0)}
    print("bytes per change where this share of the machines stamps whole scans at once:", stamps)
    return {
        "name": "segment",
        "rows": last["rows"],
        "tags": TAGS,
        "bytes_per_change": last["bytes_per_change"],
        "us_per_change": last["us_per_change"],
        "rate_per_s": last["rate_per_s"],
        "decode_rate_per_s": last["decode_rate_per_s"],
        "lost": 0,  # `_measure` compares every row
        "rss_mib": round(usage(os.getpid()).pss_mib, 1),
        "curve": curve,
        "bytes_per_change_by_shared_stamps": stamps,
        "columns_bytes_per_change": _columns(
            segment.encode(whole, tags, HEADER, intervals=np.zeros(len(whole), np.int32))
        ),
    }


def _measure(batch: Batch, tags: TagTable) -> dict[str, float]:
    places = np.zeros(len(batch), np.int32)
    encode_s, data = _best(lambda: segment.encode(batch, tags, HEADER, intervals=places))
    decode_s, (rows, _) = _best(lambda: segment.decode(data, tags))
    assert equal(rows, take(batch, canonical_order(batch, tags.rank)))
    n = len(batch)
    return {
        "rows": n,
        "bytes_per_change": round(len(data) / n, 2),
        "us_per_change": round(encode_s / n * 1e6, 3),
        "rate_per_s": round(n / encode_s),
        "decode_rate_per_s": round(n / decode_s),
    }


def _bytes(shared_share: float, tags: TagTable) -> float:
    """Return the bytes for one change of the largest segment."""
    whole = concat(list(mix.mix(TAGS, max(SIZES) // TAGS, shared_share=shared_share)))
    return round(len(segment.encode(whole, tags, HEADER)) / len(whole), 2)


def _best(work: Callable[[], Any]) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(REPEATS):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def _columns(data: bytes) -> dict[str, float]:
    """Return where the bytes are, of our own file: compressed bytes per change by column, and the footer's."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    sizes = dict.fromkeys(segment.SCHEMA.names, 0)
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            sizes[column.path_in_schema] += column.total_compressed_size
    sizes["footer"] = segment.footer_size(data)
    return {name: round(size / metadata.num_rows, 3) for name, size in sizes.items()}
