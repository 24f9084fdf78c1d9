"""The smallest controllers that make a cluster look alive: Deployment → ReplicaSet → running Pods, and what is left is removed.

They run beside the server as one task and write through the same operations as everybody else, so ``scale`` has a visible effect
and a deleted pod comes back. No rollout strategy, no scheduling: pods are Running as soon as they exist.
"""

import asyncio
import hashlib
from typing import Any

import orjson

from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.operations import DeleteOptions, Operations, WriteOptions
from ipe_events.testing.fake.patch import MERGE_PATCH
from ipe_events.testing.fake.status import StatusError
from ipe_events.testing.fake.store import ObjectKey

JsonObject = dict[str, Any]
_MANAGER = WriteOptions("kube-controller-manager", trusted=True)
_KUBELET = WriteOptions("kubelet", trusted=True)


class Controllers:
    """The controllers of one cluster; ``run`` them as a task."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._store = operations.store
        self._dirty: dict[ObjectKey, None] = {}
        self._wake = asyncio.Event()
        registry = operations.registry
        kinds = [registry.named(name) for name in ("deployments.apps", "replicasets.apps", "pods", "resourcequotas")]
        self._deployments, self._replica_sets, self._pods, self._quotas = (kind for kind in kinds if kind is not None)
        operations.observers.append(self._observe)
        for key, _ in self._store.items(self._deployments.group_resource):
            self._enqueue(key)

    async def run(self) -> None:
        """Reconcile for ever what changed."""
        while True:
            while self._dirty:
                key = next(iter(self._dirty))
                del self._dirty[key]
                self._reconcile(key)
                await asyncio.sleep(0)
            self._wake.clear()
            await self._wake.wait()

    def _observe(self, kind: Kind, before: JsonObject | None, after: JsonObject | None) -> None:
        obj = after or before or {}
        namespace = obj["metadata"].get("namespace", "")
        if kind == self._deployments:
            self._enqueue((namespace, obj["metadata"]["name"]))
        elif kind in (self._replica_sets, self._pods) and (owner := _owner(obj)):
            name = owner["name"] if kind == self._replica_sets else str(owner["name"]).rpartition("-")[0]
            self._enqueue((namespace, name))
        elif kind == self._quotas:  # pods that did not fit may fit now
            for key, _ in self._store.items(self._deployments.group_resource, namespace):
                self._enqueue(key)

    def _enqueue(self, key: ObjectKey) -> None:
        self._dirty[key] = None
        self._wake.set()

    # --- deployments ---

    def _reconcile(self, key: ObjectKey) -> None:
        item = self._store.get(self._deployments.group_resource, key)
        if item is None or "deletionTimestamp" in item.obj["metadata"]:
            self._collect_orphans(key)
            return
        deployment = item.obj
        template = deployment["spec"].get("template") or {}
        digest = hashlib.sha256(orjson.dumps(template, option=orjson.OPT_SORT_KEYS)).hexdigest()[:10]
        current = f"{key[1]}-{digest}"
        owned = self._owned(self._replica_sets, key[0], deployment)
        if current not in owned:
            owned[current] = self._new_replica_set(deployment, current, digest)
        ready = 0
        for name, replica_set in owned.items():
            wanted = deployment["spec"].get("replicas", 1) if name == current else 0
            if replica_set["spec"].get("replicas") != wanted:
                replica_set = self._patch(self._replica_sets, (key[0], name), {"spec": {"replicas": wanted}})
            count = self._reconcile_replica_set(replica_set)
            ready += count if name == current else 0
        self._write_status(self._deployments, key, deployment, ready, updatedReplicas=ready, availableReplicas=ready)

    def _collect_orphans(self, key: ObjectKey) -> None:
        """What a deleted deployment leaves behind."""
        for kind in (self._replica_sets, self._pods):
            for child_key, item in self._store.items(kind.group_resource, key[0]):
                owner = _owner(item.obj)
                if owner and not self._owner_lives(key[0], owner):
                    self._operations.delete(kind, child_key, DeleteOptions())

    def _owner_lives(self, namespace: str, owner: JsonObject) -> bool:
        kind = self._deployments if owner["kind"] == "Deployment" else self._replica_sets
        if owner["kind"] != kind.kind:
            return True
        item = self._store.get(kind.group_resource, (namespace, owner["name"]))
        return item is not None and item.obj["metadata"]["uid"] == owner["uid"]

    def _new_replica_set(self, deployment: JsonObject, name: str, digest: str) -> JsonObject:
        template = deployment["spec"].get("template") or {}
        labels = {**(template.get("metadata", {}).get("labels") or {}), "pod-template-hash": digest}
        matched = deployment["spec"].get("selector", {}).get("matchLabels") or {}
        selector = {"matchLabels": {**matched, "pod-template-hash": digest}}
        namespace = deployment["metadata"]["namespace"]
        owners = [_reference(deployment)]
        replica_set = {
            "metadata": {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": owners},
            "spec": {
                "replicas": deployment["spec"].get("replicas", 1),
                "selector": selector,
                "template": template | {"metadata": {**template.get("metadata", {}), "labels": labels}},
            },
        }
        return self._operations.create(self._replica_sets, namespace, replica_set, _MANAGER)

    # --- replica sets and pods ---

    def _reconcile_replica_set(self, replica_set: JsonObject) -> int:
        """Create or delete pods until there are as many as wanted; returns how many there are."""
        namespace, wanted = replica_set["metadata"]["namespace"], int(replica_set["spec"].get("replicas", 1))
        pods = list(self._owned(self._pods, namespace, replica_set))
        for name in pods[wanted:]:
            self._operations.delete(self._pods, (namespace, name), DeleteOptions())
        count = min(len(pods), wanted)
        while count < wanted and self._start_pod(replica_set):
            count += 1
        key = namespace, replica_set["metadata"]["name"]
        self._write_status(self._replica_sets, key, replica_set, count, availableReplicas=count)
        return count

    def _start_pod(self, replica_set: JsonObject) -> bool:
        """One more pod, running at once; False when admission refuses it, until a quota changes."""
        metadata, template = replica_set["metadata"], replica_set["spec"]["template"]
        pod_metadata = {
            **{name: value for name, value in template.get("metadata", {}).items() if name in ("labels", "annotations")},
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            "ownerReferences": [_reference(replica_set)],
        }
        spec = {"nodeName": "node-000", "restartPolicy": "Always", **(template.get("spec") or {})}
        pod = {"metadata": pod_metadata, "spec": spec, "status": {"phase": "Pending"}}
        try:
            created = self._operations.create(self._pods, metadata["namespace"], pod, _MANAGER)
        except StatusError as refusal:
            if refusal.reason != "Forbidden":
                raise
            return False
        containers = [
            {"name": container.get("name"), "image": container.get("image"), "ready": True, "restartCount": 0, "started": True}
            for container in spec.get("containers") or []
        ]
        now = self._operations.timestamp()
        status = {
            "phase": "Running",
            "startTime": now,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            "containerStatuses": containers,
        }
        key = metadata["namespace"], created["metadata"]["name"]
        body = orjson.dumps({"status": status})
        self._operations.patch(self._pods, key, MERGE_PATCH, body, _KUBELET, "status")
        return True

    # --- shared ---

    def _owned(self, kind: Kind, namespace: str, owner: JsonObject) -> dict[str, JsonObject]:
        uid = owner["metadata"]["uid"]
        items = self._store.items(kind.group_resource, namespace)
        return {name: item.obj for (_, name), item in items if (_owner(item.obj) or {}).get("uid") == uid}

    def _patch(self, kind: Kind, key: ObjectKey, patch: JsonObject, subresource: str = "") -> JsonObject:
        return self._operations.patch(kind, key, MERGE_PATCH, orjson.dumps(patch), _MANAGER, subresource)

    def _write_status(self, kind: Kind, key: ObjectKey, obj: JsonObject, replicas: int, **more: int) -> None:
        counts = {"replicas": replicas, "readyReplicas": replicas, **more}
        status = {"observedGeneration": obj["metadata"].get("generation", 1), **counts}
        if any(obj.get("status", {}).get(name, 0) != value for name, value in status.items()):
            self._patch(kind, key, {"status": status}, "status")


def _owner(obj: JsonObject) -> JsonObject | None:
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)


def _reference(owner: JsonObject) -> JsonObject:
    metadata = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return reference | {"controller": True, "blockOwnerDeletion": True}
