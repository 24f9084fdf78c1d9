"""What an agent says of its cluster, on ``ipe.cluster.<cluster>.<state>``."""

from typing import ClassVar

from pydantic import AwareDatetime, Field

from ipe_events.events.base import Name, Payload
from ipe_events.subjects import CLUSTER, Topic


class ClusterEvent(Payload):
    """Common part.

    Attributes:
        cluster: the operator's name for it.
        cluster_uid: uid of its ``kube-system`` namespace; empty while it was never reached.
        epoch: the cluster's history without rewind.
        time: when the agent noticed.
    """

    topic: ClassVar[Topic] = CLUSTER

    cluster: Name
    cluster_uid: str = ""
    epoch: int = Field(default=0, ge=0)
    time: AwareDatetime


class Connected(ClusterEvent):
    """The API server answers and the initial lists are on the bus.

    Attributes:
        version: of the API server, e.g. ``v1.37.2``.
        resources: what is collected, as ``deployments.apps``.
        refused: resource → why it is not collected (the API server's own words, redacted).
    """

    version: str = ""
    resources: tuple[str, ...] = ()
    refused: dict[str, str] = {}


class Disconnected(ClusterEvent):
    """The API server no longer answers; the agent keeps trying.

    Attributes:
        error: the last error, redacted.
    """

    error: str = ""


class Stale(ClusterEvent):
    """A watch has been silent for longer than it should be.

    Attributes:
        resource: which one, as ``deployments.apps``.
        silent_seconds: since the last byte.
    """

    resource: str
    silent_seconds: float = Field(ge=0)


class Gap(ClusterEvent):
    """A stretch in which the record may be incomplete; never silent.

    Attributes:
        resource: which one, as ``deployments.apps``; empty: all.
        cause: of a resource ``first-start``, ``history-expired``, ``relisted``, ``restored``, ``retention``, ``selection`` or
            ``stream-lost``; of an object ``oversize``, ``unexaminable`` or ``unnameable``; of a cluster ``restored`` or
            ``new-identity``; of a handler ``retention``.
        since: resourceVersion (or stream sequence) after which the record may be incomplete; empty: unknown.
        until: resourceVersion (or stream sequence) from which it is complete again; empty: still open.
        handler: whose consumption has the gap; empty: the cluster's collection.
        subject_object: ``namespace/name`` when the gap concerns one object.
        detail: one sentence for people.
    """

    resource: str = ""
    cause: str
    since: str = ""
    until: str = ""
    handler: str = ""
    subject_object: str = ""
    detail: str = ""


class Heartbeat(ClusterEvent):
    """The agent lives.

    Attributes:
        sequences: resource → number of changes published since the epoch began.
        silent_seconds: resource → seconds since the last byte of its watch.
    """

    sequences: dict[str, int] = {}
    silent_seconds: dict[str, float] = {}


class Epoch(ClusterEvent):
    """The cluster's history went backwards (etcd restored); everything is listed again.

    Attributes:
        previous_resource_version: the highest one seen before.
        resource_version: the one seen now.
    """

    previous_resource_version: str
    resource_version: str
