"""What retention took from a handler is on the record, where a person looks."""

from ipe_events import Change, handler
from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.declaration import declaration_of
from ipe_events.runtime.app import HandlerApp
from ipe_events.testing import change
from ipe_events.testing.testbus import codec_headers
from tests.helpers import eventually
from tests.integration.cli.conftest import Ipe
from tests.nats import NatsServer


async def publish(bus: Bus, name: str) -> None:
    one = change({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"}})
    await bus.publish(one.subject, one.body, id=one.id, headers=codec_headers(one.header_bytes))


async def test_a_handlers_gap_is_listed_once(nats_server: NatsServer, bus: Bus, ipe: Ipe):
    await topology.ensure(bus)
    seen: list[str] = []

    @handler(on="pods", start="all")
    async def late(pod: Change) -> None:
        seen.append(pod.name)

    declared = declaration_of(late)
    assert declared is not None
    async with HandlerApp([declared], nats_server.settings):
        await publish(bus, "first")
        await eventually(lambda: seen == ["first"])
    for name in ("lost-1", "lost-2", "kept"):
        await publish(bus, name)
    config = (await bus.stream_info("IPE_K8S"))["config"]
    await bus.js_api("STREAM.UPDATE.IPE_K8S", {**config, "max_msgs": 1})

    async def listed() -> list[dict[str, object]]:
        return (await ipe("events", "list", "--verb", "gap", "-o", "json")).items

    for _ in range(2):  # a start after the gap was told does not tell it again
        async with HandlerApp([declared], nats_server.settings):
            await eventually(lambda: seen == ["first", "kept"])
            gaps = await eventually(listed)
    assert len(gaps) == 1, gaps
    shown = (await ipe("events", "list", "--verb", "gap", "-o", "wide")).out
    assert "late" in shown, shown
    assert "IPE_K8S dropped sequences 2 to 3" in shown, shown
