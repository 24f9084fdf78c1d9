"""Says early that a stream of the bus is filling up.

Streams discard their oldest messages when they reach a limit, so a full one forgets sooner than its retention promises. From 80 %
on the agent says so: once in the log when a limit comes near, once when it is over, and all the while as a metric.
"""

import asyncio

from ipe_events.bus.connection import Bus
from ipe_events.bus.topology import check_limits
from ipe_events.errors import BusError, BusPermissionDenied
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.metrics import gauge

log = get_logger(__name__)

USED = gauge("ipe_stream_limit_used_ratio", "Used share of a stream's limit, from 80 % on.", ("stream", "limit"))


class LimitAlarm:
    """Looks at the limits of the bus's streams.

    Args:
        bus: the connection.
        interval: seconds between two looks.
    """

    def __init__(self, bus: Bus, interval: float = 60.0) -> None:
        self._bus = bus
        self._interval = interval
        self._near: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except BusPermissionDenied as error:
                log.warning("the streams' limits are not watched", error=str(error))
                await asyncio.Event().wait()
            except BusError as error:
                log.info("the streams' limits could not be read", error=str(error))
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """Look once.

        Raises:
            BusError: the streams cannot be read.
        """
        alarms = {(alarm.stream, alarm.limit): alarm for alarm in await check_limits(self._bus)}
        for place, alarm in alarms.items():
            USED.labels(*place).set(alarm.share)
            if place not in self._near:
                log.warning(
                    "a stream is filling up", stream=alarm.stream, limit=alarm.limit, used=alarm.used, allowed=alarm.allowed
                )
        for stream, limit in self._near - alarms.keys():
            USED.drop(stream, limit)
            log.info("a stream has room again", stream=stream, limit=limit)
        self._near = set(alarms)
