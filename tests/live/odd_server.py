"""Counter nodes on a server that misbehaves on command, as servers in plants do.

It is asyncua's server with a hand on what its subscriptions enqueue and on what its services answer:
deliver nothing while it stays connected, leave out one item, deliver late, claim overflows that were none,
answer slowly, change a tag's type. Everything is a command on stdin, as for `asyncua_server.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from asyncua import ua
from asyncua.server.address_space import AddressSpace
from asyncua.server.internal_subscription import InternalSubscription
from asyncua.server.uaprocessor import UaProcessor

from tests.live.asyncua_server import Counters, main

OVERFLOW = 0x0480
_enqueue = InternalSubscription.enqueue_datachange_event
_process = UaProcessor._process_message


class Odd(Counters):
    """The counters, and what is wrong with them at the moment."""

    mute = False
    dropped: frozenset[str] = frozenset()
    late_s: ClassVar[dict[str, float]] = {}
    lying = False
    slow_s = 0.0

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one more command: mute, drop, late, lie, slow, heal or retype."""
        match command["do"]:
            case "mute":
                Odd.mute = True
            case "drop":
                Odd.dropped = Odd.dropped | {f"c{command['node']}"}
            case "late":
                Odd.late_s = {**Odd.late_s, f"c{command['node']}": command["seconds"]}
            case "lie":
                Odd.lying = True
            case "slow":
                Odd.slow_s = command["seconds"]
            case "heal":
                Odd.mute, Odd.dropped, Odd.late_s, Odd.lying, Odd.slow_s = False, frozenset(), {}, False, 0.0
            case "retype":
                await self.retype(command["node"], command["array"])
            case _:
                return await super().obey(command)
        return {}

    async def retype(self, place: int, array: int) -> None:
        """Give a node a value of another type, as a download of another program would."""
        node = self.nodes[place]
        assert node is not None
        now = self.later()
        value = ua.Variant([7] * array, ua.VariantType.Int32) if array else ua.Variant("seven", ua.VariantType.String)
        await self.server.write_attribute_value(
            node.nodeid, ua.DataValue(value, ua.StatusCode(0), SourceTimestamp=now, ServerTimestamp=now)
        )


async def enqueue(self: InternalSubscription, mid: int, eventdata: ua.MonitoredItemNotification, maxsize: int) -> None:
    """Stand in for `InternalSubscription.enqueue_datachange_event`."""
    item = self.monitored_item_srv._monitored_items.get(mid)
    name = "" if item is None else str(item.read_value_id.NodeId.Identifier)
    if Odd.mute or name in Odd.dropped:
        return
    if name in Odd.late_s:
        asyncio.get_running_loop().call_later(
            Odd.late_s[name], lambda: asyncio.ensure_future(_enqueue(self, mid, eventdata, maxsize))
        )
        return
    if Odd.lying:
        status = eventdata.Value.StatusCode
        code = ua.StatusCode((0 if status is None else status.value) | OVERFLOW)
        value = ua.DataValue(
            eventdata.Value.Value, code, eventdata.Value.SourceTimestamp, eventdata.Value.ServerTimestamp
        )
        eventdata = ua.MonitoredItemNotification(ClientHandle=eventdata.ClientHandle, Value=value)
    await _enqueue(self, mid, eventdata, maxsize)


async def process(self: UaProcessor, typeid: Any, requesthdr: Any, seqhdr: Any, body: Any) -> Any:
    """Stand in for `UaProcessor._process_message`."""
    if Odd.slow_s:
        await asyncio.sleep(Odd.slow_s)
    return await _process(self, typeid, requesthdr, seqhdr, body)


if __name__ == "__main__":
    InternalSubscription.enqueue_datachange_event = enqueue  # type: ignore[method-assign]
    UaProcessor._process_message = process  # type: ignore[method-assign]
    AddressSpace._is_expected_variant_type = lambda *_: True  # type: ignore[method-assign]
    main(Odd)
