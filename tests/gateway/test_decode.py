"""The decoder against the layouts, quirks and traps of real servers."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from gateway.decode import Decoded, decode, handle_mask, read_publish, read_republish
from gateway.walk import RUN_MIN
from mirror.batch import NO_VALUE, SERVER_NULL, SOURCE_NULL, Kind
from mirror.errors import Corrupt
from tests.gateway.publish_bytes import (
    HEAP_BODIES,
    SCALARS,
    T0,
    data_change,
    double,
    header,
    item,
    notification,
    publish,
    republish,
    string,
)  # fmt: skip

LIMIT = 1_000_000


def decoded(*items: bytes, limit: int = LIMIT) -> Decoded:
    return decode(read_publish(publish([data_change(items)])), handle_limit=limit)


def values(got: Decoded) -> list[bytes]:
    return [got.batch.value_bytes(row) for row in range(len(got.batch))]


# ---- the envelope ---------------------------------------------------------------------------------------


def test_every_field_of_a_publish_response_is_read() -> None:
    body = publish(
        [data_change([item(1, double(1))])],
        subscription=0xFFFFFFFF, available=[3, 4, 5], more=True, sequence=5, publish_ticks=T0 + 1, acks=[0, 0x807A0000],
    )  # fmt: skip
    message = read_publish(body)
    assert (message.subscription, message.available, message.more) == (0xFFFFFFFF, (3, 4, 5), True)
    assert (message.sequence, message.publish_ticks, message.response_ticks) == (5, T0 + 1, T0 + 99)
    assert (message.service_result, message.ack_results) == (0, (0, 0x807A0000))
    assert [n[0] for n in message.notifications] == [811]
    assert not message.keepalive
    assert message.status_change is None


def test_header_with_diagnostics_strings_and_additional_header_is_stepped_over() -> None:
    end = b"\x10" + struct.pack("<i", 2) + b"ab"  # DiagnosticInfo with additional info
    end += struct.pack("<ii", 2, 3) + b"abc" + struct.pack("<i", -1)  # StringTable
    end += b"\x01\x00\x34\x12\x01" + struct.pack("<i", 4) + b"wxyz"  # AdditionalHeader with a body
    message = read_publish(publish([data_change([item(1, double(2.5))])], head=header(829, end=end)))
    assert message.sequence == 1
    assert values(decode(message, handle_limit=9)) == [struct.pack("<d", 2.5)]


@pytest.mark.parametrize("notifications", [None, []], ids=["null", "empty"])
def test_keepalive_is_seen_whether_its_list_is_null_or_empty(notifications: list[bytes] | None) -> None:
    message = read_publish(publish(notifications, sequence=9))
    assert message.keepalive
    assert message.sequence == 9
    assert len(decode(message, handle_limit=9).batch) == 0


def test_first_response_may_be_a_keepalive_with_number_one_and_nothing_available() -> None:
    message = read_publish(publish(None, sequence=1, available=None))
    assert message.keepalive
    assert (message.sequence, message.available) == (1, None), "null tells nothing"
    assert read_publish(publish(None, sequence=1, available=())).available == (), "empty tells that there is none"


@pytest.mark.parametrize("sequence", [1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_sequence_numbers_are_unsigned(sequence: int) -> None:
    message = read_publish(publish(None, sequence=sequence, available=[sequence]))
    assert (message.sequence, message.available) == (sequence, (sequence,))


def test_null_publish_time_leaves_the_time_of_the_header() -> None:
    message = read_publish(publish([data_change([item(1, double(1))])], publish_ticks=0))
    assert (message.publish_ticks, message.response_ticks) == (0, T0 + 99)


def test_status_change_is_told_and_is_no_keepalive() -> None:
    transferred = notification(820, struct.pack("<IB", 0x002D0000, 0))
    message = read_publish(publish([transferred]))
    assert message.status_change == 0x002D0000
    assert not message.keepalive
    assert len(decode(message, handle_limit=9).batch) == 0


def test_event_notifications_are_listed_and_left_alone() -> None:
    message = read_publish(publish([notification(916, b"\x01\x02\x03"), data_change([item(3, double(1))])]))
    assert [n[0] for n in message.notifications] == [916, 811]
    assert decode(message, handle_limit=9).batch.handle.tolist() == [3]


def test_several_data_changes_in_one_message_keep_their_order() -> None:
    parts = [data_change([item(h, double(h)) for h in range(a, a + 30)]) for a in (0, 100, 50)]
    got = decode(read_publish(publish(parts)), handle_limit=LIMIT)
    assert got.batch.handle.tolist() == [*range(30), *range(100, 130), *range(50, 80)]


def test_notification_of_a_foreign_namespace_is_not_taken_for_a_data_change() -> None:
    body = b"\x01\x02" + data_change([item(1, double(1))])[2:]
    message = read_publish(publish([body]))
    assert message.notifications[0][0] == -1
    assert len(decode(message, handle_limit=9).batch) == 0


def test_long_form_of_the_type_id_is_understood() -> None:
    body = struct.pack("<BHI", 2, 0, 811) + data_change([item(1, double(1))])[4:]
    assert decode(read_publish(publish([body])), handle_limit=9).batch.handle.tolist() == [1]


def test_service_fault_carries_its_result_and_is_no_keepalive() -> None:
    for read in (read_publish, read_republish):
        message = read(header(397, result=0x80790000))
        assert message.service_result == 0x80790000
        assert not message.keepalive


def test_bad_service_result_in_an_ordinary_response_is_no_keepalive() -> None:
    message = read_publish(publish(None, head=header(829, result=0x80010000)))
    assert message.service_result == 0x80010000
    assert not message.keepalive


def test_republish_response_is_decoded_like_a_publish_response() -> None:
    message = read_republish(republish([data_change([item(4, double(4.5))])], sequence=77))
    assert (message.sequence, message.subscription, message.available) == (77, 0, ())
    assert values(decode(message, handle_limit=9)) == [struct.pack("<d", 4.5)]


def test_republish_of_an_unknown_number_by_asyncua_is_an_empty_message_with_number_zero() -> None:
    message = read_republish(republish([], sequence=0))
    assert message.sequence == 0
    assert message.keepalive


def test_response_of_another_service_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="829"):
        read_publish(republish(None))
    with pytest.raises(Corrupt, match="835"):
        read_republish(publish(None))


# ---- the shapes of three servers, and the order of the tail ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"),
    [("open62541", {}), ("asyncua", {"status": 0}), ("node-opcua", {"source_ps": 0, "server_ps": 0})],
)
@pytest.mark.parametrize("n", [1, 2, 100])
def test_shape_of_each_server_is_read(name: str, fields: dict[str, int], n: int) -> None:
    got = decoded(*(item(h, double(h / 3), source=T0 + h, server=T0 - h, **fields) for h in range(n)))
    assert len(item(1, double(1), **fields)) == {"open62541": 30, "asyncua": 34, "node-opcua": 34}[name]
    assert got.batch.handle.tolist() == list(range(n))
    assert got.batch.source_ticks.tolist() == [T0 + h for h in range(n)]
    assert got.batch.server_ticks.tolist() == [T0 - h for h in range(n)]
    assert values(got) == [struct.pack("<d", h / 3) for h in range(n)]
    assert not got.batch.flags.any() and not got.batch.status.any() and got.slow == 0


def test_equal_size_is_not_taken_for_equal_shape() -> None:
    status_written = [item(h, double(h), status=0x40000000 + h) for h in range(40)]
    picoseconds_written = [item(h, double(h), source_ps=h, server_ps=2 * h) for h in range(40)]
    got = decoded(*status_written, *picoseconds_written)
    assert got.batch.status.tolist() == [0x40000000 + h for h in range(40)] + [0] * 40
    assert got.batch.source_ps.tolist() == [0] * 40 + list(range(40))
    assert got.batch.server_ps.tolist() == [0] * 40 + list(range(0, 80, 2))
    assert got.batch.server_ticks.tolist() == [T0 + 7] * 80


@pytest.mark.parametrize("mask", range(64))
@pytest.mark.parametrize("alternate", [False, True], ids=["run", "scan"])
def test_every_mask_is_read_in_the_order_of_the_wire(mask: int, alternate: bool) -> None:
    def one(h: int) -> bytes:
        return item(
            h, double(h) if mask & 1 else None, status=0x80000000 + h if mask & 2 else None,
            source=T0 + h if mask & 4 else None, server=T0 + 2 * h if mask & 8 else None,
            source_ps=3 * h if mask & 16 else None, server_ps=4 * h if mask & 32 else None,
        )  # fmt: skip

    rows = np.arange(30)
    items = [one(h) for h in rows.tolist()]
    if alternate:
        items = [x for pair in zip(items, [item(999, string("between"))] * 30, strict=True) for x in pair]
    batch = decoded(*items).batch
    keep = np.flatnonzero(batch.handle != 999)
    assert batch.handle[keep].tolist() == rows.tolist()
    assert (batch.status[keep] == (0x80000000 + rows if mask & 2 else 0)).all()
    assert (batch.source_ticks[keep] == (T0 + rows if mask & 4 else 0)).all()
    assert (batch.server_ticks[keep] == (T0 + 2 * rows if mask & 8 else 0)).all()
    assert (batch.source_ps[keep] == (3 * rows if mask & 16 else 0)).all()
    assert (batch.server_ps[keep] == (4 * rows if mask & 32 else 0)).all()
    expected = (0 if mask & 1 else NO_VALUE) | (0 if mask & 4 else SOURCE_NULL) | (0 if mask & 8 else SERVER_NULL)
    assert (batch.flags[keep] == expected).all()
    assert (batch.kind[keep] == (Kind.DOUBLE if mask & 1 else Kind.NULL)).all()
    assert (batch.bits[keep].view(np.float64) == (rows if mask & 1 else 0)).all()


@pytest.mark.parametrize("reserved", [0x40, 0x80, 0xC0])
@pytest.mark.parametrize("n", [1, 40])
def test_reserved_bits_of_the_mask_are_refused(reserved: int, n: int) -> None:
    with pytest.raises(Corrupt, match="reserved"):
        decoded(*(item(h, double(1), reserved=reserved) for h in range(n)))


def test_times_beyond_what_a_datetime_can_hold_are_kept_to_the_tick() -> None:
    odd = [1, 9, -1, 2**63 - 1, -(2**63), 2650467743999999999]
    got = decoded(*(item(h, double(0), source=t, server=t) for h, t in enumerate(odd)))
    assert got.batch.source_ticks.tolist() == odd
    assert got.batch.server_ticks.tolist() == odd
    assert not got.batch.flags.any()


def test_time_zero_is_the_null_time() -> None:
    batch = decoded(item(0, double(0), source=0, server=T0), item(1, string("x"), source=T0, server=0)).batch
    assert batch.flags.tolist() == [SOURCE_NULL, SERVER_NULL]


# ---- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("n", [1, 3, 50])
@pytest.mark.parametrize("alternate", [False, True], ids=["run", "scan"])
def test_scalar_is_kept_as_its_bit_pattern(name: str, n: int, alternate: bool) -> None:
    kind, body, bits = SCALARS[name]
    items = [item(1, bytes((kind,)) + body)] * n
    if alternate:
        items = [x for one in items for x in (one, item(2, string("s")))]
    batch = decoded(*items).batch
    keep = np.flatnonzero(batch.handle == 1)
    assert batch.bits[keep].tolist() == [bits] * n
    assert batch.kind[keep].tolist() == [kind] * n
    assert batch.server_ticks.tolist() == [T0 + 7] * len(items)


@pytest.mark.parametrize("name", HEAP_BODIES)
@pytest.mark.parametrize("status", [None, 0x40000000])
def test_value_of_variable_size_is_kept_as_the_bytes_of_the_wire(name: str, status: int | None) -> None:
    kind, body = HEAP_BODIES[name]
    items = [item(h, bytes((kind,)) + body, status=status, source=T0 + h) for h in range(30)]
    items.insert(7, item(7, double(7.5)))
    got = decoded(*items)
    expected = [body] * 30
    expected.insert(7, struct.pack("<d", 7.5))
    assert values(got) == expected
    assert got.batch.source_ticks.tolist()[8:] == [T0 + h for h in range(7, 30)]
    assert (got.batch.status == (status or 0))[8:].all()


def test_long_values_are_cut_out_whole() -> None:
    texts = ["x" * 5000, "", "y" * 70000, "z"]
    got = decoded(*(item(h, string(t)) for h, t in enumerate(texts)))
    assert [v[4:].decode() for v in values(got)] == texts


def test_only_values_without_a_length_of_their_own_are_stepped_over_one_by_one() -> None:
    names = ("string", "null string", "bytes", "xml", "guid", "doubles", "null doubles", "booleans")
    quick = [item(1, bytes((HEAP_BODIES[name][0],)) + HEAP_BODIES[name][1]) for name in names]
    assert decoded(*quick * 20).slow == 0
    assert decoded(*quick, item(1, b"\x11\x00\x55"), *quick, item(1, b"\x15\x00")).slow == 2


def test_null_variant_and_no_value_are_told_apart_and_both_are_quick() -> None:
    burst = [item(h, b"\x00", status=0x80310000) for h in range(50)]
    silent = [item(h, None, status=0x80310000) for h in range(50)]
    mixed = [x for pair in zip(burst, silent, strict=True) for x in pair]
    for items, flags in ((burst, [0] * 50), (silent, [NO_VALUE] * 50), (mixed, [0, NO_VALUE] * 50)):
        got = decoded(*items)
        assert got.slow == 0
        assert got.batch.flags.tolist() == flags
        assert got.batch.kind.tolist() == [Kind.NULL] * len(items)
        assert got.batch.status.tolist() == [0x80310000] * len(items)
        assert values(got) == [b""] * len(items)


def test_byte_after_a_mask_without_value_is_not_taken_for_a_type() -> None:
    # The first byte of the status or time varies: a decoder that compares it as a type splits or misreads.
    statuses = [item(h, None, status=0x80000000 + h) for h in range(256)]
    times = [item(h, None, source=T0 + h, server=None) for h in range(256)]
    got = decoded(*statuses, *times, item(5, double(1)))
    assert got.batch.status.tolist() == [0x80000000 + h for h in range(256)] + [0] * 257
    assert got.batch.source_ticks[256:512].tolist() == [T0 + h for h in range(256)]
    assert got.slow == 0


# ---- runs -----------------------------------------------------------------------------------------------

BREAKERS: dict[str, Callable[[int], bytes]] = {
    "status": lambda h: item(h, double(h), status=0x40000000),
    "type": lambda h: item(h, struct.pack("<Bq", 8, h)),
    "mask of equal size": lambda h: item(h, double(h), source=None, status=9, source_ps=1, server_ps=2),
    "no value": lambda h: item(h, None),
    "array": lambda h: item(h, struct.pack("<Bi2d", 0x8B, 2, h, h)),
    "structure": lambda h: item(h, b"\x16\x01\x02\x34\x12\x00"),
    "string": lambda h: item(h, string(str(h))),
}


@pytest.mark.parametrize("breaker", BREAKERS)
@pytest.mark.parametrize("at", [0, 1, 22, 23, 24, 25, 63, 64, 65, 279, 280, 281, 399])
def test_run_broken_anywhere_is_decoded_like_its_items_alone(breaker: str, at: int) -> None:
    assert RUN_MIN == 24  # the places above are chosen around it and around the first two windows
    items = [item(h, double(h), source=T0 + h, server=T0 - h) for h in range(400)]
    items[at] = BREAKERS[breaker](at)
    alone = [decoded(i) for i in items]
    got = decoded(*items)
    for name in ("handle", "source_ticks", "server_ticks", "source_ps", "server_ps", "status", "flags", "kind"):
        assert getattr(got.batch, name).tolist() == [int(getattr(a.batch, name)[0]) for a in alone], name
    assert values(got) == [v for a in alone for v in values(a)]


@pytest.mark.parametrize("n", [1, 2, 23, 24, 25, 64, 65, 1000])
def test_message_of_one_shape_is_one_run_whatever_its_length(n: int) -> None:
    got = decoded(*(item(h, double(h), server=T0 + h) for h in range(n)))
    assert got.batch.handle.tolist() == list(range(n))
    assert got.batch.server_ticks.tolist() == [T0 + h for h in range(n)]
    assert got.batch.bits.view(np.float64).tolist() == list(range(n))


def test_status_at_the_last_item_of_a_run_does_not_shift_the_times() -> None:
    items = [item(h, double(h), server=T0 + h) for h in range(99)]
    got = decoded(*items, item(99, double(99), status=0x80AB0000, server=T0 + 99))
    assert got.batch.server_ticks.tolist() == [T0 + h for h in range(100)]
    assert got.batch.status.tolist() == [0] * 99 + [0x80AB0000]


def test_shape_that_shows_again_at_the_stride_of_a_broken_run_is_not_read_there() -> None:
    # After the breaker the bytes at the old stride look like items of the run: they must not be read so.
    forged = item(1, double(1))
    breaker = item(2, string("") + b"", source=None, server=None)
    breaker = item(2, struct.pack("<Bi", 15, len(forged) * 60 - len(breaker)) + (forged * 60)[len(breaker):],
                   source=None, server=None)  # fmt: skip
    got = decoded(*[forged] * 30, breaker, *[forged] * 30)
    assert got.batch.handle.tolist() == [1] * 30 + [2] + [1] * 30


def test_array_at_every_tenth_item_does_not_stop_the_scan() -> None:
    items = [item(h, struct.pack("<Bi8d", 0x8B, 8, *range(8)) if h % 10 == 0 else double(h)) for h in range(1000)]
    got = decoded(*items)
    assert got.batch.handle.tolist() == list(range(1000))
    assert got.slow == 0


def test_two_values_of_one_handle_with_different_shapes_keep_their_order() -> None:
    pairs = [x for h in range(100) for x in (item(h, double(1)), item(h, double(2), status=0x40000000))]
    for items in (pairs, pairs[1:], list(reversed(pairs)), [*pairs, item(5, string("a")), item(5, b"\x00")]):
        got = decoded(*items)
        assert values(got) == [v for i in items for v in values(decoded(i))]
        assert got.batch.handle.tolist() == [int.from_bytes(i[:4], "little") for i in items]


@pytest.mark.parametrize("last", [item(8, None, source=None, server=None), item(8, b"\x00", source=None, server=None)])
@pytest.mark.parametrize("before", [0, 1, 50])
def test_shortest_items_at_the_very_end_are_not_read_past(last: bytes, before: int) -> None:
    items = [item(h, double(h)) for h in range(before)] + [last]
    for message in (read_publish(publish([data_change(items)])), read_republish(republish([data_change(items)]))):
        got = decode(message, handle_limit=LIMIT)
        assert got.batch.handle.tolist() == [*range(before), 8]
        assert int(got.batch.flags[-1]) & (SOURCE_NULL | SERVER_NULL) == SOURCE_NULL | SERVER_NULL


def test_message_of_nothing_but_five_byte_items_is_read() -> None:
    got = decoded(*(item(h, None, source=None, server=None) for h in range(100)))
    assert got.batch.handle.tolist() == list(range(100))
    assert set(got.batch.flags.tolist()) == {NO_VALUE | SOURCE_NULL | SERVER_NULL}


@pytest.mark.parametrize("count", [0, -1])
def test_data_change_without_items_is_an_empty_batch(count: int) -> None:
    assert len(decode(read_publish(publish([data_change([], count=count)])), handle_limit=9).batch) == 0


def test_diagnostics_after_the_items_are_stepped_over() -> None:
    diagnostics = struct.pack("<i", 2) + b"\x00" + b"\x10" + struct.pack("<i", 1) + b"d"
    message = read_publish(publish([data_change([item(1, double(1))], diagnostics=diagnostics)], acks=[0]))
    assert decode(message, handle_limit=9).batch.handle.tolist() == [1]
    assert message.ack_results == (0,)


def test_batch_shares_no_memory_with_the_message() -> None:
    body = publish([data_change([item(h, double(h)) for h in range(50)] + [item(1, string("s"))])])
    batch = decode(read_publish(body), handle_limit=LIMIT).batch
    for name in ("handle", "source_ticks", "server_ticks", "status", "bits"):
        column = getattr(batch, name)
        while column.base is not None:
            column = column.base
        assert isinstance(column, np.ndarray) and column.nbytes <= 51 * 8, name


# ---- overflow and foreign handles -----------------------------------------------------------------------


def test_overflow_is_told_by_handle_and_only_when_both_bits_are_set() -> None:
    statuses = {3: 0x0480, 1: 0x40000480, 2: 0x0080, 4: 0x0400, 5: 0x80000C80 | 0x0480, 6: 0}
    items = [item(h, double(0), status=s) for h, s in statuses.items()] * 2
    assert decoded(*items).overflow.tolist() == [1, 3, 5]
    assert decoded(item(6, double(0))).overflow.tolist() == []


@pytest.mark.parametrize("foreign", [9, 10, 0xFFFFFFFF])
def test_item_with_a_handle_that_is_not_ours_is_left_out_and_counted(foreign: int) -> None:
    items = [item(1, string("a")), item(foreign, string("b"), status=0x0480), item(8, string("c"))]
    got = decoded(*items, limit=9)
    assert got.batch.handle.tolist() == [1, 8]
    assert [v[4:] for v in values(got)] == [b"a", b"c"]
    assert got.refused == 1
    assert got.overflow.tolist() == []


def test_only_handles_that_the_server_was_asked_for_are_taken() -> None:
    """Another server's tags are in the same journal."""
    items = [item(h, string("x"), status=0x0480) for h in (0, 3, 4, 7, 8, 9, 0xFFFFFFFF)]
    message = read_publish(publish([data_change(items)]))
    got = decode(message, handle_limit=9, monitored=handle_mask([3, 7]))
    assert got.batch.handle.tolist() == [3, 7] and got.overflow.tolist() == [3, 7]
    assert got.refused == 5
    assert len(decode(message, handle_limit=9, monitored=handle_mask([])).batch) == 0


