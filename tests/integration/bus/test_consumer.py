"""The consumer over everything that can happen to it; each test compares the set of ids."""

import asyncio
from collections import Counter

import pytest

from ipe_events.bus.connection import Bus
from ipe_events.bus.consumer import Consumer, ConsumerEvent, ConsumerSpec, Delivery
from ipe_events.errors import BusNotFound, UsageError
from tests.helpers import eventually
from tests.integration.bus.helpers import make_stream
from tests.nats import NatsServer


class Reader:
    """Takes deliveries and acknowledges them, unless told to hold them."""

    def __init__(self) -> None:
        self.ids: Counter[str] = Counter()
        self.held: list[Delivery] = []
        self.hold = False
        self.gaps: list[tuple[int, int]] = []
        self.events: list[ConsumerEvent] = []

    def __call__(self, delivery: Delivery) -> None:
        self.ids[delivery.headers["Nats-Msg-Id"]] += 1
        if self.hold:
            self.held.append(delivery)
        else:
            delivery.ack()

    async def start(self, bus: Bus, spec: ConsumerSpec) -> Consumer:
        return await Consumer.start(
            bus, spec, self, on_gap=lambda first, last: self.gaps.append((first, last)), on_event=self.events.append
        )


async def publish(bus: Bus, first: int, last: int, subject: str = "s.a") -> set[str]:
    ids = {str(number) for number in range(first, last)}
    await asyncio.gather(*(bus.publish(subject, b"x", id=number, timeout=30) for number in sorted(ids, key=int)))
    return ids


async def test_everything_arrives_over_a_sigkill_with_acks_outstanding(bus: Bus, nats_server: NatsServer):
    await make_stream(bus, "S", "s.>")
    reader = Reader()
    consumer = await reader.start(bus, ConsumerSpec("S", "c", start="all", ack_wait=2))
    wanted = await publish(bus, 0, 300)
    await eventually(lambda: set(reader.ids) == wanted)
    reader.hold = True
    wanted |= await publish(bus, 300, 400)
    await eventually(lambda: set(reader.ids) == wanted)
    nats_server.kill()
    reader.hold = False
    nats_server.restart()
    wanted |= await publish(bus, 400, 600)
    await eventually(lambda: set(reader.ids) == wanted, timeout=20)
    assert consumer.bus is bus
    # the held ones come again, because nobody acknowledged them
    await eventually(lambda: all(reader.ids[str(number)] > 1 for number in range(300, 400)), timeout=20)
    await eventually(lambda: consumer.unsettled == 0, timeout=20)

    async def nothing_left() -> bool:
        info = await consumer.info()
        return bool(info["num_pending"] == 0 and info["num_ack_pending"] == 0)

    await eventually(nothing_left, timeout=20)
    assert reader.gaps == []
    await consumer.stop()


async def test_a_deleted_consumer_is_made_again_after_the_last_settled_message(bus: Bus):
    await make_stream(bus, "S", "s.>")
    reader = Reader()
    consumer = await reader.start(bus, ConsumerSpec("S", "c", start="new"))
    wanted = await publish(bus, 0, 50)
    await eventually(lambda: set(reader.ids) == wanted)
    await eventually(lambda: consumer.settled_up_to == 50)
    reader.hold = True
    held = await publish(bus, 50, 60)
    await eventually(lambda: len(reader.held) == 10)
    reader.held[3].ack()
    reader.hold = False
    await bus.js_api("CONSUMER.DELETE.S.c")
    later = await publish(bus, 60, 70)
    await eventually(lambda: set(reader.ids) == wanted | held | later)
    # what was settled is not repeated, what was not is
    assert {name for name, count in reader.ids.items() if count > 1} == held
    assert [event.detail for event in reader.events if event.kind == "recreated"] == [
        "somebody deleted it; made again at stream sequence 51"
    ]
    assert consumer.settled_up_to == 70
    await consumer.stop()


