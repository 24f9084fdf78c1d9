"""The bus' streams, buckets and object stores as data, the difference to what there is, and the way from one to the other.

``desired`` gives what the settings ask for; its subjects come from ``ipe_events.subjects`` alone. ``plan`` reads the server and
compares field by field, reading only: what we do not know of is left alone. ``apply`` does what the plan says, and refuses
changes that lose messages (a shorter retention, a smaller limit, a subject less, a deletion) unless that is allowed.

Every stream keeps by limits and discards the old: a work queue would lock out every second reader, and refusing new changes would
stop the agents. What a reader loses by that is said by ``ipe_events.bus.consumer`` (a gap) and, at 80 % of a limit, by
``check_limits``. The window in which a message id is remembered must outlast the worst replay (an agent that was away lists
everything again); it costs about 250 bytes of the server's memory per message in it, so it is a setting.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ipe_events.bus.kv import bucket_config
from ipe_events.bus.size import binary
from ipe_events.durations import ago
from ipe_events.errors import BusNotFound, TopologyError
from ipe_events.subjects import CHANGE, TOPICS

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
GIB = 1 << 30

ALARM = 0.8
"""Share of a limit from which ``check_limits`` reports a stream."""

CHANGES = "IPE_K8S"
"""Name of the stream of changes, and the prefix of its shards."""


class StreamLimits(BaseModel):
    """What one stream keeps.

    Attributes:
        hours: age at which messages go.
        gib: size from which the oldest go; None: no limit but the disk's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: float = Field(gt=0)
    gib: float | None = Field(default=None, gt=0)


DEFAULT_LIMITS: Mapping[str, StreamLimits] = {
    "IPE_K8S": StreamLimits(hours=72, gib=50),
    "IPE_GOV": StreamLimits(hours=30 * 24, gib=10),
    "IPE_CMD": StreamLimits(hours=7 * 24, gib=2),
    "IPE_DLQ": StreamLimits(hours=30 * 24, gib=5),
    "IPE_APIAUDIT": StreamLimits(hours=24, gib=10),
    "IPE_METRICS": StreamLimits(hours=24, gib=5),
    "IPE_SNAP": StreamLimits(hours=1, gib=10),
    "IPE_AUDIT": StreamLimits(hours=7 * 24, gib=20),
}
"""What each stream keeps unless the settings say otherwise."""

_DOCS = {
    "IPE_K8S": "Changes of Kubernetes objects.",
    "IPE_GOV": "Findings, outcomes, acts, cluster events and what handlers return.",
    "IPE_CMD": "Commands to the clusters' agents.",
    "IPE_DLQ": "Messages that handlers gave up on.",
    "IPE_APIAUDIT": "Audit events of Kubernetes API servers.",
    "IPE_METRICS": "Usage samples.",
    "IPE_SNAP": "Snapshot items on their way to one handler.",
    "IPE_AUDIT": "Audit records, a copy for tailing and standbys.",
}


