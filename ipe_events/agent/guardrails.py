"""Guardrails: the checks that stand between a command and the cluster. Pure: facts go in, the first refusal comes out.

They run in the order of DESIGN §5: identity, expiry, freeze, grant, mode, protected, loop, rate, blast radius, ledger,
precondition. What can be said without looking at the object is said before anybody asks the API server (``before_read``); the
rest needs the object (``after_read``). Each refusal names its guardrail, and the line of the configuration where there is one, so
that whoever reads the outcome knows whom to ask.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ipe_events.agent.grants import Decision, Grant, GrantSet, Mode, Protected
from ipe_events.agent.redaction import masked_paths
from ipe_events.events.command import Annotate, Apply, Command, Create, Patch, Scale, Suspend
from ipe_events.events.freeze import FreezeState
from ipe_events.events.ledger import LedgerEntry
from ipe_events.objects import paths

JsonObject = dict[str, Any]

LONGEST_EXPIRY = timedelta(days=6)
"""A command may wait no longer: claims are kept longer than this, so that none can ever run twice."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command is not carried out.

    Attributes:
        guardrail: its name, one word.
        message: one sentence for people.
    """

    guardrail: str
    message: str


@dataclass(frozen=True, slots=True)
class Addressee:
    """What the subject of a command says; the bus enforces it, so the body must agree."""

    cluster: str
    handler: str
    verb: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The cluster's own word, from its configuration.

    Attributes:
        grants: what handlers may do.
        protected: what no wildcard reaches.
        max_hops: longest chain of commands that caused each other.
        writes: whether this agent writes at all.
    """

    grants: GrantSet
    protected: Protected = field(default_factory=Protected)
    max_hops: int = 8
    writes: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """How much a handler has written lately.

    Attributes:
        minute: accepted writes within the last 60 s.
        hour: within the last 3,600 s.
        touched: how many *other* objects of the target's resource in its namespace were written within the hour.
        population: how many objects of that resource the namespace holds; None: not counted because no grant limits the share.
    """

    minute: int = 0
    hour: int = 0
    touched: int = 0
    population: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything else that a decision needs.

    Attributes:
        now: wall clock.
        freezes: standing freezes, just read.
        hops: length of the chain as far as this agent knows it; at least the command's own.
        seen: the object; None when it does not exist or was not read yet.
        usage: of the command's handler.
        owners: ledger entries of the object that still hold.
    """

    now: datetime
    freezes: FreezeState = field(default_factory=FreezeState)
    hops: int = 1
    seen: JsonObject | None = None
    usage: Usage = Usage()
    owners: tuple[LedgerEntry, ...] = ()


def before_read(command: Command, addressee: Addressee, rules: Rules, facts: Facts) -> Refusal | None:
    """The first refusal that needs no look at the object; None when it may be looked at."""
    checks: tuple[Callable[[], Refusal | None], ...] = (
        lambda: _identity(command, addressee),
        lambda: _masked(command),
        lambda: _expiry(command, facts.now),
        lambda: _freeze(command, facts.freezes),
        lambda: _grant(command, rules.grants.decide(command.handler, command.action.verb, command.target)),
    )
    return _first(checks)


def after_read(command: Command, rules: Rules, facts: Facts) -> Refusal | None:
    """The first refusal in view of the object; None when the command may be carried out (or tried, for a dry run)."""
    labels = labels_of(command, facts.seen)
    decision = rules.grants.decide(command.handler, command.action.verb, command.target, labels)
    checks: tuple[Callable[[], Refusal | None], ...] = (
        lambda: _grant(command, decision),
        lambda: _mode(command, decision, rules),
        lambda: _protected(command, rules.protected, labels, decision.matching),
        lambda: _loop(command, facts.hops, rules.max_hops),
        lambda: None if command.dry_run else _rate(decision.grant, facts.usage),
        lambda: None if command.dry_run else _blast_radius(decision.grant, facts.usage),
        lambda: _ledger(command, facts.owners),
        lambda: precondition(command, facts.seen),
    )
    return _first(checks)


def labels_of(command: Command, seen: JsonObject | None) -> Mapping[str, str]:
    """The labels that a grant is matched against: the object's; for one that does not exist yet, those of its manifest."""
    source = seen
    if source is None and isinstance(command.action, Create | Apply):
        source = command.action.manifest
    metadata = (source or {}).get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return labels if isinstance(labels, dict) else {}


def touched_paths(command: Command) -> tuple[str, ...]:
    """JSON pointers of what a command writes; the empty one is the whole object."""
    action = command.action
    if isinstance(action, Patch):
        paths = [each.path for each in action.operations if each.op != "test"]
        paths += [each.from_ for each in action.operations if each.op == "move" and each.from_ is not None]
        return tuple(dict.fromkeys(paths))
    if isinstance(action, Scale):
        return ("/spec/replicas",)
    if isinstance(action, Suspend):
        return ("/spec/suspend",)
    if isinstance(action, Annotate):
        return tuple(f"/metadata/annotations/{key.replace('~', '~0').replace('/', '~1')}" for key in action.annotations)
    if isinstance(action, Apply):
        return tuple(_leaves(action.manifest, ""))
    return ("",)


