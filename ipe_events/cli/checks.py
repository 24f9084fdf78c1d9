"""The checks of ``ipe doctor``: each looks at one thing and gives findings.

``examine`` runs them in order: first the bus, since everything else is asked over it, then what runs on the bus, then, if a
kubeconfig was given, that cluster with those credentials. A check never raises for what it checks: an error of ours is a finding.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ipe_events.cli.clusters import load as load_clusters
from ipe_events.cli.common import Session
from ipe_events.clock import SYSTEM
from ipe_events.durations import ago
from ipe_events.errors import IpeError, KubeUnauthorized, SchemaError
from ipe_events.subjects import CHANGE, DLQ

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus
    from ipe_events.events.registry import AgentStatus, HandlerDeclaration

Status = Literal["ok", "warning", "failed", "skipped"]

MAX_SKEW = 5.0
"""Seconds by which the clocks of this machine and of NATS or a cluster may differ."""
MAX_LAG = 10_000
"""Messages that may wait for a consumer before it is worth a warning."""
READ_VERBS = ("get", "list", "watch")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        check: what was looked at.
        status: ``ok``, ``warning`` (works, but look at it), ``failed`` or ``skipped``.
        detail: what was found, with values.
        fix: what to do; empty when nothing is wrong.
        number: its place in the list, from 1.
    """

    check: str
    status: Status
    detail: str
    fix: str = ""
    number: int = 0


async def examine(session: Session, *, kubeconfig: Path | None, kube_context: str) -> list[Finding]:
    """All findings, numbered."""
    session.configure_log()
    found = [finding async for finding in _all(session, kubeconfig, kube_context)]
    return [replace(finding, number=number) for number, finding in enumerate(found, start=1)]


async def _all(session: Session, kubeconfig: Path | None, kube_context: str) -> AsyncIterator[Finding]:
    from ipe_events.bus.connection import Bus

    bus: Bus | None = None
    try:
        settings = replace(session.bus_settings(), connect_timeout=session.timeout)
        bus = await Bus.connect(settings, name="ipe-doctor")
    except IpeError as error:
        yield _failed("NATS reachable", error)
        for check, _ in _BUS_CHECKS:
            yield Finding(check, "skipped", "needs NATS")
    if bus is not None:
        async with bus:
            yield Finding("NATS reachable", "ok", f"{', '.join(settings.servers)} as {bus.identity}")
            yield Finding("NATS version and JetStream", "ok", f"nats-server {_version(bus)}, JetStream on")
            for check, look in _BUS_CHECKS:
                for finding in await _guarded(check, look(bus)):
                    yield finding
    if kubeconfig is not None:
        for finding in await _guarded("cluster", _cluster(kubeconfig, kube_context)):
            yield finding


def _version(bus: "Bus") -> str:
    found = bus.client.connected_server_version
    return f"{found.major}.{found.minor}.{found.patch}"


async def _guarded(check: str, look: Awaitable[list[Finding]]) -> list[Finding]:
    """A check's findings; an error of ours is one."""
    try:
        return await look
    except IpeError as error:
        return [_failed(check, error)]


def _failed(check: str, error: IpeError) -> Finding:
    return Finding(check, "failed", f"{error.where}: {error.message}" if error.where else error.message, error.fix)


# --- the bus -------------------------------------------------------------------------------------------------------------


async def _topology(bus: "Bus") -> list[Finding]:
    from ipe_events.bus import topology

    plan = await topology.plan(bus)
    if not plan.steps:
        return [Finding("streams and buckets", "ok", f"all {len(plan.unchanged)} as they should be")]
    missing = [step.asset.name for step in plan.steps if step.action == "create"]
    differ = [step.asset.name for step in plan.steps if step.action != "create"]
    said = [f"{word}: {', '.join(names)}" for word, names in (("missing", missing), ("different", differ)) if names]
    status: Status = "failed" if missing else "warning"
    return [Finding("streams and buckets", status, "; ".join(said), "`ipe bus plan`, then `ipe bus apply`")]


