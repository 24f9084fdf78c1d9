"""The vocabulary: what decorators learn from signatures, and what they refuse at import."""

import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from ipe_events import Backoff, Batch, Change, Clock, Commands, Event, Log, Message, State, every, handler, provide, service
from ipe_events.declaration import Service, Subscription, Timer, declaration_of
from ipe_events.errors import DeclarationError, UsageError
from ipe_events.events import Connected, Disconnected, Finding, Payload
from ipe_events.interest import overlaps, topics_of
from ipe_events.runtime.filters import divide, without_overlaps


class DriftFound(Finding):
    path: str = ""


class Ticket(Payload):
    title: str


def subscription(function: Any) -> Subscription:
    found = declaration_of(function)
    assert isinstance(found, Subscription)
    return found


def test_the_decorator_returns_the_function_unchanged():
    async def page(event: DriftFound) -> Ticket | None:
        return None

    assert handler(page) is page
    found = subscription(page)
    assert (found.name, found.id, found.wrapped) == ("page", "page", False)
    assert found.payloads == (DriftFound,)
    assert found.patterns == ("ipe.finding.*.*.*.drift-found",)
    assert found.outputs == (Ticket,)


def test_options_and_injections():
    @handler(
        on=("deployments.apps", "pods"), clusters="prod-*", latest=True, name="ipe-x", retry=Backoff(attempts=2), timeout="2m"
    )
    async def guard(event: Event[Change], commands: Commands, state: State, clock: Clock, log: Log) -> None: ...

    found = subscription(guard)
    assert (found.name, found.id, found.timeout, found.retry.attempts) == ("ipe-x", "ipe-x-guard", 120.0, 2)
    assert [injection.kind for injection in found.injections] == [Commands, State, Clock, Log]
    assert found.patterns == ("ipe.k8s.*.apps.deployments.*.*.*", "ipe.k8s.*.core.pods.*.*.*")
    assert [str(resource) for resource in found.resources] == ["deployments.apps", "pods"]
    assert found.injects("Commands")


def test_unions_batches_timers_services():
    @handler
    async def both(event: Connected | Disconnected) -> None: ...

    assert subscription(both).patterns == ("ipe.cluster.*.connected", "ipe.cluster.*.disconnected")

    @handler(on="ipe.>", batch=100)
    async def record(events: list[Event[Message]]) -> None: ...

    assert subscription(record).batch == Batch(100)
    assert subscription(record).concurrency == 1

    @every("1m30s")
    async def tick(clock: Clock) -> list[Ticket]: ...  # type: ignore[empty-body]  # never called

    timer = declaration_of(tick)
    assert isinstance(timer, Timer)
    assert (timer.seconds, timer.outputs) == (90.0, (Ticket,))

    @service("open", scope="team-a", name="desk")
    async def open_(request: Event[Ticket], state: State) -> Ticket: ...  # type: ignore[empty-body]  # never called

    served = declaration_of(open_)
    assert isinstance(served, Service)
    assert (served.verb, served.scope, served.request, served.wrapped, served.name) == ("open", "team-a", Ticket, True, "desk")


async def _untyped(event) -> None: ...
async def _unknown(event: Change, database: dict) -> None: ...  # type: ignore[type-arg]  # the point
async def _near(event: Change, commands: "Command") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point
async def _splat(event: Change, **rest: Any) -> None: ...
async def _nothing() -> None: ...
async def _bare(event: Event) -> None: ...  # type: ignore[type-arg]  # the point
async def _foreign(event: dict) -> None: ...  # type: ignore[type-arg]  # the point
async def _returns(event: Change) -> int: ...  # type: ignore[empty-body]  # never called
async def _change(event: Change) -> None: ...
async def _finding(event: Finding) -> None: ...
async def _list(event: list[Change]) -> None: ...
def _sync(event: Change) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (_untyped, {}, ["'event'", "no type"]),
        (_unknown, {"on": "pods"}, ["'database'", "dict", "Commands", "State", "@provide"]),
        (_near, {"on": "pods"}, ["Command", "module level"]),
        (_splat, {"on": "pods"}, ["**rest"]),
        (_nothing, {}, ["takes no event"]),
        (_bare, {}, ["Event of what"]),
        (_foreign, {}, ["'event'", "dict", "no payload"]),
        (_returns, {"on": "pods"}, ["returns int"]),
        (_sync, {"on": "pods"}, ["async def"]),
        (_change, {}, ["Change of what", "deployments.apps"]),
        (_change, {"on": "Deployments"}, ["'Deployments'", "neither a resource nor a topic"]),
        (_change, {"on": "ipe.findings.>"}, ["ipe.findings.>", "did you mean", "ipe.finding."]),
        (_change, {"on": "ipe.finding.>"}, ["carries no Change"]),
        (_finding, {"on": "ipe.outcome.>"}, ["topic outcome", "Finding travels on"]),
        (_finding, {"on": "pods"}, ["brings Change, not Finding"]),
        (_finding, {"on": "ipe..x"}, ["not a subject filter"]),
        (_change, {"on": "pods", "batch": 10}, ["belong together"]),
        (_list, {"on": "pods"}, ["belong together"]),
        (_list, {"on": "pods", "batch": 10, "latest": True}, ["exclude each other"]),
        (_change, {"on": "pods", "start": "yesterday"}, ["'yesterday'", "snapshot"]),
        (_change, {"on": "pods", "start": datetime(2026, 1, 1)}, ["time zone"]),  # noqa: DTZ001 - the point
        (_finding, {"start": "snapshot"}, ["needs a resource"]),
        (_change, {"on": "pods", "concurrency": 0}, ["concurrency=0"]),
        (_change, {"on": "pods", "name": "a b"}, ["'a b'"]),
        (_change, {"on": "pods", "where": "x > 1"}, ["where=", "function"]),
    ],
)
def test_wrong_declarations_fail_at_import(function, options, words):
    with pytest.raises(DeclarationError) as caught:
        handler(**options)(function)
    text = str(caught.value)
    assert function.__name__ in text
    for word in words:
        assert word in text


