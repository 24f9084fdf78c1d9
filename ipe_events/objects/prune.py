"""What a person wrote, without what the server filled in: the base of every comparison and every export.

Dropped are the fields that the API server or a controller alone writes: bookkeeping in ``metadata`` and the whole ``status``.
With ``allocated=False`` also what is handed out once and then stays in ``spec`` (a Service's address, a claim's volume, a Pod's
node). Defaults are left alone: which values are defaults only the API server knows, and a dry-run tells.
"""

from collections.abc import Mapping
from typing import Any

from ipe_events.objects.paths import drop, has

SERVER_METADATA = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
"""Fields of ``metadata`` that nobody but the API server writes."""

ALLOCATED: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("v1", "Namespace"): ("/spec/finalizers",),
    ("v1", "PersistentVolumeClaim"): ("/spec/volumeName",),
    ("v1", "Pod"): ("/spec/nodeName",),
    ("v1", "Service"): ("/spec/clusterIP", "/spec/clusterIPs", "/spec/healthCheckNodePort"),
}
"""(apiVersion, kind) → pointers to what the cluster hands out once when the author leaves it open."""


def prune(document: Mapping[str, Any], *, allocated: bool = True) -> dict[str, Any]:
    """An object without its server-populated fields.

    Args:
        document: a Kubernetes object; it is not changed, and the result shares its parts.
        allocated: keep what the cluster handed out once (``ALLOCATED``).

    Returns:
        A new top level and, when there is one, new ``metadata``; everything else is shared.
    """
    pruned = {key: value for key, value in document.items() if key != "status"}
    metadata = pruned.get("metadata")
    if isinstance(metadata, Mapping):
        pruned["metadata"] = {key: value for key, value in metadata.items() if key not in SERVER_METADATA}
    if not allocated:
        for pointer in ALLOCATED.get((str(document.get("apiVersion")), str(document.get("kind"))), ()):
            if has(pruned, pointer):
                pruned = drop(pruned, pointer)
    return pruned
