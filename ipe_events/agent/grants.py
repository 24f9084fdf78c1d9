"""Grants: what a cluster lets a handler do, and which line of the configuration says so.

A grant belongs to the cluster, not to the bus: it lives in the agent's own configuration, and nobody who reaches the bus can
widen it. Several grants for one handler add up; each is matched as a whole (verb, resource, namespace and labels), and among
those that match the most permissive mode counts. What is dangerous everywhere (rights, admission, CRDs, nodes,
``kube-system``, IPE's own objects) is protected even from a grant with wildcards: it must be **named literally** in the grant.

Everything here is pure: a command and what is known of its target go in, a decision that names its line comes out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.alias_generators import to_camel

from ipe_events.events.command import Verb
from ipe_events.events.refs import ObjectRef, ResourceRef


class Section(BaseModel):
    """A part of the agent's configuration: camelCase keys as Kubernetes writes them, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Mode(StrEnum):
    """How far a handler may go, in ascending order."""

    OBSERVE = "observe"
    PROPOSE = "propose"
    ENFORCE = "enforce"

    @property
    def rank(self) -> int:
        """Larger is more permissive."""
        return list(Mode).index(self)


def _resource_pattern(text: str) -> str:
    """``deployments.apps``, ``*.apps``, ``pods`` or ``*``; refuses what can match nothing."""
    name, _, group = text.partition(".")
    if text == "*" or (name == "*" and group and "*" not in group):
        return text
    ResourceRef.parse(text)
    return text


ResourcePattern = Annotated[str, AfterValidator(_resource_pattern)]
"""One resource (``deployments.apps``), all of a group (``*.apps``), or all (``*``)."""


class Limits(Section):
    """How much a handler may change before the agent stops it.

    Attributes:
        per_minute: accepted writes in any 60 s.
        per_hour: accepted writes in any 3,600 s.
        namespace_share: part (0–1] of a namespace's objects of one resource that may be written within an hour; one object is
            always allowed.
    """

    per_minute: int = Field(default=30, ge=1, le=100_000)
    per_hour: int = Field(default=600, ge=1, le=1_000_000)
    namespace_share: float = Field(default=1.0, gt=0, le=1)


class Grant(Section):
    """What one handler may do in this cluster.

    Attributes:
        handler: its name on the bus.
        mode: ``observe`` (default): nothing is written; ``propose``: a person decides; ``enforce``: carried out.
        verbs: of commands; empty: none.
        resources: patterns; empty: none.
        namespaces: globs; cluster-scoped objects match only the empty text ``""``.
        labels: the target must carry all of them.
        limits: rate and blast radius.
        read: resources that it may ask this agent for beyond what is collected.
    """

    handler: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    mode: Mode = Mode.OBSERVE
    verbs: tuple[Verb, ...] = ()
    resources: tuple[ResourcePattern, ...] = ()
    namespaces: tuple[str, ...] = ("*",)
    labels: dict[str, str] = {}
    limits: Limits = Limits()
    read: tuple[ResourcePattern, ...] = ()
    _source: str = PrivateAttr(default="a grant")

    @property
    def source(self) -> str:
        """Where it stands (file and line), for messages; nothing that a file could say itself."""
        return self._source

    def standing_at(self, source: str) -> Self:
        """The same grant with its source."""
        placed = self.model_copy()
        placed._source = source  # noqa: SLF001 - our own copy
        return placed

    def covers(self, verb: str, target: ObjectRef, labels: Mapping[str, str] | None = None) -> str:
        """Empty when this grant covers the act, otherwise what it lacks.

        Args:
            verb: of the command.
            target: its object.
            labels: of the object; None when they are not known yet (then they are not checked).
        """
        if verb not in self.verbs:
            return f"verb {verb!r} is not among {', '.join(self.verbs) or 'none'}"
        if not any(resource_matches(pattern, target) for pattern in self.resources):
            return f"resource {resource_name(target)!r} is not among {', '.join(self.resources) or 'none'}"
        if not any(namespace_matches(pattern, target.namespace) for pattern in self.namespaces):
            return f"namespace {target.namespace!r} is not among {', '.join(map(repr, self.namespaces)) or 'none'}"
        if labels is not None:
            for key, value in self.labels.items():
                if labels.get(key) != value:
                    return f"label {key}={value} is not on the object"
        return ""


