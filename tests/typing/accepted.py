"""What a user may write; mypy must accept every line (see test_typing.py)."""

from collections.abc import AsyncIterator
from typing import assert_type

from ipe_events import Backoff, Change, Commands, Event, Message, State, every, handler, provide, service
from ipe_events.events import Command, Finding, Payload
from ipe_events.events.change import Metadata


class Ticket(Payload):
    title: str


@handler
async def page(event: Finding) -> Ticket | None:
    assert_type(event.cluster, str)
    return None


@handler(
    on="deployments.apps", clusters="prod-*", where=lambda change: change.name != "x", retry=Backoff(attempts=2), latest=True
)
async def guard(event: Event[Change], commands: Commands, state: State) -> list[Ticket]:
    assert_type(event.payload, Change)
    assert_type(event.payload.metadata, Metadata)
    assert_type(event.payload.labels, dict[str, str])
    assert_type(event.meta.attempt, int)
    assert_type(await commands.patch(event.payload, {"/spec/replicas": 1}, reason="r"), Command)
    return []


@handler(on="ipe.>", batch=10)
async def record(events: list[Event[Message]]) -> None: ...


@every("30s")
async def tick(state: State) -> Ticket | None: ...


@service("list")
async def tickets(request: Ticket) -> AsyncIterator[Ticket]:
    yield request


@provide
def prices() -> dict[str, float]:
    return {}


async def unchanged(finding: Finding) -> None:
    assert_type(await page(finding), Ticket | None)
