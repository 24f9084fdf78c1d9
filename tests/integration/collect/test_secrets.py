"""A sentinel secret goes into every place that redaction knows, and never arrives on the bus."""

import base64

import orjson

from ipe_events.testing.fake.cluster import FakeCluster
from tests.helpers import eventually
from tests.integration.collect.rig import Rig, config_map

SENTINEL = "c0rrect-h0rse-battery"


async def test_a_sentinel_secret_is_nowhere_on_the_bus(rig: Rig, cluster: FakeCluster) -> None:
    encoded = base64.b64encode(SENTINEL.encode()).decode()
    manifest = orjson.dumps({"kind": "Secret", "data": {"password": encoded}, "stringData": {"plain": SENTINEL}}).decode()
    last_applied = {"kubectl.kubernetes.io/last-applied-configuration": manifest}
    cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s", "annotations": last_applied},
            "data": {"password": encoded},
        }
    )
    cluster.create(config_map("annotated", annotations=last_applied))
    nested = orjson.dumps({"metadata": {"annotations": last_applied}}).decode()
    cluster.create(config_map("nested", value=nested))
    async with rig.collecting("configmaps", "secrets", settings=rig.with_settings(secrets=True)):
        cluster.create(config_map("later", annotations=last_applied))
        await eventually(lambda: _count(rig, 4))
    for stream in ("IPE_K8S", "IPE_GOV"):
        async for delivery in rig.bus.read(stream):
            text = delivery.header_bytes + delivery.body
            assert SENTINEL.encode() not in text
            assert encoded.encode() not in text
    masked = [body for _, body in await rig.messages() if body["kind"] == "Secret"]
    assert masked[0]["data"]["password"].startswith("hmac:")


async def _count(rig: Rig, count: int) -> bool:
    return len(await rig.messages()) >= count