class Protected(Section):
    """What no grant reaches unless it names it literally.

    Attributes:
        resources: patterns of protected resources.
        namespaces: globs of protected namespaces; their Namespace objects are protected with them.
        labels: an object with any of these labels (``key`` or ``key=value``) is protected without exception.
    """

    resources: tuple[ResourcePattern, ...] = (
        "*.rbac.authorization.k8s.io",
        "*.admissionregistration.k8s.io",
        "*.apiextensions.k8s.io",
        "*.apiregistration.k8s.io",
        "*.certificates.k8s.io",
        "*.ipe.dev",
        "*.coordination.k8s.io",
        "nodes",
        "serviceaccounts",
        "secrets",
    )
    namespaces: tuple[str, ...] = ("kube-system", "kube-public", "kube-node-lease", "ipe-system")
    labels: tuple[str, ...] = ("app.kubernetes.io/part-of=ipe-events",)

    def why(self, target: ObjectRef, labels: Mapping[str, str] | None, grants: Iterable[Grant]) -> str:
        """Empty when the target is free or named literally by one of the grants that cover the act."""
        grants = tuple(grants)
        name = resource_name(target)
        pattern = next((each for each in self.resources if resource_matches(each, target)), "")
        if pattern and not any(name in grant.resources for grant in grants):
            return f"{name} is protected by {pattern!r}; a grant must name it literally"
        namespace = target.name if name == "namespaces" else target.namespace
        pattern = next((each for each in self.namespaces if namespace and fnmatchcase(namespace, each)), "")
        if pattern and not any(namespace in grant.namespaces for grant in grants):
            return f"namespace {namespace!r} is protected by {pattern!r}; a grant must name it literally"
        for each in self.labels:
            key, _, value = each.partition("=")
            if labels and key in labels and (not value or labels[key] == value):
                return f"the object carries the protected label {key}={labels[key]}"
        return ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the grants say to one act.

    Attributes:
        grant: the one that decides; None when none covers the act.
        matching: all that cover it.
        why_not: what each grant of the handler lacks; empty when one covers the act.
    """

    grant: Grant | None = None
    matching: tuple[Grant, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class GrantSet:
    """All grants of one cluster."""

    grants: tuple[Grant, ...] = ()

    def of(self, handler: str) -> tuple[Grant, ...]:
        """The grants of one handler."""
        return tuple(grant for grant in self.grants if grant.handler == handler)

    def decide(self, handler: str, verb: str, target: ObjectRef, labels: Mapping[str, str] | None = None) -> Decision:
        """Which grant, if any, covers this act; among several the one with the most permissive mode."""
        own = self.of(handler)
        if not own:
            return Decision(why_not=f"this cluster grants {handler!r} nothing")
        lacks = [(grant, grant.covers(verb, target, labels)) for grant in own]
        matching = tuple(grant for grant, why in lacks if not why)
        if matching:
            return Decision(grant=max(matching, key=lambda grant: grant.mode.rank), matching=matching)
        return Decision(why_not="; ".join(f"{grant.source}: {why}" for grant, why in lacks))

    def may_read(self, handler: str, resource: ResourceRef, collected: Iterable[ResourceRef]) -> bool:
        """Whether a handler may ask this agent for objects of ``resource``: what is collected, and what a grant adds.

        Secrets are never meant by a wildcard.
        """
        if resource in set(collected):
            return True
        patterns = {pattern for grant in self.of(handler) for pattern in grant.read}
        if str(resource) == "secrets":
            return "secrets" in patterns
        target = ObjectRef(group=resource.group, resource=resource.resource, name="-")
        return any(resource_matches(pattern, target) for pattern in patterns)


def resource_name(target: ObjectRef) -> str:
    """``deployments.apps`` or ``pods``."""
    return f"{target.resource}.{target.group}" if target.group else target.resource


def resource_matches(pattern: str, target: ObjectRef) -> bool:
    """Whether ``*``, ``*.apps`` or ``deployments.apps`` names the target's resource."""
    if pattern == "*":
        return True
    name, _, group = pattern.partition(".")
    return group == target.group and name in ("*", target.resource)


def namespace_matches(pattern: str, namespace: str) -> bool:
    """Whether a glob names the namespace; only the empty pattern names "no namespace"."""
    return fnmatchcase(namespace, pattern) if namespace else pattern == ""
