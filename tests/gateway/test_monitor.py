"""Monitored items as bytes are what asyncua makes of its objects, and answers are read as it reads them."""

from __future__ import annotations

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary

from gateway import monitor
from gateway.server import MonitoredItem, Refused, Revised
from mirror.errors import Corrupt
from mirror.tags import Tag

TAG = Tag("urn:server", "urn:names", "s=x")
NODES = [
    "ns=2;s=Press.Pressure",
    "i=2258",
    "ns=7;i=70000",
    "ns=1;g=72962b91-fa75-4ae6-8d28-b404dc7daf63",
    "ns=3;b=AP8=",
]


def answer(*codes: int, with_filter: bool = False) -> bytes:
    response = ua.CreateMonitoredItemsResponse()
    response.Results = [
        ua.MonitoredItemCreateResult(
            StatusCode=ua.StatusCode(code),
            MonitoredItemId=i + 1,
            RevisedSamplingInterval=i / 2,
            RevisedQueueSize=10 * i,
        )
        for i, code in enumerate(codes)
    ]
    if with_filter:
        response.Results[0].FilterResult = ua.EventFilterResult()
    return struct_to_binary(response)


def test_asyncua_reads_in_the_items_what_was_meant() -> None:
    wanted = [(MonitoredItem(i, TAG, 12.5 * i, i + 1), node) for i, node in enumerate(NODES)]
    data = Buffer(monitor.items(wanted))
    count = int.from_bytes(data.read(4), "little")
    read = [struct_from_binary(ua.MonitoredItemCreateRequest, data) for _ in range(count)]
    assert not data
    assert read == [
        ua.MonitoredItemCreateRequest(
            ItemToMonitor=ua.ReadValueId(NodeId=ua.NodeId.from_string(node), AttributeId=ua.AttributeIds.Value),
            MonitoringMode=ua.MonitoringMode.Reporting,
            RequestedParameters=ua.MonitoringParameters(
                ClientHandle=item.handle, SamplingInterval=item.sampling_ms, QueueSize=item.queue_size,
                DiscardOldest=True,
            ),
        )
        for item, node in wanted
    ]  # fmt: skip


@pytest.mark.parametrize("with_filter", [False, True])
def test_results_say_of_each_item_what_became_of_it(with_filter: bool) -> None:
    codes, revised, _ = monitor.results(answer(0, 0x80340000, 0, with_filter=with_filter))
    assert codes == [0, 0x80340000, 0]
    assert revised == [Revised(1, 0.0, 0), Revised(2, 0.5, 10), Revised(3, 1.0, 20)]


@pytest.mark.parametrize("with_filter", [False, True])
def test_an_answer_that_ends_early_is_corrupt(with_filter: bool) -> None:
    whole = answer(0, 0, with_filter=with_filter)
    for size in range(len(whole) - 4):  # the diagnostics after the results tell nothing that is used
        with pytest.raises(Corrupt):
            monitor.results(whole[:size])


def test_more_results_than_bytes_are_corrupt_before_they_are_believed() -> None:
    whole = bytearray(answer(0))
    whole[28:32] = (2**31 - 1).to_bytes(4, "little")
    with pytest.raises(Corrupt):
        monitor.results(bytes(whole))


def test_a_refusal_of_the_whole_service_is_told_by_its_code() -> None:
    response = ua.CreateMonitoredItemsResponse()
    response.ResponseHeader.ServiceResult = ua.StatusCode(ua.StatusCodes.BadTooManyOperations)
    with pytest.raises(Refused) as refused:
        monitor.results(struct_to_binary(response))
    assert refused.value.code == ua.StatusCodes.BadTooManyOperations
