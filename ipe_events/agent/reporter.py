"""Tells the bus what this agent does for a cluster: its ``AgentStatus`` in KV, when it changes and at least every heartbeat."""

import asyncio
from collections.abc import Callable

from ipe_events.bus.connection import Bus
from ipe_events.bus.kv import KeyValue
from ipe_events.errors import BusError
from ipe_events.events.codec import encode
from ipe_events.events.registry import AgentStatus
from ipe_events.subjects import escape
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

BUCKET = "ipe_agents"
_LOOK_SECONDS = 0.25
_FAREWELL_SECONDS = 2.0


class Reporter:
    """Writes the status of one cluster's agent.

    Args:
        bus: the connection.
        cluster: the operator's name for it.
        status: the status now.
        interval: longest time between two writes, in seconds.
    """

    def __init__(self, bus: Bus, cluster: str, status: Callable[[], AgentStatus], interval: float) -> None:
        self._bus = bus
        self._key = escape(cluster)
        self._cluster = cluster
        self._status = status
        self._interval = interval

    async def run(self) -> None:
        """Report until cancelled; then say that the agent is gone."""
        loop = asyncio.get_running_loop()
        told: AgentStatus | None = None
        due = loop.time()
        try:
            while True:
                status = self._status()
                if told is None or loop.time() >= due or _essence(status) != _essence(told):
                    try:
                        await (await self._bucket()).put(self._key, encode(status))
                        told, due = status, loop.time() + self._interval
                    except BusError as error:
                        log.warning("status not reported", cluster=self._cluster, error=str(error))
                        await asyncio.sleep(1.0)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            await self._farewell()

    async def _bucket(self) -> KeyValue:
        return await self._bus.kv(BUCKET, create=True)

    async def _farewell(self) -> None:
        last = self._status().model_copy(update={"state": "disconnected", "writes": False})
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await (await self._bucket()).put(self._key, encode(last))
        except (BusError, TimeoutError) as error:
            log.warning("the end was not reported", cluster=self._cluster, error=str(error))


def _essence(status: AgentStatus) -> AgentStatus:
    """What is worth telling at once: everything but counts and time."""
    return status.model_copy(update={"time": None, "objects": {}})
