"""The cluster in whose pod we run."""

import os
from collections.abc import Mapping

from ipe_events.kube.config import ClusterSource

DEFAULT_NAME = "in-cluster"


def in_cluster_source(name: str = "") -> ClusterSource:
    """The source for the pod's own cluster; ``name`` is how the bus will know it."""
    return ClusterSource(name=name or DEFAULT_NAME, in_cluster=True)


def runs_in_cluster(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process runs in a pod that is told where its API server is."""
    return bool(env.get("KUBERNETES_SERVICE_HOST"))