async def _limits(bus: "Bus") -> list[Finding]:
    from ipe_events.bus import topology

    alarms = await topology.check_limits(bus)
    if not alarms:
        return [Finding("limits", "ok", f"every stream below {topology.ALARM:.0%} of its limits")]
    return [
        Finding(
            "limits",
            "warning",
            f"{alarm.stream} is at {alarm.share:.0%} of {alarm.limit} ({alarm.used} of {alarm.allowed}); the oldest messages go",
            "raise the limit in the topology's settings and `ipe bus apply -f`",
        )
        for alarm in alarms
    ]


async def _clock(bus: "Bus") -> list[Finding]:
    info = await bus.stream_info("IPE_GOV")
    return [_skew("clock", _time(info["ts"]), "NATS")] if info.get("ts") else [Finding("clock", "skipped", "NATS tells no time")]


def _skew(check: str, theirs: datetime, who: str) -> Finding:
    seconds = (SYSTEM.now() - theirs).total_seconds()
    if abs(seconds) <= MAX_SKEW:
        return Finding(check, "ok", f"within {max(abs(seconds), 0.1):.1f} s of {who}")
    fix = "synchronise the clocks (NTP); expiries and Leases depend on them"
    return Finding(check, "failed", f"{seconds:+.1f} s against {who}", fix)


def _time(text: str) -> datetime:
    """An RFC 3339 time whose fraction may have nine digits."""
    head, dot, rest = text.partition(".")
    digits = rest.rstrip("Z")
    return datetime.fromisoformat(f"{head}.{digits[:6]:0<6}+00:00" if dot else text)


async def _agents(bus: "Bus") -> list[Finding]:
    clusters, unreadable = await load_clusters(bus, SYSTEM.now())
    found = [
        Finding("agents", "failed", f"status {key!r} cannot be read", "upgrade ipe, or restart that agent") for key in unreadable
    ]
    if not clusters and not found:
        return [Finding("agents", "warning", "no agent has ever reported a cluster", "start one with `ipe agent run`")]
    for cluster in clusters:
        check = f"agent of {cluster.status.cluster}"
        if cluster.state == "silent":
            fix = "start it again; `ipe clusters remove` when it is gone for good"
            found.append(Finding(check, "failed", f"silent for {ago(cluster.age)}", fix))
        elif cluster.state == "disconnected":
            detail = f"disconnected {ago(cluster.age)} ago: its agent was stopped, or its API server does not answer"
            found.append(Finding(check, "failed", detail, "start the agent again, or look at its log"))
        else:
            found.append(
                Finding(check, "ok", f"{cluster.state}, seen {ago(cluster.age)} ago, {cluster.watched} resources watched")
            )
        for resource, why in cluster.troubles.items():
            fix = "look at the agent's log"
            if cluster.status.lacks(resource):
                fix = "correct its name in `collect.resources` or in the handler that asks for it (`ipe handlers list`)"
            elif why.startswith("refused"):
                fix = "give its service account what `ipe rbac agent` prints"
            found.append(Finding(check, "failed" if why.startswith("refused") else "warning", f"{resource} {why}", fix))
    return found


async def _handlers(bus: "Bus") -> list[Finding]:
    from ipe_events.events.registry import read_declaration

    agents = [one.status for one in (await load_clusters(bus, SYSTEM.now()))[0]]
    bucket = await bus.kv("ipe_handlers")
    found: list[Finding] = []
    async for entry in bucket.entries():
        try:
            declared = read_declaration(entry.key, entry.value)
        except SchemaError as error:
            found.append(Finding("handlers", "failed", f"declaration {entry.key!r}: {error}", "restart that handler"))
            continue
        found += _needs(declared, agents)
    return found or [Finding("handlers", "ok", "none has declared itself yet")]


def _needs(declared: "HandlerDeclaration", agents: "list[AgentStatus]") -> list[Finding]:
    """Whether what a handler asks for is collected somewhere where it wants it; where it is not is told of each agent."""
    from ipe_events.events.needs import served, unmet

    check, found = f"handler {declared.handler}", []
    for each in unmet(declared.resources, declared.clusters, agents):
        if each.everywhere:
            gone = f"`ipe handlers remove {declared.handler}` if it is gone for good; else " if each.unknown else ""
            found.append(Finding(check, "failed", each.problem, gone + each.fix))
    clusters = len(served(declared.clusters, agents))
    return found or [Finding(check, "ok", f"all it asks for is collected, in {clusters} cluster{'s' * (clusters != 1)}")]


