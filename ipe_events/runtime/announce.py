"""Handlers tell what they need, and are told what nobody collects."""

from collections.abc import Sequence
from typing import Any

from ipe_events.clock import Clock
from ipe_events.declaration import Declared, Service, Subscription
from ipe_events.events.codec import encode
from ipe_events.events.command import VERBS
from ipe_events.events.needs import Unmet, unmet
from ipe_events.events.registry import HandlerDeclaration
from ipe_events.runtime.agents import Agents
from ipe_events.runtime.filters import divide
from ipe_events.runtime.port import Port
from ipe_events.subjects import COMMAND, EVENT, FINDING, SERVICE, escape

HANDLERS_BUCKET = "ipe_handlers"


def declarations(declared: Sequence[Declared], clock: Clock) -> list[HandlerDeclaration]:
    """One document per handler name: its functions' needs together."""
    by_name: dict[str, list[Declared]] = {}
    for one in declared:
        by_name.setdefault(one.name, []).append(one)
    return [_together(name, functions, clock) for name, functions in sorted(by_name.items())]


async def announce(port: Port, declared: Sequence[Declared], clock: Clock) -> None:
    """Put the declarations where agents look.

    Raises:
        BusError: they cannot be stored.
    """
    bucket = await port.kv(HANDLERS_BUCKET, create=True)
    for document in declarations(declared, clock):
        await bucket.put(escape(document.handler), encode(document))


async def unmet_needs(port: Port, declared: Sequence[Declared]) -> list[tuple[Subscription, Unmet]]:
    """What subscriptions ask for and some agent does not collect."""
    agents = await Agents(port, "runtime").known()
    subscriptions = [one for one in declared if isinstance(one, Subscription)]
    return [(one, each) for one in subscriptions for each in unmet([*map(str, one.resources)], one.clusters, agents)]


def _together(name: str, functions: Sequence[Declared], clock: Clock) -> HandlerDeclaration:
    found: dict[str, set[str]] = {"subjects": set(), "resources": set(), "clusters": set(), "outputs": set(), "services": set()}
    all_clusters, commands = False, False
    for function in functions:
        commands = commands or function.injects("Commands")
        for output in function.outputs:
            topic: Any = output.topic
            found["outputs"].add(
                topic.filter(handler=name, type=output.type_name) if topic in {EVENT, FINDING} else topic.wildcard
            )
        if isinstance(function, Service):
            subject = SERVICE.filter(service=name, scope=None if function.scope == "*" else function.scope, verb=function.verb)
            found["services"].add(subject)
        if isinstance(function, Subscription):
            found["subjects"].update(pattern for patterns in divide(function).streams.values() for pattern in patterns)
            found["resources"].update(map(str, function.resources))
            found["clusters"].update(function.clusters)
            all_clusters = all_clusters or not function.clusters
    if commands:
        found["outputs"].add(COMMAND.filter(handler=name))
    if all_clusters:
        found["clusters"].clear()
    return HandlerDeclaration(
        handler=name,
        **{field: tuple(sorted(values)) for field, values in found.items()},
        snapshots=any(isinstance(one, Subscription) and one.start == "snapshot" for one in functions),
        commands=VERBS if commands else (),
        time=clock.now(),
    )
