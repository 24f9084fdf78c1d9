"""What is collected from one cluster: the cluster's word, before any handler's wish.

Everything may be collected but Secrets (their values never leave the cluster, but nobody should have to rely on that alone) and
resources that change all the time without meaning anything. Both can be asked for by name.
"""

import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ipe_events.agent.redaction import RedactionRules
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.reflector import Options
from ipe_events.kube.selection import Selection

NOISE = (
    "leases.coordination.k8s.io",
    "endpoints",
    "endpointslices.discovery.k8s.io",
    "events",
    "events.events.k8s.io",
)
"""Resources that change all the time without meaning anything; collected only on request."""

_SECRETS = "secrets"


@dataclass(frozen=True)
class CollectSettings:
    """What is collected from one cluster, and how.

    Attributes:
        resources: patterns (``*``, ``*.apps``, ``deployments.apps``) that may be collected.
        always: collected whether or not somebody wants them.
        deny: patterns that are never collected.
        noise: also what is in ``NOISE``.
        secrets: also Secrets; their values are masked all the same.
        namespaces: globs of namespaces.
        selections: resource → (label selector, field selector).
        drop_managed_fields: patterns of resources whose ``managedFields`` are dropped.
        redaction: beyond the defaults.
        redaction_key: of the masks; by default made now and forgotten with the process.
        heartbeat: seconds between heartbeats.
        checkpoint_seconds: between two writes of resume points.
        index_seconds: between two index snapshots.
        window: most changes on their way to the bus.
        max_bytes: most bytes of them.
        parallel_lists: lists at a time.
        page: objects per page.
        silent_seconds: without a byte, after which a watch counts as dead.
        watchlist: try WatchLists.
        farewell_seconds: how long a stop may take to get the last changes acknowledged and the resume points written.
    """

    resources: tuple[str, ...] = ("*",)
    always: tuple[ResourceRef, ...] = ()
    deny: tuple[str, ...] = ()
    noise: bool = False
    secrets: bool = False
    namespaces: tuple[str, ...] = ("*",)
    selections: Mapping[ResourceRef, tuple[str, str]] = field(default_factory=dict)
    drop_managed_fields: tuple[str, ...] = ("pods", "replicasets.apps", "events", "events.events.k8s.io")
    redaction: RedactionRules = field(default_factory=RedactionRules)
    redaction_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    heartbeat: float = 30.0
    checkpoint_seconds: float = 1.0
    index_seconds: float = 60.0
    window: int = 2048
    max_bytes: int = 32 << 20
    parallel_lists: int = 4
    page: int = 500
    silent_seconds: float = 70.0
    watchlist: bool = True
    farewell_seconds: float = 5.0

    def why_not(self, ref: ResourceRef) -> str:
        """Why a resource is not collected; empty when it is."""
        if any(_matches(pattern, ref) for pattern in self.deny):
            return "denied by the cluster's configuration"
        if str(ref) == _SECRETS and not self.secrets:
            return "Secrets are not collected unless the cluster's configuration says so (secrets: true)"
        explicit = any(pattern == str(ref) for pattern in self.resources)
        if str(ref) in NOISE and not self.noise and not explicit and ref not in self.always:
            return "counts as noise (noise: true collects it)"
        if ref in self.always or any(_matches(pattern, ref) for pattern in self.resources):
            return ""
        return "not allowed by the cluster's configuration"

    def selection(self, ref: ResourceRef) -> Selection:
        """Which objects of a resource count."""
        labels, fields = self.selections.get(ref, ("", ""))
        return Selection(labels, fields, self.namespaces)

    def options(self, ref: ResourceRef) -> Options:
        """How a resource is watched."""
        return Options(
            page=self.page,
            silent_seconds=self.silent_seconds,
            watchlist=self.watchlist,
            drop_managed_fields=any(_matches(pattern, ref) for pattern in self.drop_managed_fields),
        )


def _matches(pattern: str, ref: ResourceRef) -> bool:
    """Whether ``*``, ``*.apps`` or ``deployments.apps`` names the resource."""
    if pattern == "*":
        return True
    resource, _, group = pattern.partition(".")
    return group == ref.group and fnmatch.fnmatchcase(ref.resource, resource)
