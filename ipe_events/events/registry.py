"""Who is there: handlers declare what they need, agents tell what they collect, what was handed over. Kept in KV."""

from typing import Literal

from pydantic import AwareDatetime

from ipe_events.errors import SchemaError
from ipe_events.events.base import Model, Name
from ipe_events.events.codec import decode
from ipe_events.subjects import escape


class HandlerDeclaration(Model):
    """What one handler subscribes to and publishes; key ``<handler>`` of bucket ``ipe_handlers``.

    Attributes:
        handler: its name.
        subjects: subject filters of its consumer.
        resources: Kubernetes resources it needs collected, as ``deployments.apps``.
        clusters: cluster names or globs it wants; empty: all.
        snapshots: whether it asks agents for snapshots.
        managed_fields: whether it needs ``metadata.managedFields``.
        outputs: subject filters it publishes on.
        commands: verbs it may ask for.
        services: subjects it answers on.
        time: when it started.
        version: of this document.
    """

    handler: Name
    subjects: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()
    snapshots: bool = False
    managed_fields: bool = False
    outputs: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    time: AwareDatetime
    version: Literal[1] = 1


def read_declaration(key: str, body: bytes) -> HandlerDeclaration:
    """The declaration under a key of bucket ``ipe_handlers``; a handler speaks for itself alone.

    Raises:
        SchemaError: it is malformed, or that of another handler than the key's.
    """
    found = decode(HandlerDeclaration, body)
    if escape(found.handler) != key:
        raise SchemaError(f"it declares another handler, {found.handler!r}", fix="delete the key; find who may write there")
    return found


NO_SUCH_RESOURCE = "the cluster has no such resource"
"""How the state of a resource ends in an ``AgentStatus`` when discovery does not know it."""


class AgentStatus(Model):
    """What one cluster's agent does; key ``<cluster>`` (escaped as a token) of bucket ``ipe_agents``.

    Attributes:
        cluster: the operator's name.
        cluster_uid: uid of its ``kube-system`` namespace.
        epoch: current epoch.
        agent: identity of the agent process.
        state: ``connecting``, ``syncing``, ``connected``, ``disconnected``.
        server_version: of Kubernetes.
        resources: resource → ``watching``, ``syncing``, ``refused: …``, ``failing: …``.
        objects: resource → number of objects in the index.
        writes: whether this agent holds the cluster's Lease and may write.
        time: when this was written.
        version: of this document.
    """

    cluster: Name
    cluster_uid: str = ""
    epoch: int = 0
    agent: str = ""
    state: str = "connecting"
    server_version: str = ""
    resources: dict[str, str] = {}
    objects: dict[str, int] = {}
    writes: bool = False
    time: AwareDatetime
    version: Literal[1] = 1

    def collects(self, resource: str) -> bool:
        """Whether its changes are on the bus, or will be once its list is."""
        return self.resources.get(resource, "").partition(":")[0] in {"watching", "syncing"}

    def lacks(self, resource: str) -> bool:
        """Whether the cluster's API has no such resource: a typing error, or a definition that is not installed."""
        return self.resources.get(resource, "").endswith(NO_SUCH_RESOURCE)


def read_status(key: str, body: bytes) -> AgentStatus:
    """The status under a key of bucket ``ipe_agents``; an agent speaks for its cluster alone.

    Raises:
        SchemaError: it is malformed, or that of another cluster than the key's.
    """
    found = decode(AgentStatus, body)
    if escape(found.cluster) != key:
        raise SchemaError(f"it reports another cluster, {found.cluster!r}", fix="delete the key; find who may write there")
    return found


class SnapshotTaken(Model):
    """One snapshot that was taken in; key ``<handler id>.<cluster>.<group>.<resource>`` of bucket ``ipe_snapshots``.

    Attributes:
        cluster: where it was made.
        group: of the resource.
        resource: what was listed.
        resource_version: of the list.
        namespaces: names or globs that the handler wanted; empty: all.
        time: when its last item had been handled.
        version: of this document.
    """

    cluster: str
    group: str
    resource: str
    resource_version: str = ""
    namespaces: tuple[str, ...] = ()
    time: AwareDatetime
    version: Literal[1] = 1