class TopologySettings(BaseModel):
    """What can be set about the topology.

    Attributes:
        replicas: copies of every stream and bucket, 1, 3 or 5.
        limits: stream → what it keeps, instead of the default; a shard's limits by its own name, else those of ``IPE_K8S``.
        dedup_minutes: how long message ids of changes are remembered.
        shards: shard name → clusters whose changes get a stream ``IPE_K8S_<shard>`` of their own; all others stay in ``IPE_K8S``,
            which then needs ``clusters``.
        clusters: with shards, the clusters that ``IPE_K8S`` keeps; NATS has no "all others".
        claim_hours: how long a claimed command id is remembered; longer than any command's expiry.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: Literal[1, 3, 5] = 1
    limits: dict[str, StreamLimits] = Field(default_factory=dict)
    dedup_minutes: float = Field(default=10, ge=2, le=24 * 60)
    shards: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    clusters: tuple[str, ...] = ()
    claim_hours: float = Field(default=7 * 24, ge=24)

    @classmethod
    def for_disk(cls, free_bytes: int) -> Self:
        """Settings for one machine: the default limits, smaller in proportion where they exceed half of the free disk."""
        whole = sum(limits.gib or 0 for limits in DEFAULT_LIMITS.values()) * GIB
        factor = min(1.0, free_bytes / 2 / whole)
        return cls(
            limits={
                name: StreamLimits(hours=limits.hours, gib=round(limits.gib * factor, 3) if limits.gib else None)
                for name, limits in DEFAULT_LIMITS.items()
            }
        )

    @field_validator("shards")
    @classmethod
    def _disjoint(cls, shards: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        seen: dict[str, str] = {}
        for shard, clusters in shards.items():
            if not shard.replace("-", "").replace("_", "").isalnum() or not shard.isascii():
                raise ValueError(f"shard name {shard!r} holds a character that NATS does not take")
            if not clusters:
                raise ValueError(f"shard {shard!r} has no clusters")
            for cluster in clusters:
                if cluster in seen:
                    raise ValueError(f"cluster {cluster!r} is in the shards {seen[cluster]!r} and {shard!r}")
                seen[cluster] = shard
        return shards


@dataclass(frozen=True, slots=True)
class Asset:
    """A stream, bucket or object store that should exist.

    Attributes:
        kind: what it is.
        name: how people call it (a bucket without ``KV_``).
        config: the configuration of its stream, as JetStream's API takes it.
    """

    kind: Literal["stream", "bucket", "objects"]
    name: str
    config: Mapping[str, Any]

    @property
    def stream(self) -> str:
        """Its stream's name."""
        return str(self.config["name"])


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a configuration that differs; destructive when the change loses messages or is refused by NATS."""

    field: str
    old: Any
    new: Any
    destructive: bool

    def __str__(self) -> str:
        return f"{self.field} {_figure(self.field, self.old)} → {_figure(self.field, self.new)}"


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with one asset: create it, change fields of it, or delete it (a shard that is no longer wanted)."""

    action: Literal["create", "change", "delete"]
    asset: Asset
    changes: tuple[FieldChange, ...] = ()
    messages: int = 0

    @property
    def destructive(self) -> bool:
        """Whether the step loses messages."""
        return self.action == "delete" or any(change.destructive for change in self.changes)


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference between what should be and what is.

    Attributes:
        steps: what ``apply`` will do, deletions first, so that subjects are free for their new owner.
        unchanged: assets that are as they should be.
        foreign: streams that are none of ours; left alone.
    """

    steps: tuple[Step, ...]
    unchanged: tuple[Asset, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def destructive(self) -> tuple[Step, ...]:
        """The steps that lose messages."""
        return tuple(step for step in self.steps if step.destructive)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A stream near its limit; from there on it drops the oldest messages.

    Attributes:
        stream: its name.
        limit: ``max_bytes`` or ``max_msgs``.
        used: bytes or messages now.
        allowed: the limit.
    """

    stream: str
    limit: str
    used: int
    allowed: int

    @property
    def share(self) -> float:
        """How full it is, 1 for full."""
        return self.used / self.allowed


_BUCKETS: tuple[tuple[str, str], ...] = (
    ("ipe_handlers", "Declarations of the handlers that run."),
    ("ipe_agents", "State of the agents."),
    ("ipe_checkpoints", "Resume points of the collectors."),
    ("ipe_ledger", "Who owns which field of which object, and until when."),
    ("ipe_freeze", "Freezes in force."),
    ("ipe_policies", "Policy documents."),
    ("ipe_snapshots", "Snapshots that handlers have taken in."),
)
_OBJECT_STORES: tuple[tuple[str, str], ...] = (("ipe_index", "Index snapshots of the collectors."),)


def _stream(name: str, subjects: Iterable[str], limits: StreamLimits, settings: TopologySettings, doc: str) -> Asset:
    dedup = min(settings.dedup_minutes * MINUTE, limits.hours * HOUR)
    return Asset(
        "stream",
        name,
        {
            "name": name,
            "description": doc,
            "subjects": sorted(subjects),
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "max_age": int(limits.hours * HOUR * 1e9),
            "max_bytes": int(limits.gib * GIB) if limits.gib else -1,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "duplicate_window": int(dedup * 1e9),
            "num_replicas": settings.replicas,
            "allow_direct": True,
            "allow_rollup_hdrs": False,
        },
    )


def _objects(name: str, doc: str, replicas: int) -> Asset:
    return Asset(
        "objects",
        name,
        {
            "name": f"OBJ_{name}",
            "description": doc,
            "subjects": [f"$O.{name}.C.>", f"$O.{name}.M.>"],
            "storage": "file",
            "discard": "new",
            "max_bytes": -1,
            "num_replicas": replicas,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
        },
    )


