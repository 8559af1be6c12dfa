"""What of a journal may go, and where its place goes: deleting chunks, and giving their pages back.

Only what the verified log promises is ever deleted, and never a chunk that the state rows still need. By age, it
goes when it was kept for long enough; by size, it goes before that, the oldest first, until what is left fits. What
is not promised stays, however large it becomes.

Pages of deleted chunks are used again first. Those above a size are given back to the disk, a few at a time: the
last pages of the file move into free ones, and the checkpoint after that cuts the file.

What this module does not do: begin or end a transaction (`gateway.io.journal`), or decide what is too old or too large
(`gateway.io.upkeep`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mirror.coverage import IntervalSet, Pushed

ROW_BYTES = 150  # of a chunk besides its body, in its table and indexes, on average


class Run(Protocol):
    """Runs one statement in the open transaction."""

    def __call__(self, sql: str, values: tuple[Any, ...] = ()) -> Any: ...


class Trimming:
    """Deletes chunks of one journal; every method inside a transaction.

    Args:
        run, run_many: Run statements.
        clock: Wall clock, Unix seconds.

    Attributes:
        after: Where `by_age` goes on; 0 if it has come to the end.
    """

    def __init__(
        self, run: Run, run_many: Callable[[str, Sequence[Sequence[Any]]], None], clock: Callable[[], float]
    ) -> None:
        self.after = 0
        self._run, self._run_many, self._clock = run, run_many, clock

    def by_age(self, promise: Pushed, mark: int, *, keep_s: float, limit: int) -> int:
        """Delete chunks that are promised AND were received more than `keep_s` ago; return how many.

        Looks at `limit` chunks at most and goes on from there the next time. A chunk after `mark` is kept: the
        state rows need it.
        """
        now = self._clock()
        rows: Any = self._run(
            "SELECT seq, stream, timeline, origin, pub_from, pub_to, received_s FROM chunk JOIN lane ON lane.id = lane"
            " WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
            (self.after, mark, limit),
        ).fetchall()
        pushed: dict[tuple[str, str, str], IntervalSet] = {}
        trimmed: list[tuple[int]] = []
        after = rows[-1][0] if len(rows) == limit else 0
        for seq, stream, timeline, origin, pub_from, pub_to, received_s in rows:
            if now - keep_s < received_s <= now:
                after = 0
                break
            key = (stream, timeline, origin)
            if key not in pushed:
                pushed[key] = promise[key]
            if received_s <= now - keep_s and _covered(pushed[key], pub_from, pub_to):
                trimmed.append((seq,))
        self._delete(trimmed)
        self.after = after
        return len(trimmed)

    def by_size(self, promise: Pushed, mark: int, *, size_bytes: int, limit: int) -> int:
        """Delete promised chunks, the oldest first, until the pages in use fit; return how many.

        Deletes `limit` chunks at most; none means that it fits or that nothing more may go. It looks at promised
        chunks alone, so that it costs little where nearly nothing is. A chunk after `mark` is kept.
        """
        over = self.used_bytes - size_bytes
        if over <= 0:
            return 0
        found: list[tuple[int, int]] = []
        for lane, *key in self._run("SELECT id, stream, timeline, origin FROM lane").fetchall():
            pushed, room = promise[key[0], key[1], key[2]], limit
            for start, end in pushed:
                rows = self._run(
                    "SELECT seq, size, pub_from, pub_to FROM chunk INDEXED BY chunk_published"
                    " WHERE lane = ? AND pub_to > ? AND pub_to <= ? AND seq <= ? ORDER BY pub_to, seq LIMIT ?",
                    (lane, start, end, mark, room),
                ).fetchall()
                whole = [(seq, size) for seq, size, pub_from, pub_to in rows if _covered(pushed, pub_from, pub_to)]
                found += whole
                room -= len(whole)
                if room <= 0:
                    break
        trimmed: list[tuple[int]] = []
        for seq, size in sorted(found)[:limit]:
            if over <= 0:
                break
            trimmed.append((seq,))
            over -= size + ROW_BYTES
        self._delete(trimmed)
        return len(trimmed)

    def give_back(self, size_bytes: int, limit: int) -> int:
        """Cut free pages off the end of the file until it has `size_bytes`; return how many.

        Moves `limit` pages at most; none means that it is small enough or that no page is free. The file itself
        becomes shorter with the next checkpoint that has everything.
        """
        pages, free, page_bytes = self._pages()
        goal = min(pages - size_bytes // page_bytes, free, limit)
        if goal <= 0:
            return 0
        self._run(f"PRAGMA incremental_vacuum({goal})").fetchall()  # a page with each step
        return pages - self._pages()[0]

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages that are in use."""
        pages, free, page_bytes = self._pages()
        return (pages - free) * page_bytes

    def _pages(self) -> tuple[int, int, int]:
        """Return the number of pages, how many of them are free, and the size of each."""
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(self._run(f"PRAGMA {name}").get) for name in names)
        return pages, free, size

    def _delete(self, seqs: Sequence[tuple[int]]) -> None:
        self._run_many("DELETE FROM chunk WHERE seq = ?", seqs)


def _covered(pushed: IntervalSet, pub_from: int, pub_to: int) -> bool:
    # Where nothing has a publish time the interval is empty; that is no promise.
    return pushed.covers(min(pub_from, pub_to - 1), pub_to)
