"""From a walked address space to devices, intervals and queue sizes."""

from __future__ import annotations

from gateway.capabilities import CAPABILITY_NODES, Capabilities, capabilities_of
from gateway.propose import Group, devices, groups, intervals, root_text
from gateway.tree import Tree, TreeNode

SPACES = ("http://opcfoundation.org/UA/", "urn:server", "urn:press", "http://opcfoundation.org/UA/DI/")


def tree(*nodes: tuple[str, str, int, bool]) -> Tree:
    """Make a tree of (node, name, parent, is variable) below Objects."""
    return Tree([TreeNode("i=85", "Objects", -1, False), *(TreeNode(*n) for n in nodes)])


PLANT = tree(
    ("ns=2;s=Press", "Press", 0, False), ("i=2253", "Server", 0, False), ("ns=3;i=5001", "DeviceSet", 0, False),
    ("ns=2;s=Loose", "Loose", 0, True), ("ns=2;s=Empty", "Empty", 0, False), ("ns=2;s=P.T", "T", 1, True),
    ("i=2256", "Status", 2, True), ("ns=2;s=D1", "D1", 3, False), ("ns=2;s=D2", "D2", 3, False),
    ("ns=2;s=D1.a", "a", 8, True), ("ns=2;s=D2.a", "a", 9, True), ("ns=2;s=P.T.x", "x", 6, True),
)  # fmt: skip


def test_each_object_with_variables_is_a_device_and_what_the_specification_puts_there_is_none() -> None:
    found = {g.root: g for g in groups(PLANT, SPACES)}
    assert list(found) == ["nsu=urn:press;s=Press/**", "nsu=urn:press;s=D1/**", "nsu=urn:press;s=D2/**", "i=85/*"]
    assert found["nsu=urn:press;s=Press/**"].variables == (6, 12) and found["i=85/*"].variables == (4,)


def test_a_collecting_folder_with_variables_of_its_own_is_one_device() -> None:
    mixed = tree(("ns=3;i=5001", "DeviceSet", 0, False), ("ns=2;s=D1", "D1", 1, False), ("ns=2;s=n", "n", 1, True),
                 ("ns=2;s=D1.a", "a", 2, True))  # fmt: skip
    assert [g.root for g in groups(mixed, SPACES)] == ["nsu=http://opcfoundation.org/UA/DI/;i=5001/**"]


def test_a_root_is_named_by_uri_and_by_index_only_where_the_uri_does_not_tell() -> None:
    assert root_text("ns=2;s=a", SPACES) == "nsu=urn:press;s=a" and root_text("i=85", SPACES) == "i=85"
    assert root_text("ns=1;i=4", ("", "urn:a;b")) == "nsu=urn:a%3Bb;i=4"
    assert root_text("ns=2;s=a", ("", "urn:x", "urn:x")) == "ns=2;s=a" and root_text("ns=1;s=a", ("", "")) == "ns=1;s=a"
    assert root_text("ns=7;s=a", SPACES) == "ns=7;s=a" and root_text("ns=1;s=\udc80", SPACES) == ""


def test_the_interval_is_the_variables_own_before_the_servers() -> None:
    limits = Capabilities(sample_ms_min=250)
    assert intervals([0, 0, 50], limits)[:2] == (0.0, 100.0)
    assert intervals([50, 20, 0], limits)[:2] == (20.0, 100.0)
    assert intervals([], limits)[:2] == (250.0, 250.0) and intervals([-1, -1], limits)[:2] == (250.0, 250.0)
    assert intervals([], Capabilities())[:2] == (0.0, 100.0)
    assert intervals([1e300], Capabilities())[1] == 3_600_000.0


def test_a_queue_is_no_longer_than_the_server_allows_and_says_what_that_bridges() -> None:
    (made,) = devices([Group("i=1", "P", (1,))], {}, Capabilities(queue_size_max=20))
    assert made.device.queue_size == 20 and any("1.0 s at 20 changes/s" in note for note in made.notes)
    (made,) = devices([Group("i=1", "P", (1,))], {}, Capabilities(queue_size_max=100_000))
    assert made.device.queue_size == 0


def test_no_subscription_gets_more_items_than_the_server_allows() -> None:
    three = [Group(f"i={n}", f"P{n}", tuple(range(6))) for n in range(3)]
    made = devices([*three, Group("i=9", "big", tuple(range(11)))], {}, Capabilities(items_per_subscription_max=10))
    assert [d.device.publishing_ms for d in made] == [100.0, 110.0, 120.0, 100.0]
    assert "another subscription" in made[1].notes[-1] and "split this device" in made[3].notes[-1]


def test_devices_of_one_name_are_told_apart_and_a_prefix_keeps_servers_apart() -> None:
    twice = [Group("i=1", "P", (1,)), Group("i=2", "P", (2,))]
    assert [d.device.name for d in devices(twice, {}, Capabilities(), taken=["P"])] == ["P-2", "P-3"]
    assert [d.device.name for d in devices(twice, {}, Capabilities(), prefix="m1-")] == ["m1-P", "m1-P-2"]
    assert [d.device.name for d in devices(twice[:1], {}, Capabilities(), prefix="m1-")] == ["m1"]


def test_capabilities_believe_only_what_has_the_right_type() -> None:
    values: list[object] = ["P", "M", "urn:p", "1", 50.0, 10, 0, None, True, -1, "x", 3, None]
    assert len(values) == len(CAPABILITY_NODES)
    said = capabilities_of(values)
    assert said == Capabilities("P", "M", "urn:p", "1", 50.0, sessions_max=10, sessions=3) and said.sessions_left == 7
    nothing = capabilities_of([None] * len(CAPABILITY_NODES))
    assert nothing == Capabilities() and nothing.sessions_left is None
    assert capabilities_of([1, 2, 3, 4, float("nan"), *values[5:]]).sample_ms_min == 0.0


def test_an_outline_leads_to_variables_and_to_nothing_else() -> None:
    shown = [(depth, PLANT.nodes[place].name) for depth, place in PLANT.outline()]
    assert shown[:4] == [(0, "Objects"), (1, "Press"), (2, "T"), (3, "x")]
    assert "Empty" not in [name for _, name in shown]
    assert PLANT.path(12) == "Press/T/x" and PLANT.path(0) == "Objects"
