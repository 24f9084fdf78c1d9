"""Handlers on a real nats-server: order, retries, dead letters, pause, time-outs, drain, gaps, snapshots."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest_asyncio
from structlog.testing import capture_logs

from ipe_events import Backoff, Change, Commands, Event, Retry, handler
from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.bus.services import Endpoint, Reply, Request
from ipe_events.clock import SYSTEM
from ipe_events.declaration import Declared, declaration_of
from ipe_events.errors import SchemaError
from ipe_events.events import AgentStatus, Gap, HandlerDeclaration, Payload
from ipe_events.events.codec import decode, encode
from ipe_events.events.registry import NO_SUCH_RESOURCE
from ipe_events.runtime.app import HandlerApp
from ipe_events.runtime.notices import HandlerPaused, HandlerResumed
from ipe_events.subjects import AGENT_SERVICE, SNAPSHOT
from ipe_events.testing import change
from ipe_events.testing.testbus import codec_headers
from tests.helpers import eventually

Run = Callable[..., Any]


def pod(name: str, version: int) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "resourceVersion": str(version)}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {}}


async def publish(bus: Bus, one: Change, subject: str = "", message_id: str = "") -> None:
    await bus.publish(subject or one.subject, one.body, id=message_id or one.id, headers=codec_headers(one.header_bytes))


@pytest_asyncio.fixture
async def ready(bus: Bus) -> Bus:
    await topology.ensure(bus)
    return bus


@pytest_asyncio.fixture
async def run(nats_server, ready) -> AsyncIterator[Run]:
    apps: list[HandlerApp] = []

    async def start(*functions: Callable[..., Any], **options: Any) -> HandlerApp:
        declared = [declaration_of(function) for function in functions]
        app = HandlerApp([one for one in declared if isinstance(one, Declared)], nats_server.settings, **options)
        apps.append(app)
        await app.start()
        return app

    yield start
    for app in apps:
        await app.stop()


async def info(bus: Bus, durable: str) -> dict[str, Any]:
    return await bus.js_api(f"CONSUMER.INFO.IPE_K8S.{durable}")


async def settled(bus: Bus, durable: str) -> bool:
    found = await info(bus, durable)
    return not found["num_ack_pending"] and not found["num_pending"]


async def test_a_retry_holds_its_lane_and_nobody_elses(ready, run):
    seen: list[tuple[str, str]] = []
    tries = 0

    @handler(on="pods", start="all")
    async def ordered(pod: Change) -> None:
        nonlocal tries
        if (pod.name, pod.resource_version) == ("a", "1"):
            tries += 1
            if tries < 3:
                raise Retry("not yet", delay=0.1)
        seen.append((pod.name, pod.resource_version))

    for version in range(1, 4):
        for name in "ab":
            await publish(ready, change(pod(name, version)))
    await run(ordered)
    await eventually(lambda: settled(ready, "ordered"))
    assert [version for name, version in seen if name == "a"] == ["1", "2", "3"]
    assert [version for name, version in seen if name == "b"] == ["1", "2", "3"]
    assert seen.index(("b", "3")) < seen.index(("a", "1")), "the other object waited for the one that retries"


async def test_a_hot_object_neither_starves_others_nor_loses_its_order(ready, run):
    gate = asyncio.Event()
    seen: list[tuple[str, int]] = []

    @handler(on="pods", start="all")
    async def hot(pod: Change) -> None:
        if pod.name == "hot":
            await gate.wait()
        seen.append((pod.name, int(pod.resource_version)))

    for version in range(1, 301):
        await publish(ready, change(pod("hot", version)))
    for version in range(1, 6):
        await publish(ready, change(pod("cold", version)))
    app = await run(hot)
    await eventually(lambda: [version for name, version in seen if name == "cold"] == [1, 2, 3, 4, 5])
    assert app.subscribers["hot"].lanes.size <= 128, "a lane holds more than it may"
    gate.set()
    await eventually(lambda: settled(ready, "hot"), timeout=40)
    assert [version for name, version in seen if name == "hot"] == list(range(1, 301))


async def test_latest_keeps_the_newest_and_drops_the_stale(ready, run):
    gate = asyncio.Event()
    seen: list[int] = []

    @handler(on="pods", start="all", latest=True)
    async def newest(pod: Change) -> None:
        seen.append(int(pod.resource_version))
        await gate.wait()

    for version in (1, 2, 3, 9, 4):
        await publish(ready, change(pod("a", version)))
    await run(newest)
    await eventually(lambda: seen)
    gate.set()
    await eventually(lambda: settled(ready, "newest"))
    assert seen == [1, 9] or seen == [9]


async def test_what_keeps_failing_becomes_one_dead_letter(ready, run):
    seen: list[str] = []

    @handler(on="pods", start="all", retry=Backoff(attempts=3, first=0.02, ceiling=0.05))
    async def picky(pod: Change) -> None:
        if pod.name == "bad":
            raise ValueError("token=abc is no good")
        seen.append(pod.name)

    await publish(ready, change(pod("bad", 1)))
    await publish(ready, change(pod("good", 1)))
    await run(picky)
    await eventually(lambda: settled(ready, "picky"))
    letters = [letter async for letter in ready.read("IPE_DLQ")]
    assert [letter.subject for letter in letters] == ["ipe.dlq.picky"]
    headers = letters[0].headers
    assert (headers["ipe-dlq-error"], headers["ipe-dlq-attempts"], headers["ipe-dlq-sequence"]) == ("ValueError", "3", "1")
    assert "abc" not in headers["ipe-dlq-message"]
    assert headers["ce-id"] == change(pod("bad", 1)).id
    assert seen == ["good"]


async def test_a_replayed_dead_letter_reaches_only_the_handler_that_gave_up(ready, run, nats_server):
    mended = False
    seen: list[tuple[str, str]] = []

    @handler(on="pods", start="all", retry=Backoff(attempts=1, first=0.01, ceiling=0.01))
    async def picky(pod: Change) -> None:
        if not mended and pod.name == "bad":
            raise ValueError("no good")
        seen.append(("picky", pod.name))

    @handler(on="pods", start="all")
    async def easy(pod: Change) -> None:
        seen.append(("easy", pod.name))

    await publish(ready, change(pod("bad", 1)))
    await run(picky, easy)
    await eventually(lambda: settled(ready, "picky"))
    await eventually(lambda: settled(ready, "easy"))
    mended = True
    environment = {**os.environ, "IPE_NATS_URL": nats_server.url}
    arguments = (sys.executable, "-c", "from ipe_events.cli.main import main; main()", "dlq", "replay", "IPE_DLQ:1")
    ipe = await asyncio.create_subprocess_exec(*arguments, env=environment, stderr=asyncio.subprocess.PIPE)
    _, said = await ipe.communicate()
    assert ipe.returncode == 0, said.decode()
    await publish(ready, change(pod("good", 1)))  # comes after the replay: when both have seen it, neither waits for more
    await eventually(lambda: {("picky", "good"), ("easy", "good")} <= set(seen))
    assert sorted(seen) == [("easy", "bad"), ("easy", "good"), ("picky", "bad"), ("picky", "good")]


async def test_when_everything_fails_the_handler_pauses_and_comes_back(ready, run):
    broken = True
    seen: set[str] = set()

    @handler(on="pods", start="all", retry=Backoff(attempts=1, first=0.01, ceiling=0.01))
    async def database(pod: Change) -> None:
        if broken and pod.name != "p0":
            raise ConnectionError("database is gone")
        seen.add(pod.name)

    for number in range(1, 20):
        await publish(ready, change(pod(f"p{number}", 1)))
    app = await run(database, health_port=0)
    subscriber = app.subscribers["database"]
    await eventually(lambda: subscriber.breaker.paused)
    assert app.health is not None
    assert "paused because everything fails" in (await app.health.failing())["handler-database"]
    letters = (await ready.stream_info("IPE_DLQ"))["state"]["messages"]
    assert letters < 5, "the stream was emptied into the dead letters"
    broken = False
    subscriber.lanes.probe()
    await eventually(lambda: settled(ready, "database"))
    assert len(seen) == 19 - letters
    assert not subscriber.breaker.paused
    found = await eventually(lambda: kinds(ready))
    assert found == [HandlerPaused.type_name, HandlerResumed.type_name]


async def test_events_that_cannot_be_read_are_dead_letters_and_no_reason_to_pause(ready, run):
    seen: list[str] = []

    @handler(on="pods", start="all")
    async def reader(pod: Change) -> None:
        if pod.name != "good":
            raise SchemaError("this body is no pod")  # what decoding raises for a malformed one
        seen.append(pod.name)

    for number in range(8):
        await publish(ready, change(pod(f"bad{number}", 1)))
    await publish(ready, change(pod("good", 1)))
    app = await run(reader)
    await eventually(lambda: settled(ready, "reader"))
    assert seen == ["good"]
    assert not app.subscribers["reader"].breaker.paused
    assert len([letter async for letter in ready.read("IPE_DLQ")]) == 8


async def kinds(bus: Bus) -> list[str]:
    found = [delivery.subject.rpartition(".")[2] async for delivery in bus.read("IPE_GOV", ["ipe.event.database.>"])]
    return found if len(found) == 2 else []


async def test_a_call_that_takes_too_long_is_cancelled(ready, run):
    cancelled: list[str] = []

    @handler(on="pods", start="all", timeout=0.2, retry=Backoff(attempts=1))
    async def slow(pod: Change) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(pod.name)
            raise

    await publish(ready, change(pod("a", 1)))
    await run(slow)
    await eventually(lambda: settled(ready, "slow"))
    assert cancelled == ["a"]
    (letter,) = [letter async for letter in ready.read("IPE_DLQ")]
    assert letter.headers["ipe-dlq-error"] == "TimeoutError"


async def test_the_end_finishes_what_runs_and_hands_back_the_rest(ready, run):
    started, gate = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    @handler(on="pods", start="all", concurrency=1)
    async def patient(pod: Change) -> None:
        started.set()
        await gate.wait()
        done.append(pod.name)

    for number in range(5):
        await publish(ready, change(pod(f"p{number}", 1)))
    app = await run(patient)
    await started.wait()
    stopping = asyncio.create_task(app.stop())
    await eventually(lambda: app.subscribers["patient"].lanes.frozen)
    gate.set()
    await stopping
    assert done == ["p0"]
    await run(patient)
    await eventually(lambda: settled(ready, "patient"))
    assert sorted(done) == [f"p{number}" for number in range(5)]


async def test_the_broker_restarts_and_no_event_is_missed(ready, run, nats_server):
    seen: set[str] = set()

    @handler(on="pods", start="all")
    async def steady(pod: Change) -> None:
        seen.add(pod.name)

    await run(steady)
    for number in range(10):
        await publish(ready, change(pod(f"before-{number}", 1)))
    nats_server.kill()
    nats_server.restart()
    await ready.wait_connected()
    for number in range(10):
        await publish(ready, change(pod(f"after-{number}", 1)))
    expected = {f"{when}-{number}" for when in ("before", "after") for number in range(10)}
    await eventually(lambda: seen == expected, timeout=30)


async def test_batches_keep_the_order_and_part_with_a_poisonous_event(ready, run):
    batches: list[list[str]] = []

    @handler(on="pods", start="all", batch=4, retry=Backoff(attempts=2, first=0.01, ceiling=0.01))
    async def archive(pods: list[Event[Change]]) -> None:
        names = [event.payload.name for event in pods]
        if "bad" in names:
            raise ValueError("bad")
        batches.append(names)

    for name in ("a", "b", "bad", "c", "d"):
        await publish(ready, change(pod(name, 1)))
    await run(archive)
    await eventually(lambda: settled(ready, "archive"))
    assert [name for batch in batches for name in batch] == ["a", "b", "c", "d"]
    assert (await ready.stream_info("IPE_DLQ"))["state"]["messages"] == 1


class Capped(Payload):
    name: str


async def test_outputs_are_stored_once_however_often_the_event_comes(ready, run):
    attempts = 0

    @handler(on="pods", start="all")
    async def cap(event: Event[Change], commands: Commands) -> Capped:
        nonlocal attempts
        attempts += 1
        await commands.annotate(event.payload, {"capped": "yes"}, reason="cap")
        if attempts == 1:
            raise Retry(delay=0.01)
        return Capped(name=event.payload.name)

    await publish(ready, change(pod("a", 1)))
    await run(cap)
    await eventually(lambda: settled(ready, "cap"))
    assert attempts == 2
    assert (await ready.stream_info("IPE_CMD"))["state"]["messages"] == 1
    assert (await ready.stream_info("IPE_GOV"))["state"]["messages"] == 1


async def test_what_it_needs_is_declared_and_what_nobody_collects_is_told(ready, run, capsys):
    agents = await ready.kv("ipe_agents", create=True)
    for cluster, state in (("prod-a", "watching"), ("prod-b", "refused: no right"), ("test", "refused: no right")):
        status = AgentStatus(cluster=cluster, resources={"pods": state}, time=SYSTEM.now())
        await agents.put(cluster, encode(status))

    @handler(on="pods", clusters="prod-*", name="ipe-x")
    async def watcher(event: Change, commands: Commands) -> Capped | None: ...

    await run(watcher)
    entry = await (await ready.kv("ipe_handlers")).get("ipe-x")
    assert entry is not None
    found = decode(HandlerDeclaration, entry.value)
    assert (found.resources, found.clusters, found.outputs) == (
        ("pods",),
        ("prod-*",),
        ("ipe.cmd.*.ipe-x.*", "ipe.event.ipe-x.capped"),
    )
    told = capsys.readouterr().out + capsys.readouterr().err
    assert "nobody collects" in told
    assert "prod-b" in told
    assert "prod-a" not in told.split("nobody collects")[1].splitlines()[0]


async def test_a_mistyped_cluster_or_resource_is_told_with_the_fix(ready, run):
    agents = await ready.kv("ipe_agents", create=True)
    resources = {"deployments.apps": "watching", "deploymnts.apps": f"refused: {NO_SUCH_RESOURCE}"}
    await agents.put("prod-a", encode(AgentStatus(cluster="prod-a", resources=resources, time=SYSTEM.now())))

    @handler(on="deploymnts.apps", name="mistyped")
    async def mistyped(event: Change) -> None: ...

    @handler(on="deployments.apps", clusters="pord-*", name="elsewhere")
    async def elsewhere(event: Change) -> None: ...

    with capture_logs() as said:
        await run(mistyped, elsewhere)
    told = {entry["handler"]: (entry["problem"], entry["fix"]) for entry in said if "problem" in entry}
    assert told == {
        "mistyped": ("no resource deploymnts.apps exists in prod-a", "correct it: did you mean deployments.apps?"),
        "elsewhere": (
            "no agent serves clusters=pord-*", "start an agent there with `ipe agent run`, or correct `clusters=` of the handler",
        ),
    }  # fmt: skip


async def test_what_retention_removed_unread_is_published_as_a_gap(ready, run):
    seen: list[str] = []

    @handler(on="pods", start="all")
    async def late(pod: Change) -> None:
        seen.append(pod.name)

    app = await run(late)
    await publish(ready, change(pod("a", 1)))
    await eventually(lambda: seen == ["a"])
    await app.stop()
    for number in range(5):
        await publish(ready, change(pod(f"lost-{number}", 1)))
    config = (await ready.stream_info("IPE_K8S"))["config"]
    await ready.js_api("STREAM.UPDATE.IPE_K8S", {**config, "max_msgs": 1})
    await publish(ready, change(pod("b", 1)))
    await run(late)
    await eventually(lambda: seen == ["a", "b"])

    async def gaps() -> list[Gap]:
        return [decode(Gap, delivery.body) async for delivery in ready.read("IPE_GOV", ["ipe.cluster.*.gap"])]

    (gap,) = await eventually(gaps)
    assert (gap.handler, gap.cause, gap.since, gap.until) == ("late", "retention", "2", "6")


async def test_a_snapshot_is_joined_with_what_happens_meanwhile(ready, run):
    agents = await ready.kv("ipe_agents", create=True)
    await agents.put("test", encode(AgentStatus(cluster="test", resources={"pods": "watching"}, time=SYSTEM.now())))
    asked = asyncio.Event()
    may_answer = asyncio.Event()

    async def snapshot(request: Request) -> Reply:
        asked.set()
        await may_answer.wait()
        question = orjson.loads(request.body)
        subject = SNAPSHOT.format(handler="viewer", request=question["request"], cluster="test", group="", resource="pods")
        for name, version in (("kept", 5), ("deleted", 5), ("changed", 5)):
            item = change(pod(name, version), verb="added", synthetic=True)
            await publish(ready, item, subject, f"{question['request']}/{item.id}")
        marker = {"version": 1, "resource": "pods", "resource_version": "10", "items": 3}
        head = {"ce-type": "dev.ipe.snapshot.end.v1"}
        await ready.publish(subject, orjson.dumps(marker), id=f"{question['request']}/end", headers=head)
        return Reply(orjson.dumps(marker))

    endpoint = Endpoint("snapshot", AGENT_SERVICE.format(cluster="test", caller="viewer", verb="snapshot"), snapshot)
    service = await ready.serve("agent", "1.0.0", [endpoint])
    seen: list[tuple[str, str, str]] = []

    @handler(on="pods", start="snapshot")
    async def viewer(pod: Change) -> None:
        seen.append((pod.name, pod.resource_version, pod.verb))

    app = await run(viewer, health_port=0)
    await asked.wait()
    assert app.health is not None
    assert "snapshot" in (await app.health.failing())["handler-viewer"]
    await publish(ready, change(pod("deleted", 7), verb="deleted"))
    await publish(ready, change(pod("changed", 8)))
    await eventually(lambda: len(seen) == 2)
    may_answer.set()
    await eventually(lambda: len(seen) == 3)
    await publish(ready, change(pod("kept", 11)))
    await eventually(lambda: len(seen) == 4)
    assert sorted(seen[:2]) == [("changed", "8", "modified"), ("deleted", "7", "deleted")]
    assert seen[2:] == [("kept", "5", "added"), ("kept", "11", "modified")]
    assert (await app.health.failing())["handler-viewer"] == ""
    await service.stop()
