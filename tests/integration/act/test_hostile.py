"""What hostile peers, tenants and API servers can do to an agent that acts and answers: nothing that lasts, nothing unseen."""

import orjson
import pytest

from ipe_events.agent.config import LeaseSettings
from ipe_events.agent.guardrails import Addressee
from ipe_events.agent.job import outcome_id
from ipe_events.agent.lease import LeaseKeeper, Role
from ipe_events.agent.redaction import RedactionError, Redactor
from ipe_events.bus.connection import Bus
from ipe_events.bus.consumer import Consumer, ConsumerSpec, Delivery
from ipe_events.bus.services import Endpoint, Reply, Request
from ipe_events.bus.topology import ensure
from ipe_events.errors import KubeError, ServiceError
from ipe_events.kube.selection import Selection
from ipe_events.subjects import SNAPSHOT, escape
from tests.helpers import eventually
from tests.integration.act.support import acting
from tests.integration.act.test_services import Asking, answering

SCALE = {"verb": "scale", "replicas": 1}


@pytest.fixture
def place(fake_place):
    return fake_place


@pytest.mark.parametrize("handler", ["h" * 300, "=ED=A0=80", "_"], ids=["long", "half a surrogate", "empty"])
@pytest.mark.parametrize("well_formed", [True, False])
async def test_a_command_from_an_impossible_handler_is_settled_and_stops_nobody(place, streams, handler, well_formed) -> None:
    place.deployment()
    async with acting(place, streams) as rig:
        body = orjson.dumps(rig.command(SCALE)) if well_formed else b"{"
        await streams.publish(f"ipe.cmd.c1.{handler}.scale", body)
        outcome = await rig.do(SCALE)
        assert outcome.status == "applied"

        async def settled() -> bool:
            info = await streams.js_api(f"CONSUMER.INFO.IPE_CMD.act-{escape('c1')}")
            return bool(info["num_ack_pending"] == 0 and info["num_pending"] == 0)

        await eventually(settled, timeout=8)


async def test_a_stolen_message_id_does_not_hide_an_outcome(place, streams) -> None:
    """The stream drops what carries an id that it has, whoever used it and on whatever subject."""
    place.deployment()
    async with acting(place, streams) as rig:
        body = rig.command(SCALE)
        stolen = outcome_id(Addressee("c1", body["handler"], "scale"), body["id"])
        await streams.publish("ipe.cluster.c2.heartbeat", b"{}", id=stolen)
        await rig.publish(body)
        assert (await rig.outcome(body["id"])).status == "applied"
    assert len(await rig.outcomes(body["id"])) == 1


async def test_a_subject_that_is_no_text_is_settled_everywhere(place, streams) -> None:
    place.deployment()
    async with acting(place, streams) as rig:
        for _ in range(3):
            streams.client.write(b"PUB ipe.cmd.c1.\xff\xfe.scale 2\r\n{}\r\n")
        assert (await rig.do(SCALE)).status == "applied"

        async def settled() -> bool:
            info = await streams.js_api("CONSUMER.INFO.IPE_CMD.act-c1")
            return bool(info["num_ack_pending"] == info["num_pending"] == 0)

        await eventually(settled, timeout=8)
    async for delivery in streams.read("IPE_CMD"):
        assert delivery.subject


async def test_a_lease_that_no_server_writes_ends_no_keeper(place, tmp_path) -> None:
    class Lying:
        """A session whose server answers Leases with something else."""

        name = "c1"
        answers = iter(
            [[], {"spec": []}, {"metadata": {}, "spec": {"holderIdentity": "", "leaseTransitions": "many"}}, {"spec": {}}]
        )

        async def json(self, *_args: object, **_more: object) -> object:
            return next(self.answers)

        async def request(self, *_args: object, **_more: object) -> object:
            raise KubeError("no")

    keeper = LeaseKeeper(Lying(), LeaseSettings(), "me")  # type: ignore[arg-type]  # all that a keeper uses
    for _ in range(3):
        await keeper.turn()
        assert keeper.role is not Role.HOLDER
        assert keeper.problem


