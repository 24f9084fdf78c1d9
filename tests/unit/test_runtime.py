"""The runtime's pure parts, and handlers on the test bus."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ipe_events import Bus, Change, Clock, Commands, Event, Reject, Retry, Skip, State, every, handler, provide, service
from ipe_events.errors import ServiceError, UsageError
from ipe_events.events import ObjectRef, Outcome, Payload, Status
from ipe_events.events.codec import decode
from ipe_events.runtime.breaker import Breaker
from ipe_events.runtime.commands import guarded_patch
from ipe_events.runtime.dead import MAX_MESSAGE, mask
from ipe_events.runtime.snapshot import Join, scope_of
from ipe_events.runtime.subscriber import lane_key
from ipe_events.testing import TestBus, assert_idempotent, change


class Note(Payload):
    text: str


class Echo(Payload):
    text: str
    time: str = ""


def pod(name: str = "cart", version: str = "5", **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "resourceVersion": version, "labels": labels}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {"nodeName": "n1"}}


# --- outcomes --------------------------------------------------------------------------------------------------------------


@handler(on="pods", where=lambda pod: pod.labels.get("app") != "noise")
async def judge(pod: Change, bus: Bus) -> Note | None:
    match pod.labels.get("app"):
        case "skip":
            raise Skip("nothing to do")
        case "retry":
            raise Retry("later", delay="10m")
        case "reject":
            raise Reject("never: password=hunter2")
        case "boom":
            raise KeyError("x")
        case "both":
            await bus.publish(Note(text="first"))
            return Note(text="second")
        case _:
            return None


@pytest.mark.parametrize(
    ("app", "outcome"),
    [
        ("ok", "acked"),
        ("skip", "skipped"),
        ("retry", "retry"),
        ("reject", "rejected"),
        ("noise", "filtered"),
        ("both", "acked"),
    ],
)
async def test_outcomes(app, outcome):
    async with TestBus(judge) as bus:
        (result,) = await bus.send(change(pod(app=app)))
        assert result.outcome == outcome
        assert [note.text for note in bus.of(Note)] == (["first", "second"] if app == "both" else [])
        assert len(bus.dead) == (app == "reject")


async def test_an_exception_reaches_the_test_unless_it_looks_for_it():
    async with TestBus(judge) as bus:
        with pytest.raises(KeyError):
            await bus.send(change(pod(app="boom")))
        (result,) = await bus.send(change(pod(app="boom", version="6")), check=False)
        assert (result.outcome, type(result.error)) == ("failed", KeyError)


async def test_a_dead_letter_says_why_without_secrets():
    async with TestBus(judge) as bus:
        await bus.send(change(pod(app="reject")))
        (letter,) = bus.dead
        text = letter.header_bytes.decode()
        assert "hunter2" not in text
        assert "ipe-dlq-error: Reject" in text
        assert "ipe-dlq-stream: IPE_K8S" in text
        assert f"ipe-dlq-subject: {change(pod()).subject}" in text
        assert letter.body == change(pod(app="reject")).body


async def test_outputs_carry_cause_trace_and_the_same_ids_again():
    ids = []
    for _ in range(2):
        async with TestBus(judge) as bus:
            await bus.send(change(pod(app="both"), hops=3))
            ids.append([message.id for message in bus.published])
            head = bus.published[0].header_bytes.decode()
            assert f"ce-cause: {change(pod()).id}" in head
            assert "ce-hops: 3" in head
            assert "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-" in head
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2


async def test_events_that_handlers_cause_are_followed():
    @handler
    async def answer(note: Note) -> Echo:
        return Echo(text=note.text)

    async with TestBus(judge, answer) as bus:
        results = await bus.send(change(pod(app="both")))
        assert [echo.text for echo in bus.of(Echo)] == ["first", "second"]
        assert [result.handler for result in results] == ["judge", "answer", "answer"]


async def test_handlers_that_cause_each_other_without_end_are_told():
    @handler
    async def ping(note: Note) -> Echo:
        return Echo(text=note.text)

    @handler
    async def pong(echo: Echo) -> Note:
        return Note(text=echo.text)

    async with TestBus(ping, pong) as bus:
        with pytest.raises(AssertionError, match="caused more than"):
            await bus.send(Note(text="x"))


async def test_an_undecodable_event_is_a_dead_letter_at_once():
    @handler(on="ipe.event.*.note")
    async def strict(echo: Echo) -> None: ...

    async with TestBus(strict) as bus:
        (result,) = await bus.send(Note(text="x"), check=False)
        assert result.outcome == "dead"
        assert "note" in str(result.error)


# --- injection -------------------------------------------------------------------------------------------------------------


class Prices:
    def __init__(self) -> None:
        self.closed = False


SHARED = Prices()


@provide
async def prices() -> AsyncIterator[Prices]:
    yield SHARED
    SHARED.closed = True


async def test_provided_things_live_as_long_as_the_process():
    @handler
    async def priced(note: Note, prices: Prices) -> Echo:
        return Echo(text=str(prices.closed))

    async with TestBus(priced) as bus:
        await bus.send(Note(text="x"))
        assert [echo.text for echo in bus.of(Echo)] == ["False"]
    assert SHARED.closed


async def test_timers_state_and_services(fake_clock):
    @handler(name="desk")
    async def remember(note: Note, state: State) -> None:
        await state.update("notes", lambda old: [*old, note.text], default=[])

    @every("30s", name="desk")
    async def remind(state: State, clock: Clock) -> Echo:
        return Echo(text=",".join(await state.get("notes", [])), time=clock.now().isoformat())

    @service("last", name="desk")
    async def last(request: Note, state: State) -> Echo:
        if request.text == "no":
            raise Reject("not that")
        return Echo(text=(await state.get("notes"))[-1])

    async with TestBus(remember, remind, last, clock=fake_clock) as bus:
        await bus.send(Note(text="a"))
        await bus.send(Note(text="b"))
        await bus.send(Note(text="b"))
        await bus.tick(remind)
        fake_clock.advance("30s")
        await bus.tick(remind)
        assert [echo.text for echo in bus.of(Echo)] == ["a,b", "a,b"]
        assert decode(Echo, await bus.ask(last, Note(text="?"))).text == "b"
        with pytest.raises(ServiceError, match="not that"):
            await bus.ask(last, Note(text="no"))


async def test_a_handler_may_not_speak_for_others():
    @handler
    async def forge(note: Note) -> Outcome:
        return Outcome(
            id="1", command="1", handler="x", cluster="c", verb="patch", status=Status.APPLIED, time="2026-01-01T00:00:00Z"
        )

    async with TestBus(forge) as bus:
        with pytest.raises(UsageError, match="belongs to others"):
            await bus.send(Note(text="x"))


async def test_assert_idempotent_tells_a_handler_that_is_not():
    counter = iter(range(10))

    @handler
    async def unsteady(note: Note) -> Echo:
        return Echo(text=str(next(counter)))

    await assert_idempotent(judge, change(pod(app="both")))
    with pytest.raises(AssertionError, match="not idempotent"):
        await assert_idempotent(unsteady, Note(text="x"))


# --- commands --------------------------------------------------------------------------------------------------------------


@handler(on="pods", dry_run=True)
async def act(event: Event[Change], commands: Commands) -> None:
    ref = ObjectRef(group="apps", resource="deployments", namespace="shop", name="cart")
    await commands.annotate(event.payload, {"a": "1", "b": None}, reason="note it", lease="2h")
    await commands.scale(ref, 2, reason="less", dry_run=False, cluster="other")
    await commands.delete(event.payload, reason="gone")


async def test_commands_know_where_why_and_until_when():
    async with TestBus(act) as bus:
        await bus.send(change(pod(), cluster="prod", hops=2))
        annotate, scale, delete = bus.commands
        assert (annotate.cluster, annotate.hops, annotate.dry_run) == ("prod", 3, True)
        assert annotate.lease is not None
        assert (annotate.lease - annotate.issued).total_seconds() == 7200
        assert (scale.cluster, scale.dry_run, scale.precondition.uid) == ("other", False, "")
        assert delete.precondition.uid == change(pod()).uid
        assert len({command.id for command in bus.commands}) == 3
        assert bus.published[1].subject == "ipe.cmd.other.act.scale"


def operations(*args: Any) -> tuple[list[tuple[str, str, Any]], dict[str, Any]]:
    found, values = guarded_patch(*args)
    return [(one.op, one.path, one.value) for one in found], values


def test_a_patch_is_guarded_by_what_was_seen():
    seen = {"spec": {"replicas": 3, "paused": True}, "metadata": {}}
    assert operations(seen, {"/spec/replicas": 5}, {}) == (
        [("test", "/spec/replicas", 3), ("replace", "/spec/replicas", 5)],
        {"/spec/replicas": 3},
    )
    assert operations(seen, {"/spec/paused": None}, {})[0] == [("test", "/spec/paused", True), ("remove", "/spec/paused", None)]
    assert operations(seen, {"/metadata/annotations/a~1b": "x"}, {}) == (
        [("add", "/metadata/annotations", {"a/b": "x"})],
        {"/metadata/annotations/a~1b": None},
    )
    assert operations(None, {"/spec/x": 1}, {"/spec/y": 2}) == (
        [("test", "/spec/y", 2), ("add", "/spec/x", 1)],
        {"/spec/y": 2},
    )
    with pytest.raises(UsageError, match="cannot be removed"):
        guarded_patch(seen, {"/spec/nothing": None}, {})
    with pytest.raises(UsageError, match="without changes"):
        guarded_patch(seen, {}, {})


# --- breaker, join, lanes' keys, masking -------------------------------------------------------------------------------------


def test_failures_across_lanes_pause_and_a_success_resumes():
    breaker = Breaker(lanes=3, first=5, ceiling=60)
    assert [breaker.failed(lane) for lane in ("a", "a", "a", "b")] == [False] * 4
    assert not breaker.succeeded()
    assert [breaker.failed(lane) for lane in ("a", "b", "c")] == [False, False, True]
    assert breaker.probe_after == 5
    assert not breaker.failed("d")
    assert breaker.probe_after == 5  # a call that was at work when the handler was paused is no probe
    breaker.probing()
    assert not breaker.failed("a")
    assert breaker.probe_after == 10
    for _ in range(40):
        breaker.probing()
    assert breaker.probe_after == 60
    assert breaker.succeeded()
    assert not breaker.paused


def at(version: int, verb: str = "modified", name: str = "cart") -> Change:
    return change(pod(name, str(version)), verb=verb)


def test_the_join_resurrects_nothing_and_repeats_nothing():
    join = Join()
    scope = scope_of(at(1))
    assert join.live(at(1))
    join.begin(scope)
    assert join.live(at(7, "deleted"))
    assert not join.item(at(5, "added")), "a deleted object must not rise again"
    assert join.item(at(5, "added", "other"))
    assert not join.item(at(5, "added", "other")), "the same item twice"
    assert not join.live(at(4, "modified", "other")), "contained in the item"
    assert join.live(at(6, "modified", "other"))
    assert join.live(at(6, "modified", "other")), "delivered again: the first time may have failed"
    assert not join.item(at(5, "added", "other")), "overtaken by the live change"
    assert join.open == [scope]
    join.end(scope, "8")
    assert join.open == []
    assert not join.live(at(3, "modified", "other")), "late, but older than the list"
    assert join.live(at(9, "modified", "other"))
    assert join.live(at(2, "modified", "other")), "forgotten: the stream itself keeps the order now"


def test_lane_keys_are_read_from_raw_headers():
    one = change(pod())
    assert lane_key(one.header_bytes) == one.uid.encode()
    assert lane_key(b"NATS/1.0\r\nce-id: abc\r\nce-subject: shop/pods/cart\r\n\r\n") == b"shop/pods/cart"
    assert lane_key(b"NATS/1.0\r\nce-id: abc\r\n\r\n") == b""
    assert lane_key(b"") == b""


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("Authorization: Bearer abc.def", "abc"),
        ("token=s3cr3t&x=1", "s3cr3t"),
        ("https://bob:hunter2@db/x", "hunter2"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig", "eyJ"),
        ("key " + "A" * 44, "AAAA"),
    ],
)
def test_messages_are_masked(text, gone):
    assert gone not in mask(text)
    assert len(mask("word " * 400)) < MAX_MESSAGE + 40
    assert "\n" not in mask("a\nb")
