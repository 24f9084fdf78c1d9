"""What an operator sees of handlers, and how one that is gone for good is forgotten."""

from ipe_events.bus import topology
from ipe_events.clock import SYSTEM
from ipe_events.events.codec import encode
from ipe_events.events.registry import AgentStatus, HandlerDeclaration
from tests.helpers import eventually

TEXT = """
from ipe_events import Change, every, handler

@handler(on="pods", name="my-pods")
async def seen(event: Change) -> None: ...

@every("1h")
async def tick() -> None: ...
"""


async def test_a_declaration_that_cannot_be_read_hides_no_other(bus, ipe):
    await topology.ensure(bus)
    handlers = await bus.kv("ipe_handlers")
    good = HandlerDeclaration(handler="good", time=SYSTEM.now())
    await handlers.put("bad", b'{"handler": "a", "handler": "b"}')
    await handlers.put("good", encode(good))
    done = await ipe("handlers", "list", "-o", "json")
    assert done.code == 0
    assert "good" in {item["name"] for item in done.items}
    assert "key bad of bucket ipe_handlers cannot be read" in done.err
    assert 'key "handler" occurs twice' in done.err


async def test_a_declaration_under_anothers_key_is_named_and_hides_no_other(bus, ipe):
    await topology.ensure(bus)
    handlers = await bus.kv("ipe_handlers")
    await handlers.put("good", encode(HandlerDeclaration(handler="good", resources=("pods",), time=SYSTEM.now())))
    await handlers.put("posing", encode(HandlerDeclaration(handler="good", resources=("secrets",), time=SYSTEM.now())))
    done = await ipe("handlers", "list", "-o", "json")
    assert [(item["name"], item["resources"]) for item in done.items if item["from"] == "bus"] == [("good", ["pods"])]
    assert "key posing of bucket ipe_handlers cannot be read: it declares another handler, 'good'" in done.err
    doctor = await ipe("doctor", "-o", "json")
    (finding,) = [item for item in doctor.items if item["check"] == "handlers"]
    assert "declaration 'posing': it declares another handler, 'good'" in finding["detail"]


async def test_a_handler_reads_falls_silent_and_is_forgotten(bus, ipe, tmp_path):
    await topology.ensure(bus)
    (tmp_path / "mine.py").write_text(TEXT)
    process = await ipe.start("handlers", "run", str(tmp_path / "mine.py"))

    async def states() -> dict[str, tuple[str, int | None]]:
        done = await ipe("handlers", "list", "-o", "json")
        return {item["name"]: (item["state"], item["behind"]) for item in done.items if item["from"] == "bus"}

    async def become(state: str) -> bool:
        return await states() == {"my-pods": (state, 0), "tick": ("", None)}

    await eventually(lambda: become("reading"), timeout=20)
    refused = await ipe("handlers", "remove", "my-pods")
    assert (refused.code, refused.err) == (
        3, "error: handlers: my-pods runs (fix: stop it first; a moment later it no longer reads)\n",
    )  # fmt: skip
    process.terminate()
    await process.communicate()
    await eventually(lambda: become("silent"), timeout=20)
    wrong = await ipe("handlers", "remove", "my-pod")
    assert wrong.code == 2
    assert "did you mean my-pods?" in wrong.err
    done = await ipe("handlers", "remove", "my-pods", "--reason", "replaced")
    assert (done.code, done.err) == (0, "my-pods is forgotten, with 1 consumers\n")
    assert set(await states()) == {"tick"}
    assert not (await bus.js_api("CONSUMER.LIST.IPE_K8S", {"offset": 0}))["consumers"]
    (act,) = (await ipe("events", "list", "--topic", "act", "-o", "json")).items
    assert "remove handler my-pods replaced" in act["summary"]


async def test_a_key_that_nobody_escaped_stands_in_no_ones_way(bus, ipe):
    await topology.ensure(bus)
    handlers = await bus.kv("ipe_handlers")
    await handlers.put("a.b", b"{}")
    await handlers.put("gone", encode(HandlerDeclaration(handler="gone", time=SYSTEM.now())))
    done = await ipe("handlers", "remove", "gone")
    assert (done.code, done.err) == (0, "gone is forgotten, with 0 consumers\n")


async def test_a_status_under_anothers_key_is_named_and_hides_no_other(bus, ipe):
    await topology.ensure(bus)
    agents = await bus.kv("ipe_agents")
    await agents.put("prod", encode(AgentStatus(cluster="prod", state="connected", time=SYSTEM.now())))
    await agents.put("posing", encode(AgentStatus(cluster="prod", state="disconnected", time=SYSTEM.now())))
    done = await ipe("clusters", "list", "-o", "json")
    assert [(item["name"], item["state"]) for item in done.items] == [("prod", "connected")]
    assert "posing" in done.err