def test_every_handle_is_ours_when_the_limit_is_beyond_32_bits() -> None:
    assert decoded(item(0xFFFFFFFF, double(0)), limit=2**32).refused == 0


# ---- shapes that are followed by their own lengths -------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 100])
def test_nesting_is_followed_as_far_as_a_decoder_has_to(levels: int) -> None:
    unit = {25: b"\x40" * levels, 24: b"\x18" * (levels - 1), 23: b"\x01\x17" * (levels // 2)}
    deep = {kind: units + b"\x00" for kind, units in unit.items()}
    items = [item(kind, bytes((kind,)) + body) for kind, body in deep.items()]
    got = decoded(*items, item(1, string("after")))
    assert values(got) == [*deep.values(), struct.pack("<i", 5) + b"after"]


def test_nesting_beyond_that_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="nested"):
        decoded(item(1, b"\x19" + b"\x40" * 101 + b"\x00"))


@pytest.mark.parametrize("kind", range(26, 32))
def test_built_in_types_of_the_future_are_kept_as_the_byte_strings_that_they_are_by_definition(kind: int) -> None:
    one, two = struct.pack("<i", 3) + b"abc", struct.pack("<ii", 2, 1) + b"a" + struct.pack("<i", -1)
    got = decoded(item(1, bytes((kind,)) + one), item(2, bytes((kind | 0x80,)) + two), item(3, double(1)))
    assert got.batch.kind.tolist() == [kind, kind | 0x80, 11]
    assert values(got)[:2] == [one, two]
