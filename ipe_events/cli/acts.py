"""What an operator does from the command line goes on the record as an act, beside what programs do."""

from typing import TYPE_CHECKING

from ipe_events.clock import SYSTEM
from ipe_events.subjects import ACT

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus


async def record_act(bus: "Bus", verb: str, target: str, *, reason: str = "", **arguments: str) -> None:
    """Publish that the identity of this connection did ``verb`` to ``target``.

    Raises:
        BusError: it is not stored.
    """
    from ipe_events.bus.cloudevents import headers_for
    from ipe_events.events.act import Act
    from ipe_events.events.ids import derived_id

    now = SYSTEM.now()
    act = Act(user=bus.identity, act=verb, target=target, reason=reason, arguments=arguments, time=now)
    identity = derived_id("act", act.user, act.act, target, now.isoformat())
    headers = headers_for(act, id=identity, source=f"/operators/{act.user}", subject=target, time=now)
    await bus.publish(ACT.format(user=act.user, act=act.act), act.model_dump_json().encode(), id=identity, headers=headers)
