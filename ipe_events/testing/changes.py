"""Builders of changes for tests."""

import zlib
from collections.abc import Mapping
from typing import Any

import orjson

from ipe_events.bus.frames import encode_headers, percent_encode
from ipe_events.errors import UsageError
from ipe_events.events.change import Change
from ipe_events.events.ids import ChangeId
from ipe_events.events.refs import ResourceRef
from ipe_events.subjects import CHANGE, partition

_CLUSTER_UID = "5f3b0d6e-0000-4000-8000-000000000000"


def change(
    obj: Mapping[str, Any],
    *,
    resource: str = "",
    cluster: str = "test",
    verb: str = "modified",
    epoch: int = 1,
    synthetic: bool = False,
    hops: int = 0,
    cause: str = "",
) -> Change:
    """The change that an agent would publish for an object.

    Args:
        obj: the object as JSON; name, uid and resourceVersion are filled in where they lack.
        resource: as ``deployments.apps``; by default guessed from kind and apiVersion.
        cluster: the cluster's name.
        verb: ``added``, ``modified``, ``deleted`` or ``left``.
        epoch: the cluster's history.
        synthetic: whether a relist found it.
        hops: commands that led to it.
        cause: id of the event that led to it.

    Raises:
        UsageError: the verb is unknown.
    """
    if verb not in {"added", "modified", "deleted", "left"}:
        raise UsageError(f"verb {verb!r} is unknown", fix="added, modified, deleted or left")
    metadata = {"name": "web", **obj.get("metadata", {})}
    namespace = metadata.get("namespace", "")
    ref = ResourceRef.parse(resource) if resource else _guess(obj)
    place = f"{ref}/{namespace}/{metadata['name']}"
    metadata.setdefault("uid", f"{zlib.crc32(place.encode()):08x}-0000-4000-8000-000000000000")
    metadata.setdefault("resourceVersion", "1")
    identity = str(ChangeId(_CLUSTER_UID, epoch, ref.group, ref.resource, metadata["uid"], metadata["resourceVersion"], verb))
    headers = {
        "ce-specversion": "1.0",
        "ce-id": identity,
        "ce-source": f"/clusters/{cluster}",
        "ce-type": f"dev.ipe.k8s.{verb}.v1",
        "ce-time": "2026-01-05T09:00:00.000000Z",
        "ce-kind": str(obj.get("kind", "")),
        "ce-name": metadata["name"],
        "ce-sequence": "1",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "Nats-Msg-Id": identity,
    }
    if synthetic:
        headers["ce-synthetic"] = "true"
    if hops:
        headers["ce-hops"] = str(hops)
    if cause:
        headers["ce-cause"] = cause
    subject = CHANGE.format(
        cluster=cluster,
        group=ref.group,
        resource=ref.resource,
        namespace=namespace,
        verb=verb,
        partition=partition(cluster, namespace, ref.resource),
    )
    block = encode_headers({name: percent_encode(value) for name, value in headers.items() if value})
    # kind and apiVersion first, as API servers write them
    head = {key: obj[key] for key in ("kind", "apiVersion") if key in obj}
    return Change(subject, block, orjson.dumps({**head, "metadata": {}, **obj} | {"metadata": metadata}))


def _guess(obj: Mapping[str, Any]) -> ResourceRef:
    kind = str(obj.get("kind", "")).lower()
    if not kind:
        raise UsageError("the object has no kind", fix='pass resource="deployments.apps"')
    group = str(obj.get("apiVersion", "v1")).rpartition("/")[0]
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}es" if kind.endswith("s") else f"{kind}s"
    return ResourceRef(group=group, resource=plural)