async def test_what_retention_removes_before_we_come_back_is_a_gap(bus: Bus):
    await make_stream(bus, "S", "s.>", max_msgs=100, discard="old")
    reader = Reader()
    consumer = await reader.start(bus, ConsumerSpec("S", "c", start="all"))
    first = await publish(bus, 0, 50)
    await eventually(lambda: set(reader.ids) == first and consumer.unsettled == 0)
    await consumer.stop()
    await publish(bus, 50, 250)
    consumer = await reader.start(bus, ConsumerSpec("S", "c", start="all"))
    assert reader.gaps == [(51, 150)]
    await eventually(lambda: set(reader.ids) == first | {str(number) for number in range(150, 250)})
    assert consumer.position == 250
    await consumer.stop()


async def test_what_retention_removes_while_we_are_slow_is_a_gap(bus: Bus):
    await make_stream(bus, "S", "s.>", max_msgs=100, discard="old")
    reader = Reader()
    reader.hold = True
    consumer = await reader.start(bus, ConsumerSpec("S", "c", start="all", max_ack_pending=10, batch=10))
    ids = await publish(bus, 0, 300)
    await eventually(lambda: len(reader.held) >= 10)  # more when the stream drops one that we hold
    reader.hold = False
    for delivery in reader.held:
        delivery.ack()
    await eventually(lambda: consumer.position == 300 and consumer.unsettled == 0)

    def covered() -> set[str]:  # message ids count from 0, sequences from 1
        return {str(seq - 1) for first, last in reader.gaps for seq in range(first, last + 1)}

    await eventually(lambda: ids == set(reader.ids) | covered(), timeout=15)
    assert len(reader.ids) >= 100
    assert ids > set(reader.ids)
    await consumer.stop()


async def test_a_filter_that_seldom_matches_is_no_gap(bus: Bus):
    await make_stream(bus, "S", "s.>", max_msgs=50, discard="old")
    reader = Reader()
    consumer = await reader.start(bus, ConsumerSpec("S", "c", filters=("s.a",), start="all"))
    await publish(bus, 0, 40, "s.b")
    await publish(bus, 40, 41, "s.a")
    await eventually(lambda: set(reader.ids) == {"40"})
    await consumer._check_retention()
    assert consumer.position == 41
    await publish(bus, 41, 81, "s.b")
    await consumer._check_retention()
    await publish(bus, 81, 121, "s.b")
    await publish(bus, 121, 122, "s.a")
    await eventually(lambda: set(reader.ids) == {"40", "121"})
    await consumer._check_retention()
    assert reader.gaps == []
    await consumer.stop()


async def test_a_stream_made_anew_is_a_gap_and_read_from_its_start(bus: Bus):
    await make_stream(bus, "S", "s.>")
    reader = Reader()
    consumer = await reader.start(bus, ConsumerSpec("S", "c", start="all"))
    await publish(bus, 0, 20)
    await eventually(lambda: consumer.settled_up_to == 20)
    await bus.js_api("STREAM.DELETE.S")
    await make_stream(bus, "S", "s.>")
    later = await publish(bus, 20, 45)  # beyond the old position: its age tells the new stream, not its length
    await eventually(lambda: later <= set(reader.ids))
    assert reader.gaps == [(21, 21)]
    await consumer.stop()


async def test_pause_bounds_what_arrives(bus: Bus):
    await make_stream(bus, "S", "s.>")
    reader = Reader()
    consumer = await reader.start(bus, ConsumerSpec("S", "c", start="all", batch=16))
    consumer.pause()
    wanted = await publish(bus, 0, 200)
    await bus.flush()
    assert len(reader.ids) <= 16
    consumer.resume()
    await eventually(lambda: set(reader.ids) == wanted)
    await consumer.stop()


