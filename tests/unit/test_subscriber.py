"""What a subscriber makes of deliveries, without a bus."""

from types import SimpleNamespace
from typing import Any

from ipe_events import Change, handler
from ipe_events.declaration import ATTRIBUTE
from ipe_events.runtime.filters import divide
from ipe_events.runtime.subscriber import Subscriber
from ipe_events.runtime.work import Work
from ipe_events.testing import change

POD: dict[str, Any] = {
    "kind": "Pod",
    "apiVersion": "v1",
    "metadata": {"name": "cart", "namespace": "shop", "resourceVersion": "5"},
}


@handler(on="pods")
async def watch(pod: Change) -> None: ...


async def test_what_a_full_lane_declined_has_not_been_tried(monkeypatch):
    declared = getattr(watch, ATTRIBUTE)
    unused: Any = None
    subscriber = Subscriber(declared, divide(declared), unused, unused)
    full = [True, True, False]
    taken: list[int] = []
    delays: list[float] = []

    def put(_key: bytes | str, work: Work) -> bool:
        taken.append(work.attempt)
        return not full.pop(0)

    monkeypatch.setattr(subscriber.lanes, "put", put)
    event = change(POD)
    for deliveries in (1, 2, 3):
        delivery: Any = SimpleNamespace(
            subject=event.subject,
            header_bytes=event.header_bytes,
            body=event.body,
            stream="IPE_K8S",
            seq=7,
            deliveries=deliveries,
            nak=delays.append,
        )
        subscriber.receive(delivery)
    assert taken == [1, 1, 1]
    assert len(delays) == 2