def _changes(settings: TopologySettings) -> list[Asset]:
    """The stream of changes, or its shards."""
    default = settings.limits.get(CHANGES, DEFAULT_LIMITS[CHANGES])
    doc = _DOCS[CHANGES]
    if not settings.shards:
        return [_stream(CHANGES, [CHANGE.wildcard], default, settings, doc)]
    assets = [
        _stream(
            f"{CHANGES}_{shard}",
            [CHANGE.filter(cluster=cluster) for cluster in clusters],
            settings.limits.get(f"{CHANGES}_{shard}", default),
            settings,
            f"{doc} Shard {shard}.",
        )
        for shard, clusters in settings.shards.items()
    ]
    sharded = {cluster for clusters in settings.shards.values() for cluster in clusters}
    if both := sorted(sharded & set(settings.clusters)):
        raise TopologyError(f"clusters in a shard and in {CHANGES}: {', '.join(both)}", fix="remove them from `clusters`")
    if settings.clusters:
        subjects = [CHANGE.filter(cluster=cluster) for cluster in settings.clusters]
        assets.insert(0, _stream(CHANGES, subjects, default, settings, doc))
    return assets


def desired(settings: TopologySettings | None = None) -> tuple[Asset, ...]:
    """All assets that these settings ask for.

    Raises:
        TopologyError: limits for a stream that does not exist, or a cluster in two places.
    """
    settings = settings or TopologySettings()
    assets = _changes(settings)
    for name in dict.fromkeys(topic.stream for topic in TOPICS if topic.stream and topic is not CHANGE):
        subjects = [topic.wildcard for topic in TOPICS if topic.stream == name]
        assets.append(_stream(name, subjects, settings.limits.get(name, DEFAULT_LIMITS[name]), settings, _DOCS[name]))
    known = {asset.name for asset in assets} | {CHANGES}
    if unknown := sorted(settings.limits.keys() - known):
        raise TopologyError(f"limits for unknown streams {', '.join(unknown)}", fix=f"known are {', '.join(sorted(known))}")
    for name, doc in _BUCKETS:
        assets.append(Asset("bucket", name, bucket_config(name, history=1, replicas=settings.replicas, description=doc)))
    claims = bucket_config(
        "ipe_claims",
        ttl=settings.claim_hours * HOUR,
        replicas=settings.replicas,
        description="Commands that an agent has taken on.",
    )
    assets.append(Asset("bucket", "ipe_claims", claims))
    assets += [_objects(name, doc, settings.replicas) for name, doc in _OBJECT_STORES]
    return tuple(assets)


def stream_of_cluster(settings: TopologySettings, cluster: str) -> str:
    """The stream that keeps a cluster's changes."""
    return next((f"{CHANGES}_{shard}" for shard, clusters in settings.shards.items() if cluster in clusters), CHANGES)


# --- comparing -------------------------------------------------------------------------------------------------------------

_SMALLER_LOSES = {"max_age", "max_bytes", "max_msgs", "max_msgs_per_subject"}
_FIXED = {"storage", "retention"}


def _unlimited(value: Any) -> bool:
    return value in (None, 0, -1)


def _destroys(name: str, old: Any, new: Any) -> bool:
    if name in _SMALLER_LOSES:
        return not _unlimited(new) and (_unlimited(old) or new < old)
    if name == "subjects":
        return bool(set(old or ()) - set(new or ()))
    return name in _FIXED


def _same(old: Any, new: Any, name: str) -> bool:
    if name in _SMALLER_LOSES and _unlimited(old) and _unlimited(new):
        return True
    if name == "subjects":
        return sorted(old or ()) == sorted(new or ())
    return (old or None) == (new or None)


def compare(asset: Asset, config: Mapping[str, Any]) -> tuple[FieldChange, ...]:
    """The fields in which a stream's configuration differs from what it should be."""
    return tuple(
        FieldChange(name, config.get(name), new, _destroys(name, config.get(name), new))
        for name, new in asset.config.items()
        if not _same(config.get(name), new, name)
    )


def difference(wanted: Sequence[Asset], existing: Mapping[str, Mapping[str, Any]]) -> Plan:
    """The plan for these assets, given ``stream name → info`` of what exists.

    Shards that are no longer wanted are deleted; everything else that is not ours stays.
    """
    creates, changes, deletes, unchanged = [], [], [], []
    names = {asset.stream for asset in wanted}
    for asset in wanted:
        info = existing.get(asset.stream)
        if info is None:
            creates.append(Step("create", asset))
        elif fields := compare(asset, info["config"]):
            changes.append(Step("change", asset, fields, int(info["state"]["messages"])))
        else:
            unchanged.append(asset)
    for name, info in existing.items():
        if name not in names and (name == CHANGES or name.startswith(f"{CHANGES}_")):
            deletes.append(Step("delete", Asset("stream", name, info["config"]), (), int(info["state"]["messages"])))
    foreign = [name for name in existing if name not in names and not name.startswith((CHANGES, "KV_ipe_state_"))]
    return Plan((*deletes, *changes, *creates), tuple(unchanged), tuple(sorted(foreign)))