async def test_an_object_too_large_for_the_bus_is_a_stub_in_a_snapshot(place, nats_factory) -> None:
    server = nats_factory()
    async with await Bus.connect(server.settings, name="small") as bus:
        await ensure(bus)
        place.call("POST", "/api/v1/namespaces/default/configmaps", _config_map("small", "x"))
        place.call("POST", "/api/v1/namespaces/default/configmaps", _config_map("large", "x" * (9 << 20)))
        async with answering(place, bus, bytes=1 << 20):
            end = await Asking(bus, place).one("snapshot", {"resource": "configmaps", "request": "r1"})
            assert end["items"] == 2
            subject = SNAPSHOT.filter(handler="guard", request="r1")
            bodies = [orjson.loads(message.body) async for message in bus.read("IPE_SNAP", [subject])]
    stub = next(body for body in bodies if body.get("metadata", {}).get("name") == "large")
    assert "data" not in stub
    assert stub["ipeStub"]["bytes"] > 9 << 20


def _config_map(name: str, value: str, **metadata):
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "data": {"v": value},
    }


async def test_what_is_not_selected_cannot_be_asked_for_by_name(place, streams) -> None:
    place.call("POST", "/api/v1/namespaces/default/configmaps", _config_map("open", "x", labels={"public": "yes"}))
    place.call("POST", "/api/v1/namespaces/default/configmaps", _config_map("closed", "x"))
    async with answering(place, streams, selection=Selection(labels="public=yes")):
        asking = Asking(streams, place)
        question = {"resource": "configmaps", "namespace": "default"}
        assert (await asking.one("get", question | {"name": "open"}))["metadata"]["name"] == "open"
        with pytest.raises(ServiceError) as refused:
            await asking.one("get", question | {"name": "closed"})
        assert refused.value.code == 404


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a%2Fb", "a\r\nb", "a\x00b", "?x", "#", "x" * 254])
@pytest.mark.parametrize("field", ["name", "namespace"])
async def test_names_cannot_leave_their_place_in_the_path(place, streams, name, field) -> None:
    async with answering(place, streams):
        question = {"resource": "configmaps", "namespace": "default", "name": "x"} | {field: name}
        with pytest.raises(ServiceError) as refused:
            await Asking(streams, place).one("get", question)
    assert refused.value.code in (400, 403, 404), refused.value


async def test_one_object_that_cannot_be_examined_keeps_no_others_from_whoever_asks(place, streams, monkeypatch) -> None:
    redact = Redactor.redact

    def unsure(redactor, resource, body):
        if b'"deep"' in bytes(body):
            raise RedactionError("the object cannot be examined")
        return redact(redactor, resource, body)

    monkeypatch.setattr(Redactor, "redact", unsure)
    place.call("POST", "/api/v1/namespaces/default/configmaps", _config_map("fine", "x"))
    place.call("POST", "/api/v1/namespaces/default/configmaps", _config_map("deep", "x"))
    async with answering(place, streams) as asking:
        pages = await asking.pages({"resource": "configmaps"})
    items = {item["metadata"]["name"]: item for page in pages for item in page["items"]}
    assert items["fine"]["data"] == {"v": "x"}
    assert items["deep"]["ipeStub"] == {"error": "the object cannot be examined"}
    assert "data" not in items["deep"]


async def test_an_error_that_quotes_control_characters_is_still_an_answer(bus) -> None:
    async def refuse(_request: Request) -> Reply:
        raise ServiceError("a\x00b\ud800c", code=400)

    handle = await bus.serve("hostile", "1.0.0", [Endpoint("refuse", "ipe.test.refuse", refuse)])
    with pytest.raises(ServiceError) as refused:
        await bus.request("ipe.test.refuse", b"", timeout=5)
    assert refused.value.code == 400
    await handle.stop()


async def test_work_in_progress_does_not_pile_up_while_nats_is_away(bus, nats_server) -> None:
    await bus.js_api("STREAM.CREATE.S", {"name": "S", "subjects": ["s"]})
    got: list[Delivery] = []
    consumer = await Consumer.start(bus, ConsumerSpec("S", "c", start="all"), got.append)
    await bus.publish("s", b"1")
    (delivery,) = await eventually(lambda: got)
    nats_server.kill()
    await eventually(lambda: not bus.connected)
    before = bus.client.buffered
    for _ in range(1_000):
        delivery.in_progress()
    assert bus.client.buffered == before
    nats_server.restart()
    await eventually(lambda: bus.connected)
    await consumer.stop()
