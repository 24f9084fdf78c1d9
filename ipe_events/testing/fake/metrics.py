"""``metrics.k8s.io``: usage of pods and nodes, as the test sets it."""

from typing import Any

from ipe_events.testing.fake import status
from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.selectors import Predicate
from ipe_events.testing.fake.store import ObjectKey

JsonObject = dict[str, Any]
WINDOW = "15.0s"


class Metrics:
    """The last samples of one cluster."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[ObjectKey, JsonObject]] = {"pods": {}, "nodes": {}}

    def set_pod(self, namespace: str, name: str, containers: dict[str, dict[str, str]], labels: dict[str, str], at: str) -> None:
        """A pod's usage: container → resource → quantity."""
        usage = [{"name": container, "usage": used} for container, used in containers.items()]
        self._set("pods", (namespace, name), labels, at, containers=usage)

    def set_node(self, name: str, usage: dict[str, str], labels: dict[str, str], at: str) -> None:
        """A node's usage: resource → quantity."""
        self._set("nodes", ("", name), labels, at, usage=usage)

    def _set(self, resource: str, key: ObjectKey, labels: dict[str, str], at: str, **values: Any) -> None:
        metadata: JsonObject = {"name": key[1]} | ({"namespace": key[0]} if key[0] else {}) | {"creationTimestamp": at}
        if labels:
            metadata["labels"] = labels
        self._samples[resource][key] = {"metadata": metadata, "timestamp": at, "window": WINDOW} | values

    def forget(self, resource: str, key: ObjectKey) -> None:
        """Drop the sample of an object that is gone."""
        self._samples[resource].pop(key, None)

    def get(self, kind: Kind, key: ObjectKey) -> JsonObject:
        """One sample.

        Raises:
            StatusError: 404.
        """
        sample = self._samples[kind.resource].get(key)
        if sample is None:
            raise status.not_found(kind, key[1])
        return {"kind": kind.kind, "apiVersion": kind.group_version} | sample

    def list(self, kind: Kind, namespace: str, selects: Predicate | None) -> JsonObject:
        """The samples of a namespace, or all; a list without resourceVersion."""
        items = [
            sample
            for key, sample in sorted(self._samples[kind.resource].items())
            if (not namespace or key[0] == namespace) and (selects is None or selects(sample))
        ]
        return {"kind": f"{kind.kind}List", "apiVersion": kind.group_version, "metadata": {}, "items": items}
