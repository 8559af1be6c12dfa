"""Writes the golden files of segment and log anew: `python -m tests.mirror.golden`.

For a change of the format before its first release only: afterwards a new format needs new files beside these.
It prints the chain hashes that `test_segment_format.py` expects.
"""

from __future__ import annotations

import hashlib

import numpy as np

from mirror import segment
from mirror.batch import digest
from mirror.coverage import Axis, Closure, Coverage, Gap, Grade, Reason, Stream
from mirror.facts import encode_facts
from mirror.header import Clock, Closing, Handover, Header, chain_hash, public_hex, sign
from tests.mirror.logs import KEY, LAYOUT, OTHER, rows
from tests.mirror.logs import TAGS as LOG_TAGS
from tests.mirror.test_segment import GOLDEN, HEADER, TAGS, every_kind

STREAM = Stream("s", "urn:x", Axis.RESPONSE, 33.3, 10, overflow_detectable=False)
GAP = Gap.opened("s", "1-1", 4, Reason.OVERFLOW, end=5, tags=[LOG_TAGS[1].identity])


def headers() -> list[Header]:
    """Return the headers of the golden log, two by replica `a` and one by `b`, without what links them."""
    past = Coverage("s", "1-1", 4, 5, f"a/history/{GAP.id}", Grade.HISTORY)
    return [
        Header(
            holder="a", epoch=1, incarnation="i1", keys={"a": public_hex(KEY)}, clock=Clock(10, 500, synchronized=True),
            sources={"urn:x": ("http://opcfoundation.org/UA/", "urn:ns")},
        ),
        Header(
            holder="a", epoch=1, incarnation="i1", rows=6, keys={"b": public_hex(OTHER)}, streams=(STREAM,),
            intervals=(Coverage("s", "1-1", 10, 20, "a"),), gaps=(GAP,), classes={LOG_TAGS[0].identity: "S"},
            handovers=(Handover("r", "1-1", 10, "s", "1-1"),),
        ),
        Header(
            holder="b", epoch=2, incarnation="i2", rows=6, streams=(Stream("s", "urn:x"),),
            intervals=(
                Coverage("s", "1-1", 20, 30, "a"), past, Coverage("s", "1-1", 31, 32, "a", Grade.HELD),
            ),
            closures=(Closing(GAP.id, Closure.HISTORY, "from the historian", 5),),
        ),
    ]  # fmt: skip


def log() -> dict[str, bytes]:
    """Return the files of the golden log by name."""
    files: dict[str, bytes] = {}
    prev = file = ""
    for seq, draft in enumerate(headers()):
        batch, told = rows(100 * seq, draft.rows), encode_facts(LOG_TAGS.tags, {}) if seq == 1 else b""
        fixed = {
            "group": LAYOUT.group, "seq": seq, "arbiter": "solo", "prev": prev, "prev_file": file,
            "body_digest": digest(batch, LOG_TAGS.identities, LOG_TAGS.rank).hex(),
            "facts_sha256": hashlib.sha256(told).hexdigest() if told else "",
        }  # fmt: skip
        members = {name: getattr(draft, name) for name in draft.__struct_fields__}
        header = sign(Header(**{**members, **fixed}), KEY if draft.holder == "a" else OTHER)
        places = (np.arange(draft.rows) % max(1, len(draft.intervals))).astype(np.int32)
        data = segment.encode(batch, LOG_TAGS, header, facts=told, intervals=places)
        prev, file = chain_hash(header), hashlib.sha256(data).hexdigest()
        files[LAYOUT.segment(seq).rpartition("/")[2]] = data
        print(f'    {seq}: "{prev}",')
    return files


def main() -> None:
    facts = segment.encode_facts(TAGS.tags, {})
    (GOLDEN / "segment-1-every-kind.parquet").write_bytes(segment.encode(every_kind(), TAGS, HEADER, facts=facts))
    for name, data in log().items():
        (GOLDEN / "log-1" / name).write_bytes(data)


if __name__ == "__main__":
    main()