async def _consumers(bus: "Bus") -> list[Finding]:
    from ipe_events.cli.reading import durables, streams_of

    late: list[Finding] = []
    total = 0
    streams = [stream for base in (CHANGE.stream, "IPE_GOV", "IPE_CMD") for stream in await streams_of(bus, base)]
    async for stream, info in durables(bus, streams):
        total += 1
        waiting = int(info.get("num_pending", 0))
        if waiting > MAX_LAG:
            detail = f"{stream}/{info['name']} is {waiting} messages behind"
            late.append(Finding("consumers", "warning", detail, "is its handler running and fast enough?"))
    return late or [Finding("consumers", "ok", f"{total} durable, none more than {MAX_LAG} messages behind")]


async def _dead_letters(bus: "Bus") -> list[Finding]:
    waiting = int((await bus.stream_info(DLQ.stream))["state"]["messages"])
    if not waiting:
        return [Finding("dead letters", "ok", "none")]
    return [Finding("dead letters", "warning", f"{waiting} kept", "`ipe dlq list`, then `ipe dlq replay REF`")]


_BUS_CHECKS: tuple[tuple[str, Callable[["Bus"], Awaitable[list[Finding]]]], ...] = (
    ("streams and buckets", _topology),
    ("limits", _limits),
    ("clock", _clock),
    ("agents", _agents),
    ("handlers", _handlers),
    ("consumers", _consumers),
    ("dead letters", _dead_letters),
)


# --- a cluster -----------------------------------------------------------------------------------------------------------

_RESOURCES = (("apps", "deployments"), ("apps", "statefulsets"), ("batch", "cronjobs"), ("", "pods"), ("", "namespaces"))
"""What most handlers ask for; `ipe rbac agent` derives the exact list from a configuration."""


async def _cluster(kubeconfig: Path, context: str) -> list[Finding]:
    from ipe_events.kube.config import ClusterSource
    from ipe_events.kube.session import KubeSession

    source = ClusterSource(name=context or "cluster", kubeconfig=str(kubeconfig), context=context or None)
    session = await KubeSession.open(source)
    try:
        try:
            answer = await session.request("GET", "/version")
        except KubeUnauthorized as error:
            detail = f"{error.where}: {error.message}"
            return [Finding("cluster", "failed", detail, f"the credentials in {kubeconfig} are not accepted: renew them")]
        version = await session.json("GET", "/version")
        found = [Finding("cluster reachable", "ok", f"Kubernetes {version.get('gitVersion', 'of unknown version')}")]
        date = {name.lower(): value for name, value in answer.headers.items()}.get("date")
        if date:
            found.append(_skew("cluster clock", parsedate_to_datetime(date), "the API server"))
        for group, resource in _RESOURCES:
            found.append(await _rights(session, group, resource))
        return found
    finally:
        await session.close()


async def _rights(session: "object", group: str, resource: str) -> Finding:
    """Which read verbs these credentials have, as the API server itself says."""
    import orjson

    from ipe_events.kube.session import KubeSession

    assert isinstance(session, KubeSession)
    name = f"{resource}.{group}" if group else resource
    refused = []
    for verb in READ_VERBS:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"group": group, "resource": resource, "verb": verb}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        headers = {"Content-Type": "application/json"}
        answer = orjson.loads((await session.request("POST", path, body=orjson.dumps(review), headers=headers)).body)
        if not answer.get("status", {}).get("allowed"):
            refused.append(verb)
    if refused:
        detail = f"{name}: these credentials may not {', '.join(refused)}"
        return Finding("cluster rights", "failed", detail, f"kubectl apply what `ipe rbac agent --collect {name}` prints")
    return Finding("cluster rights", "ok", f"{name}: {', '.join(READ_VERBS)}")