async def test_a_relay_of_consumers_under_load_waits_for_no_ack_wait(bus: Bus):
    await make_stream(bus, "S", "s.>")
    seen: set[str] = set()
    again = 0

    def take(delivery: Delivery) -> None:
        nonlocal again
        seen.add(delivery.headers["Nats-Msg-Id"])
        again += delivery.deliveries > 1
        delivery.ack()

    spec = ConsumerSpec("S", "c", start="all", ack_wait=300, batch=64)
    publishing = asyncio.create_task(publish(bus, 0, 2_000))
    for _ in range(10):
        consumer = await Consumer.start(bus, spec, take)
        goal = min(2_000, len(seen) + 100)
        await eventually(lambda: len(seen) >= goal, interval=0.001)  # noqa: B023 - awaited in this turn of the loop
        await consumer.stop()
    last = await Consumer.start(bus, spec, take)
    wanted = await publishing
    await eventually(lambda: seen == wanted)
    await last.stop()
    assert again, "no message was ever under way: the test has shown nothing"


async def test_nak_term_and_in_progress(bus: Bus):
    await make_stream(bus, "S", "s.>")
    attempts: list[int] = []
    terminated: list[int] = []

    def take(delivery: Delivery) -> None:
        if delivery.subject == "s.bad":
            terminated.append(delivery.seq)
            delivery.term("cannot be parsed")
        elif delivery.deliveries < 3:
            attempts.append(delivery.deliveries)
            delivery.in_progress()
            delivery.nak(0.01)
        else:
            attempts.append(delivery.deliveries)
            delivery.ack()

    consumer = await Consumer.start(bus, ConsumerSpec("S", "c", start="all"), take)
    await bus.publish("s.a", b"")
    await bus.publish("s.bad", b"")
    await eventually(lambda: attempts == [1, 2, 3] and terminated == [2])
    assert consumer.unsettled == 0
    await consumer.stop()


async def test_ack_sync_is_known_to_the_server(bus: Bus):
    await make_stream(bus, "S", "s.>")
    reader = Reader()
    reader.hold = True
    consumer = await reader.start(bus, ConsumerSpec("S", "c", start="all"))
    await publish(bus, 0, 1)
    await eventually(lambda: reader.held)
    await reader.held[0].ack_sync()
    assert (await consumer.info())["num_ack_pending"] == 0
    assert consumer.unsettled == 0
    await consumer.stop()


async def test_settings_of_an_existing_durable_follow_and_its_place_stays(bus: Bus):
    await make_stream(bus, "S", "s.>")
    reader = Reader()
    await publish(bus, 0, 10)
    consumer = await reader.start(bus, ConsumerSpec("S", "c", filters=("s.a",), start="all"))
    await eventually(lambda: len(reader.ids) == 10)
    await consumer.stop()
    spec = ConsumerSpec("S", "c", filters=("s.a", "s.b"), start="new", max_ack_pending=7)
    consumer = await reader.start(bus, spec)
    await publish(bus, 10, 12, "s.b")
    await eventually(lambda: len(reader.ids) == 12)
    config = (await consumer.info())["config"]
    assert (config["filter_subjects"], config["max_ack_pending"]) == (["s.a", "s.b"], 7)
    assert max(reader.ids.values()) == 1
    await consumer.stop()


async def test_missing_stream_and_bad_names_are_said(bus: Bus):
    with pytest.raises(BusNotFound, match="stream not found"):
        await Consumer.start(bus, ConsumerSpec("NONE", "c"), lambda _d: None)
    with pytest.raises(UsageError, match=r"consumer name 'a\.b'"):
        ConsumerSpec("S", "a.b")


async def test_a_callback_that_raises_does_not_end_the_connection(bus: Bus):
    await make_stream(bus, "S", "s.>")
    seen = 0

    def take(delivery: Delivery) -> None:
        nonlocal seen
        seen += 1
        delivery.ack()
        if delivery.seq == 1:
            raise ValueError("a bug in the callback")

    consumer = await Consumer.start(bus, ConsumerSpec("S", "c", start="all"), take)
    await publish(bus, 0, 5)
    await eventually(lambda: seen == 5)
    await consumer.stop()