def overlaps(one: str, other: str) -> bool:
    """Whether one JSON pointer is the other or lies below it."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def precondition(command: Command, seen: JsonObject | None) -> Refusal | None:
    """Refuses when the object is no longer as the command's author saw it; names what changed."""
    wanted = command.precondition
    uid = wanted.uid or command.target.uid
    if isinstance(command.action, Create):
        return None
    if seen is None:
        if isinstance(command.action, Apply) and not (uid or wanted.values or wanted.resource_version):
            return None
        return Refusal("precondition", f"{command.target} does not exist")
    metadata = seen["metadata"]
    if uid and metadata.get("uid") != uid:
        return Refusal("precondition", f"{command.target} is another object now: uid {metadata.get('uid')}, not {uid}")
    if wanted.resource_version and metadata.get("resourceVersion") != wanted.resource_version:
        at = metadata.get("resourceVersion")
        return Refusal("precondition", f"{command.target} is at resourceVersion {at}, not {wanted.resource_version}")
    for pointer, value in wanted.values.items():
        try:
            found = paths.get(seen, pointer, None)
        except paths.PathError as error:
            return Refusal("precondition", error.message)
        if not _same(found, value):
            # what is there now may be a secret, so only its place is told
            return Refusal("precondition", f"{pointer or 'the object'} of {command.target} is no longer what the command expects")
    return None


def _first(checks: Iterable[Callable[[], Refusal | None]]) -> Refusal | None:
    for check in checks:
        refusal = check()
        if refusal is not None:
            return refusal
    return None


def _identity(command: Command, addressee: Addressee) -> Refusal | None:
    for what, in_body, in_subject in (
        ("handler", command.handler, addressee.handler),
        ("cluster", command.cluster, addressee.cluster),
        ("verb", command.action.verb, addressee.verb),
    ):
        if in_body != in_subject:
            return Refusal("identity", f"{what} is {in_body!r} in the body, {in_subject!r} in the subject")
    return None


def _masked(command: Command) -> Refusal | None:
    """What was masked for the bus is not the value: writing it, or comparing with it, would be wrong."""
    pointers = masked_paths(command.action.model_dump(mode="json"))
    pointers += [f"{pointer}{below}" for pointer, value in command.precondition.values.items() for below in masked_paths(value)]
    if pointers:
        return Refusal("masked", f"a masked value cannot be written or compared ({pointers[0] or '/'})")
    return None


def _expiry(command: Command, now: datetime) -> Refusal | None:
    if command.expired(now):
        return Refusal("expiry", f"expired at {command.expires.isoformat()}")
    if command.expires - now > LONGEST_EXPIRY:
        days = LONGEST_EXPIRY.days
        return Refusal("expiry", f"expires {command.expires.isoformat()}, more than {days} days ahead")
    if command.lease is not None and command.lease <= now:
        return Refusal("expiry", f"its lease ended at {command.lease.isoformat()}")
    return None


def _freeze(command: Command, freezes: FreezeState) -> Refusal | None:
    freeze = freezes.stops(command.cluster, command.handler)
    if freeze is None or command.dry_run:
        return None
    return Refusal("freeze", f"frozen by {freeze.user or 'an operator'}: {freeze.reason or 'no reason given'}")


def _grant(command: Command, decision: Decision) -> Refusal | None:
    if decision.grant is None:
        return Refusal("grant", decision.why_not)
    return None


def _mode(command: Command, decision: Decision, rules: Rules) -> Refusal | None:
    assert decision.grant is not None, "the grant is checked before its mode"
    grant = decision.grant
    if command.dry_run:
        return None
    if not rules.writes:
        return Refusal("read-only", "this agent only reads (act.writes is false)")
    if grant.mode is Mode.OBSERVE:
        return Refusal("mode", f"{grant.source} lets {grant.handler!r} observe only")
    if grant.mode is Mode.PROPOSE:
        return Refusal("mode", f"{grant.source} lets {grant.handler!r} propose only, and this agent does not keep proposals")
    return None


def _protected(command: Command, protected: Protected, labels: Mapping[str, str], grants: tuple[Grant, ...]) -> Refusal | None:
    why = protected.why(command.target, labels, grants)
    return Refusal("protected", why) if why else None


def _loop(command: Command, hops: int, limit: int) -> Refusal | None:
    hops = max(hops, command.hops)
    if hops > limit:
        return Refusal("loop", f"{hops} commands caused each other, the limit is {limit} (act.maxHops)")
    return None


def _rate(grant: Grant | None, usage: Usage) -> Refusal | None:
    assert grant is not None, "the grant is checked before its limits"
    for used, limit, period in ((usage.minute, grant.limits.per_minute, "minute"), (usage.hour, grant.limits.per_hour, "hour")):
        if used >= limit:
            return Refusal("rate", f"{used} writes in the last {period}, {grant.source} allows {limit}")
    return None


def _blast_radius(grant: Grant | None, usage: Usage) -> Refusal | None:
    assert grant is not None, "the grant is checked before its limits"
    if usage.population is None or grant.limits.namespace_share >= 1:
        return None
    allowed = max(1, int(usage.population * grant.limits.namespace_share))
    if usage.touched + 1 > allowed:
        share = f"{grant.limits.namespace_share:.0%}"
        return Refusal(
            "blast-radius",
            f"{usage.touched} of {usage.population} objects of the namespace were written within the hour, "
            f"{grant.source} allows {share} ({allowed})",
        )
    return None


def _ledger(command: Command, owners: tuple[LedgerEntry, ...]) -> Refusal | None:
    for path in touched_paths(command):
        for entry in owners:
            if entry.handler != command.handler and overlaps(path, entry.path):
                until = entry.until.isoformat()
                return Refusal(
                    "ledger", f"{entry.path or 'the object'} belongs to {entry.handler!r} until {until}: {entry.reason}"
                )
    return None


def _same(found: Any, wanted: Any) -> bool:
    """Equality of JSON values: ``1`` is ``1.0``, but never ``true``."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in found)
    if isinstance(found, list) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return bool(found == wanted)


def _leaves(value: Any, pointer: str) -> Iterable[str]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            if pointer == "" and key in ("apiVersion", "kind"):
                continue
            if pointer == "/metadata" and key in ("name", "namespace"):
                continue
            yield from _leaves(item, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    else:
        yield pointer
