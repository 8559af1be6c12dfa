"""Browse and HistoryRead page by page, against servers that run short, promise too much, or fail in part."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gateway.browse import Reference, read_browse
from gateway.io import history
from gateway.io.browse import BAD_NO_CONTINUATION_POINTS, EMPTY_PAGES_MAX, references
from gateway.server import Limits, ServerFacts
from mirror.errors import Corrupt, Unavailable
from mirror.wire import encode
from tests.gateway.publish_bytes import T0, double, header, item

NODEID, EXPANDED = 17, 18
NAMESPACES = ("http://opcfoundation.org/UA/", "urn:server", "urn:press")
FACTS = ServerFacts("urn:server", NAMESPACES, 0, "", Limits())


def reference(node: str, *, variable: bool = True, kind: str = "i=47") -> bytes:
    """Return a ReferenceDescription."""
    name = node.rpartition("=")[2].encode()
    text = struct.pack("<i", len(name)) + name
    return b"".join((
        encode(NODEID, kind), b"\x01", encode(EXPANDED, node), struct.pack("<H", 2), text, b"\x00",
        struct.pack("<i", 2 if variable else 1), encode(EXPANDED, "i=63"),
    ))  # fmt: skip


def browse_result(nodes: Sequence[str], *, point: bytes = b"", status: int = 0) -> bytes:
    refs = [reference(n) for n in nodes]
    point_bytes = struct.pack("<i", len(point) or -1) + point
    return struct.pack("<I", status) + point_bytes + struct.pack("<i", len(refs)) + b"".join(refs)


def browse_response(results: Sequence[bytes], *, next_page: bool = False) -> bytes:
    return (
        header(536 if next_page else 530) + struct.pack("<i", len(results)) + b"".join(results) + struct.pack("<i", -1)
    )


def test_references_are_read_with_namespaces_by_index_or_uri_and_foreign_ones_left_out() -> None:
    refs = [
        reference("ns=2;s=a"), reference("nsu=urn:press;s=b", variable=False), reference("i=7", kind="i=46"),
        reference("nsu=urn:elsewhere;s=c"), reference("svr=3;ns=2;s=d"),
    ]  # fmt: skip
    body = browse_response([struct.pack("<Iii", 0, -1, len(refs)) + b"".join(refs)])
    ((status, point, found),) = read_browse(body, 1, NAMESPACES)
    assert (status, point) == (0, b"")
    assert found == [
        Reference("ns=2;s=a", "a", True, False), Reference("ns=2;s=b", "b", False, False),
        Reference("i=7", "7", True, True),
    ]  # fmt: skip


def test_truncated_browse_response_is_corrupt() -> None:
    body = browse_response([browse_result(["ns=2;s=a", "ns=2;s=b"], point=b"xy")])
    for size in range(len(body) - 4):
        with pytest.raises(Corrupt):
            read_browse(body[:size], 1, NAMESPACES)
    with pytest.raises(Corrupt):
        read_browse(body, 2, NAMESPACES)


class Tree:
    """A server whose nodes have many children, of which it tells `page` at a time.

    Args:
        children: By node.
        points: Continuation points that it has at the same time.
    """

    def __init__(self, children: Mapping[str, int], *, page: int, points: int) -> None:
        self.children, self.page, self.points = children, page, points
        self.calls: list[int] = []

    def _result(self, node: str, done: int, held: list[int]) -> bytes:
        names = [f"ns=2;s={node[-1]}{i}" for i in range(done, min(done + self.page, self.children[node]))]
        rest = done + len(names) < self.children[node]
        if rest and held[0] >= self.points:
            return browse_result([], status=BAD_NO_CONTINUATION_POINTS)
        held[0] += rest
        return browse_result(names, point=f"{node} {done + len(names)}".encode() if rest else b"")

    async def browse_page(self, nodes: Sequence[str], *, types: bool) -> bytes:
        assert not types
        self.calls.append(len(nodes))
        held = [0]
        return browse_response([self._result(n, 0, held) for n in nodes])

    async def browse_next(self, points: Sequence[bytes]) -> bytes:
        held, results = [0], []
        for point in points:
            node, _, done = point.decode().rpartition(" ")
            results.append(self._result(node, int(done), held))
        return browse_response(results, next_page=True)

    async def attributes(self, nodes: Sequence[str], attribute: int) -> list[Any]:
        raise NotImplementedError


CHILDREN = {f"ns=2;s=n{c}": n for c, n in zip("abcdefg", (0, 1, 4, 5, 9, 23, 2), strict=True)}


@pytest.mark.parametrize("points", [1, 2, 3, 100])
@pytest.mark.parametrize("page", [1, 4, 100])
def test_all_references_are_found_however_few_continuation_points_there_are(points: int, page: int) -> None:
    tree = Tree(CHILDREN, page=page, points=points)
    found = asyncio.run(references(tree, FACTS, [*CHILDREN, "ns=2;s=nc"]))
    assert [len(f) for f in found] == [*CHILDREN.values(), 4]
    assert [r.node for r in found[5]] == [f"ns=2;s=f{i}" for i in range(23)]


def test_server_without_any_continuation_point_is_an_error_and_no_silent_loss() -> None:
    with pytest.raises(Unavailable, match="does not tell all references"):
        asyncio.run(references(Tree(CHILDREN, page=4, points=0), FACTS, list(CHILDREN)))


def test_server_that_sends_empty_pages_for_ever_is_given_up() -> None:
    class Endless:
        pages = 0

        async def browse_page(self, nodes: Sequence[str], *, types: bool) -> bytes:
            return browse_response([browse_result([], point=b"more") for _ in nodes])

        async def browse_next(self, points: Sequence[bytes]) -> bytes:
            self.pages += 1
            return browse_response([browse_result([], point=b"more") for _ in points], next_page=True)

    space = Endless()
    with pytest.raises(Unavailable, match="empty page"):
        asyncio.run(references(space, FACTS, ["i=85"]))
    assert space.pages == EMPTY_PAGES_MAX + 1


def test_stated_limit_of_nodes_in_a_browse_is_kept() -> None:
    tree = Tree(CHILDREN, page=100, points=9)
    facts = ServerFacts("urn:server", NAMESPACES, 0, "", Limits(browse=3))
    asyncio.run(references(tree, facts, list(CHILDREN)))
    assert tree.calls == [3, 3, 1]


class Archive:
    """A historian that tells `page` rows of a node at a time, and what was released."""

    def __init__(
        self, rows: Mapping[str, int], *, page: int, bad: Sequence[str] = (), endless: Sequence[str] = ()
    ) -> None:
        self.rows, self.page, self.bad, self.endless = rows, page, bad, endless
        self.released: list[bytes] = []

    async def history_page(
        self, points: Mapping[str, bytes], start_ticks: int, end_ticks: int, *, release: bool
    ) -> bytes:
        if release:
            self.released += points.values()
            return header(667) + struct.pack("<ii", 0, -1)
        results = []
        for node, point in points.items():
            done = int(point.decode().rpartition(" ")[2] or 0)
            n = min(self.page, self.rows[node] - done)
            rest = done + n < self.rows[node] or node in self.endless
            status = 0x80720000 if node in self.bad and done else 0
            data = struct.pack("<i", n) + b"".join(item(0, double(i), source=T0 + i)[4:] for i in range(done, done + n))
            following = f"{node} {done + n}".encode() if rest else b""
            results.append(
                struct.pack("<Ii", status, len(following) or -1) + following
                + struct.pack("<BBHBi", 1, 0, 658, 1, len(data)) + data
            )  # fmt: skip
        return header(667) + struct.pack("<i", len(results)) + b"".join(results) + struct.pack("<i", -1)


def read_all(archive: Archive, nodes: Mapping[int, str], failed: dict[int, int]) -> dict[int, list[float]]:
    async def work() -> dict[int, list[float]]:
        found: dict[int, list[float]] = {h: [] for h in nodes}
        async for batch in history.pages(archive, nodes, T0, T0 + 10**6, failed):
            (handle,) = set(batch.handle.tolist())
            found[handle] += [struct.unpack("<d", batch.value_bytes(r))[0] for r in range(len(batch))]
        return found

    return asyncio.run(work())


def test_each_node_is_read_to_its_own_end() -> None:
    archive, failed = Archive({"ns=2;s=a": 10, "ns=2;s=b": 0, "ns=2;s=c": 3}, page=3), dict[int, int]()
    found = read_all(archive, {7: "ns=2;s=a", 8: "ns=2;s=b", 9: "ns=2;s=c"}, failed)
    assert found == {7: list(range(10)), 8: [], 9: [0, 1, 2]}
    assert failed == {} and archive.released == []


def test_node_that_fails_ends_alone() -> None:
    archive, failed = Archive({"ns=2;s=a": 10, "ns=2;s=b": 10}, page=4, bad=["ns=2;s=a"]), dict[int, int]()
    found = read_all(archive, {7: "ns=2;s=a", 8: "ns=2;s=b"}, failed)
    assert found[8] == list(range(10))
    assert failed == {7: 0x80720000}


def test_historian_that_promises_more_for_ever_is_given_up_and_its_point_given_back() -> None:
    archive = Archive({"ns=2;s=a": 5, "ns=2;s=b": 10}, page=4, endless=["ns=2;s=a"])
    failed: dict[int, int] = {}
    found = read_all(archive, {7: "ns=2;s=a", 8: "ns=2;s=b"}, failed)
    assert found == {7: list(range(5)), 8: list(range(10))}
    assert failed == {7: history.BAD_CONTINUATION_POINT}
    assert archive.released == [b"ns=2;s=a 5"]


def test_reader_who_stops_gives_back_the_open_points() -> None:
    archive = Archive({"ns=2;s=a": 10, "ns=2;s=b": 2}, page=4)

    async def work() -> None:
        pages = history.pages(archive, {7: "ns=2;s=a", 8: "ns=2;s=b"}, T0, T0 + 99, {})
        await anext(pages)
        await pages.aclose()

    asyncio.run(work())
    assert archive.released == [b"ns=2;s=a 4"]


def test_history_of_one_moment_that_fills_whole_pages_is_told_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PAGE_ROWS", 3)

    class Stuck(Archive):
        async def history_page(self, points: Mapping[str, bytes], *bounds: int, release: bool) -> bytes:
            data = struct.pack("<i", 3) + b"".join(item(0, double(i))[4:] for i in range(3))
            result = struct.pack("<Ii", 0, -1) + struct.pack("<BBHBi", 1, 0, 658, 1, len(data)) + data
            return header(667) + struct.pack("<i", 1) + result + struct.pack("<i", -1)

    failed: dict[int, int] = {}
    found = read_all(Stuck({}, page=3), {7: "ns=2;s=a"}, failed)
    assert found == {7: [0, 1, 2]}
    assert failed == {7: history.BAD_TOO_MANY_OPERATIONS}
