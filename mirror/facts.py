"""Facts about tags and structures, packed to travel in a segment's footer.

A reader of the log alone shall know what each tag means, and shall be able to read structures that no
standard defines. The text is canonical and the packing deterministic, so that equal facts are mostly
equal bytes; who compares facts across versions of zstd compares them unpacked.

What it does not do: say when facts have changed (`gateway.sync`), or sign them: a header carries the
SHA-256 of the packed bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import zstandard

from mirror.errors import Corrupt
from mirror.tags import Tag
from mirror.variant import Structure

Definitions = dict[str, dict[str, Structure]]

FACTS_BYTES_MAX = 256 * 1024**2  # unpacked


class _Facts(msgspec.Struct):
    tags: list[Tag]
    structures: Definitions


def encode_facts(tags: Sequence[Tag], structures: Mapping[str, Mapping[str, Structure]]) -> bytes:
    """Return facts about tags and the definitions of structures, as zstd of canonical JSON.

    Args:
        tags: In any order.
        structures: Definitions by ApplicationUri, then by encoding: two servers may mean different things
            by the same NodeId.
    """
    facts = _Facts(sorted(tags, key=lambda tag: tag.identity), {s: dict(of) for s, of in structures.items()})
    return zstandard.ZstdCompressor(level=9).compress(msgspec.json.encode(facts, order="sorted"))


def decode_facts(data: bytes) -> tuple[list[Tag], Definitions]:
    """Return the tags, sorted by identity, and the structures by ApplicationUri.

    Raises:
        Corrupt: Not facts, or more than FACTS_BYTES_MAX of them.
    """
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size > FACTS_BYTES_MAX:
            raise Corrupt(f"facts claim {size} bytes; {FACTS_BYTES_MAX} is the most")
        facts = msgspec.json.decode(zstandard.ZstdDecompressor().decompress(data), type=_Facts)
    except (zstandard.ZstdError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Corrupt(f"facts of {len(data)} bytes cannot be read: {str(error)[:200]}") from error
    return facts.tags, facts.structures