# --- on the server -----------------------------------------------------------------------------------------------------------


async def streams(bus: "Bus") -> dict[str, dict[str, Any]]:
    """All streams of the account: name → info.

    Raises:
        BusPermissionDenied: the identity may not list them.
    """
    found: dict[str, dict[str, Any]] = {}
    while True:
        page = await bus.js_api("STREAM.LIST", {"offset": len(found)})
        infos = page.get("streams") or []
        found |= {info["config"]["name"]: info for info in infos}
        if not infos or len(found) >= int(page["total"]):
            return found


async def plan(bus: "Bus", wanted: Sequence[Asset] | None = None) -> Plan:
    """What ``apply`` would do; changes nothing.

    Raises:
        BusError: the streams cannot be listed.
    """
    return difference(desired() if wanted is None else wanted, await streams(bus))


async def apply(bus: "Bus", steps: Plan, *, allow_destructive: bool = False) -> None:
    """Does what a plan says.

    Raises:
        TopologyError: the plan loses messages and that is not allowed (nothing is done then), or a fixed field would change.
        BusError: JetStream refuses a step; those before it are done.
    """
    if steps.destructive and not allow_destructive:
        raise TopologyError(
            f"the plan loses messages: {'; '.join(_describe(step) for step in steps.destructive)}",
            fix="look at `ipe bus plan`, then repeat with --allow-destructive",
        )
    for step in steps.steps:
        fixed = [change.field for change in step.changes if change.field in _FIXED]
        if fixed:
            raise TopologyError(
                f"NATS cannot change {', '.join(fixed)} of stream {step.asset.stream}",
                fix=f"copy what you need, delete the stream with `nats stream rm {step.asset.stream}`, and apply again",
            )
    for step in steps.steps:
        if step.action == "delete":
            await bus.js_api(f"STREAM.DELETE.{step.asset.stream}")
        elif step.action == "create":
            await bus.js_api(f"STREAM.CREATE.{step.asset.stream}", step.asset.config)
        else:
            current = (await bus.stream_info(step.asset.stream))["config"]
            await bus.js_api(f"STREAM.UPDATE.{step.asset.stream}", {**current, **step.asset.config})


async def ensure(bus: "Bus", settings: TopologySettings | None = None) -> Plan:
    """Creates what is missing and leaves what exists alone: what agents and handlers do at start on an embedded server.

    Raises:
        BusError: JetStream refuses to create something.
    """
    whole = await plan(bus, desired(settings))
    creates = Plan(tuple(step for step in whole.steps if step.action == "create"), whole.unchanged, whole.foreign)
    await apply(bus, creates)
    return creates


async def check_limits(bus: "Bus", names: Iterable[str] | None = None) -> list[Alarm]:
    """Our streams that are fuller than 80 % of a limit in bytes or messages.

    Args:
        bus: the connection.
        names: which streams; by default all whose name starts with ``IPE_``.
    """
    if names is None:
        infos = [info for name, info in (await streams(bus)).items() if name.startswith("IPE_")]
    else:
        infos = []
        for name in names:
            try:
                infos.append(await bus.stream_info(name))
            except BusNotFound:
                continue
    alarms = []
    for info in infos:
        config, state = info["config"], info["state"]
        for limit, used in (("max_bytes", int(state["bytes"])), ("max_msgs", int(state["messages"]))):
            allowed = int(config.get(limit) or -1)
            if allowed > 0 and used >= ALARM * allowed:
                alarms.append(Alarm(config["name"], limit, used, allowed))
    return alarms


def _describe(step: Step) -> str:
    if step.action == "delete":
        return f"deletes {step.asset.stream} with {step.messages} messages"
    lost = ", ".join(str(change) for change in step.changes if change.destructive)
    return f"{step.asset.stream}: {lost} ({step.messages} messages)"


def _figure(field: str, value: Any) -> str:
    """A field's value for people: NATS counts nanoseconds and bytes, and writes no limit as 0 or -1."""
    if field in _SMALLER_LOSES and _unlimited(value):
        return "unlimited"
    if field in {"max_age", "duplicate_window"}:
        return ago(value / 1e9)
    return binary(value) if field in {"max_bytes", "max_msg_size"} else str(value)