def test_narrowing_a_topic_without_clusters_is_refused():
    async def ticket(event: Ticket) -> None: ...

    with pytest.raises(DeclarationError, match="names no cluster"):
        handler(clusters="prod")(ticket)


def test_declared_twice_is_refused():
    @handler(on="pods")
    async def once(event: Change) -> None: ...

    with pytest.raises(DeclarationError, match="declared twice"):
        handler(on="pods")(once)


def test_provide_makes_a_type_known():
    class Prices:
        pass

    @provide
    def prices() -> Prices:
        return Prices()

    assert prices().__class__ is Prices
    prices.__annotations__["return"] = Prices
    with pytest.raises(DeclarationError, match="no parameters"):
        provide(_with_parameter)


def _with_parameter(x: int) -> UsageError: ...  # type: ignore[empty-body]  # never called


def test_backoff_grows_to_its_ceiling():
    backoff = Backoff(first=1, factor=3, ceiling=20, jitter=0.5)
    assert [backoff.delay(attempt, 0.0) for attempt in (1, 2, 3, 4, 500)] == [1, 3, 9, 20, 20]
    assert backoff.delay(2, 0.999) == pytest.approx(1.5, abs=0.01)
    with pytest.raises(UsageError):
        Backoff(attempts=0)


# --- filters ---------------------------------------------------------------------------------------------------------------


def filters(**options: Any) -> Any:
    async def f(event: Change) -> None: ...

    return divide(subscription(handler(**options)(f)))


def test_exact_names_filter_on_the_server_globs_in_the_client():
    exact = filters(on="deployments.apps", clusters=("a", "b.c"), namespaces="shop")
    assert exact.streams == {"IPE_K8S": ("ipe.k8s.a.apps.deployments.shop.*.*", "ipe.k8s.b=2Ec.apps.deployments.shop.*.*")}
    assert not exact.on_client
    glob = filters(on="deployments.apps", clusters="prod-*")
    assert glob.streams == {"IPE_K8S": ("ipe.k8s.*.apps.deployments.*.*.*",)}
    assert glob.wants("ipe.k8s.prod-eu.apps.deployments.shop.modified.3")
    assert not glob.wants("ipe.k8s.test-eu.apps.deployments.shop.modified.3")
    assert "prod-*" in glob.describe()["client"]


def test_too_many_filters_move_to_the_client():
    many = filters(on="pods", clusters=[f"c{number}" for number in range(100)])
    assert many.streams == {"IPE_K8S": ("ipe.k8s.*.core.pods.*.*.*",)}
    assert many.wants("ipe.k8s.c7.core.pods.x.added.0")
    assert not many.wants("ipe.k8s.d7.core.pods.x.added.0")


def test_filters_of_one_consumer_never_overlap():
    found = without_overlaps(["ipe.a.*.x", "ipe.a.b.*", "ipe.c.d.e"])
    assert found == ("ipe.a.*.*", "ipe.c.d.e")
    assert not any(overlaps(one, other) for one in found for other in found if one != other)


def test_a_wide_topic_reaches_every_stream_that_carries_it():
    assert {topic.stream for topic in topics_of("ipe.>")} >= {"IPE_K8S", "IPE_GOV", "IPE_CMD"}
    assert [topic.name for topic in topics_of("ipe.outcome.>")] == ["outcome"]


# --- imports ---------------------------------------------------------------------------------------------------------------


def test_the_vocabulary_loads_no_machinery():
    code = (
        "import sys; from ipe_events import Change, Commands, Event, Retry, State, every, handler, service\n"
        "heavy = {'nats', 'aiohttp', 'kubernetes_asyncio', 'opentelemetry', 'structlog', 'nkeys'}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_plugin_imports_nothing_of_the_kit():
    code = "import sys, ipe_events.testing.plugin; print([n for n in sys.modules if n.startswith('ipe_events.') or n == 'nats'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ipe_events.testing', 'ipe_events.testing.plugin']"


def test_public_names_resolve_and_are_sorted():
    import ipe_events

    assert list(ipe_events.__all__) == sorted(ipe_events.__all__, key=lambda name: (name.islower(), name))
    assert all(getattr(ipe_events, name) is not None for name in ipe_events.__all__)
    with pytest.raises(AttributeError):
        _ = ipe_events.nothing


def test_importing_the_submodule_leaves_the_decorator():
    code = "import ipe_events.handler; from ipe_events import handler; print(handler.__name__, callable(handler))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["handler", "True"]
