"""The one write path: a command becomes exactly one request to the API server, and its traces can be read back.

``build`` is pure. It puts the command's precondition **into the request** (JSON Patch ``test`` operations, delete preconditions,
uid and resourceVersion of an apply), so that nothing can change between our look at the object and the write. Values that a
``test`` cannot express (a field that must be absent, or a field of another object than the one patched) are guarded by the
resourceVersion at which they were seen.

Every write carries the field manager ``ipe-<handler>`` and, where the verb allows one, the annotation ``ipe.dev/command``. By
them ``read_back`` finds out whether a write happened whose answer was never received.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ipe_events.errors import KubeError, KubeInvalid, KubeNotFound
from ipe_events.events.command import Annotate, Apply, Command, Create, Delete, Patch, Scale, Suspend
from ipe_events.kube.discovery import ApiResource
from ipe_events.kube.session import KubeSession
from ipe_events.objects import paths

JsonObject = dict[str, Any]

COMMAND_ANNOTATION = "ipe.dev/command"
_COMMAND_POINTER = "/metadata/annotations/ipe.dev~1command"

JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One request that writes."""

    method: str
    path: str
    params: Mapping[str, str]
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """What the API server made of it.

    Attributes:
        uid: of the object.
        resource_version: after the write; empty where the API does not tell (a finished delete).
        object: the answer: the object, its Scale, or for a finished delete nothing.
    """

    uid: str
    resource_version: str
    object: JsonObject


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Whether an unanswered write shows in the object.

    Attributes:
        applied: True only with proof that it was this command.
        evidence: one sentence.
    """

    applied: bool
    evidence: str
    uid: str = ""
    resource_version: str = ""


def field_manager(handler: str) -> str:
    """The name under which a handler's fields are managed."""
    return f"ipe-{handler}"


def in_version(resource: ApiResource, version: str) -> ApiResource:
    """The resource in the version that a command's author saw; the preferred one when they named none."""
    return replace(resource, version=version) if version else resource


async def read(session: KubeSession, resource: ApiResource, namespace: str, name: str, *, timeout: float) -> JsonObject | None:
    """The object now; None when it does not exist.

    Raises:
        KubeError: it cannot be read.
    """
    try:
        found = await session.json("GET", resource.path(namespace, name), timeout=timeout)
    except KubeNotFound:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("metadata"), dict):
        raise KubeError("the API server answered something that is no object", where=f"{session.name}: {resource.ref}/{name}")
    return found


async def send(session: KubeSession, request: WriteRequest, *, timeout: float) -> Written:
    """Send a write once; it is never repeated here.

    Raises:
        KubeError: of the kind that the answer's Status means; see ``is_ambiguous``.
    """
    answer = await session.request(
        request.method,
        request.path,
        params=request.params,
        body=request.body,
        headers={"Content-Type": request.content_type},
        timeout=timeout,
    )
    obj = answer.json()
    if not isinstance(obj, dict):
        raise KubeError("the API server answered something that is no object", where=f"{session.name}: {request.path}")
    if obj.get("kind") == "Status":
        details = obj.get("details")
        return Written(str(details.get("uid", "")) if isinstance(details, dict) else "", "", {})
    metadata = obj.get("metadata") or {}
    return Written(str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")), obj)


def is_ambiguous(error: KubeError) -> bool:
    """Whether the write may have happened in spite of this error: no answer, or an answer that does not say."""
    if error.reason == "Unreachable" or isinstance(error, KubeInvalid):
        return False
    if error.status < 400:
        return True
    # a 500 is the API server's last word (a webhook that failed, say) unless its own store did not answer it
    return error.status in (502, 503, 504) or (error.status == 500 and "etcdserver" in error.message)


# --- building the request ------------------------------------------------------------------------------------------------


def build(command: Command, resource: ApiResource, seen: JsonObject | None, *, dry_run: bool) -> WriteRequest:
    """The request that carries out a command.

    Args:
        command: accepted, its precondition checked against ``seen``.
        resource: of its target, in the version to be used.
        seen: the object as it was read; None when it does not exist.
        dry_run: ask the API server to check and answer, but not to keep.

    Raises:
        KubeNotFound: the verb needs an object and there is none.
        KubeInvalid: the resource lacks what the verb needs, or a manifest is not the target's.
    """
    target, action = command.target, command.action
    params = {"fieldManager": field_manager(command.handler), "fieldValidation": "Strict"}
    if dry_run:
        params["dryRun"] = "All"
    if isinstance(action, Create):
        manifest = _manifest(command, action.manifest, resource, marked=not dry_run)
        return WriteRequest("POST", resource.path(target.namespace), params, "application/json", orjson.dumps(manifest))
    path = resource.path(target.namespace, target.name)
    if isinstance(action, Apply):
        params["force"] = "true" if action.force else "false"
        manifest = _manifest(command, action.manifest, resource, marked=not dry_run)
        if seen is not None:
            manifest["metadata"]["uid"] = seen["metadata"]["uid"]
            if _guarded(command):
                manifest["metadata"]["resourceVersion"] = seen["metadata"]["resourceVersion"]
        return WriteRequest("PATCH", path, params, APPLY_PATCH, orjson.dumps(manifest))
    if seen is None:
        raise KubeNotFound(f"{target} does not exist", status=404, reason="NotFound")
    if isinstance(action, Delete):
        body = _delete_options(command, action, seen, dry_run=dry_run)
        return WriteRequest("DELETE", path, _only(params, "dryRun"), "application/json", body)
    if isinstance(action, Scale):
        if "scale" not in resource.subresources:
            raise KubeInvalid(f"{resource.ref} has no /scale", fix="use `patch`")
        operations = [*_tests(command, seen, on_scale=True), {"op": "add", "path": "/spec/replicas", "value": action.replicas}]
        return WriteRequest("PATCH", f"{path}/scale", params, JSON_PATCH, orjson.dumps(operations))
    operations = [*_tests(command, seen), *_operations(action, seen)]
    if not dry_run:
        operations += _mark(command, seen, operations)
    return WriteRequest("PATCH", path, params, JSON_PATCH, orjson.dumps(operations))


def _only(params: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: params[name] for name in names if name in params}


def _guarded(command: Command) -> bool:
    return bool(command.precondition.values or command.precondition.resource_version)


def _delete_options(command: Command, action: Delete, seen: JsonObject, *, dry_run: bool) -> bytes:
    preconditions = {"uid": seen["metadata"]["uid"]}
    if _guarded(command):
        preconditions["resourceVersion"] = seen["metadata"]["resourceVersion"]
    options: JsonObject = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
    options["propagationPolicy"] = action.propagation
    if dry_run:
        # a DELETE with a body is read from its body alone: `dryRun` in the query would be overlooked, and the object gone
        options["dryRun"] = ["All"]
    return orjson.dumps(options)


def _tests(command: Command, seen: JsonObject, *, on_scale: bool = False) -> list[JsonObject]:
    """``test`` operations that hold exactly while the precondition does; on a Scale only replicas can be tested."""
    tests: list[JsonObject] = [{"op": "test", "path": "/metadata/uid", "value": seen["metadata"]["uid"]}]
    values = command.precondition.values
    expressible = all(
        value is not None and (not on_scale or (pointer == "/spec/replicas" and value != 0)) for pointer, value in values.items()
    )
    if command.precondition.resource_version or not expressible:
        rv = seen["metadata"]["resourceVersion"]
        return [*tests, {"op": "test", "path": "/metadata/resourceVersion", "value": rv}]
    return tests + [{"op": "test", "path": pointer, "value": value} for pointer, value in values.items()]


def _operations(action: Patch | Suspend | Annotate | Any, seen: JsonObject) -> list[JsonObject]:
    if isinstance(action, Patch):
        return [_operation(each.model_dump(by_alias=True)) for each in action.operations]
    if isinstance(action, Suspend):
        return [{"op": "add", "path": "/spec/suspend", "value": action.suspended}]
    annotations = dict(seen["metadata"].get("annotations") or {})
    operations: list[JsonObject] = [] if annotations else [{"op": "add", "path": "/metadata/annotations", "value": {}}]
    for key, value in action.annotations.items():
        pointer = f"/metadata/annotations/{key.replace('~', '~0').replace('/', '~1')}"
        if value is not None:
            operations.append({"op": "add", "path": pointer, "value": value})
        elif key in annotations:
            operations.append({"op": "remove", "path": pointer})
    return _with_version(operations, seen) if not annotations else operations


def _operation(raw: JsonObject) -> JsonObject:
    """An operation without the members that its kind does not have."""
    members = {"move": ("from",), "copy": ("from",), "remove": ()}.get(raw["op"], ("value",))
    return {"op": raw["op"], "path": raw["path"]} | {name: raw[name] for name in members}


def _with_version(operations: list[JsonObject], seen: JsonObject) -> list[JsonObject]:
    """Guards operations that replace a whole map, so that they cannot wipe out what appeared meanwhile."""
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": seen["metadata"]["resourceVersion"]}, *operations]


def _mark(command: Command, seen: JsonObject, operations: list[JsonObject]) -> list[JsonObject]:
    """Operations that leave the command's id in the object; none where the patch itself replaces the annotations."""
    writes = [each for each in operations if each["op"] != "test"]
    gone = {each["path"] for each in writes if each["op"] == "remove"} | {each["from"] for each in writes if "from" in each}
    if "/metadata/annotations" in gone or any(each["path"] in ("", "/metadata") for each in writes):
        return []
    if seen["metadata"].get("annotations") or any(each["path"] == "/metadata/annotations" for each in writes):
        return [{"op": "add", "path": _COMMAND_POINTER, "value": command.id}]
    return _with_version([{"op": "add", "path": "/metadata/annotations", "value": {COMMAND_ANNOTATION: command.id}}], seen)


def _manifest(command: Command, given: JsonObject, resource: ApiResource, *, marked: bool) -> JsonObject:
    """A manifest completed by what its target says.

    Raises:
        KubeInvalid: it contradicts the target.
    """
    manifest: JsonObject = orjson.loads(orjson.dumps(given))
    metadata = manifest.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise KubeInvalid("the manifest's metadata is no mapping")
    target = command.target
    for holder, key, expected in (
        (manifest, "apiVersion", resource.api_version),
        (manifest, "kind", resource.kind),
        (metadata, "name", target.name),
        *(((metadata, "namespace", target.namespace),) if target.namespace else ()),
    ):
        if holder.setdefault(key, expected) != expected:
            raise KubeInvalid(f"the manifest's {key} is {holder[key]!r}, the target's {expected!r}")
    if not target.namespace and metadata.get("namespace"):
        raise KubeInvalid("the manifest has a namespace, the target has none")
    for server_owned in ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"):
        metadata.pop(server_owned, None)
    if marked:
        annotations = metadata.get("annotations") or {}
        if not isinstance(annotations, dict):
            raise KubeInvalid("the manifest's annotations are no mapping")
        metadata["annotations"] = annotations | {COMMAND_ANNOTATION: command.id}
    return manifest


# --- reading back --------------------------------------------------------------------------------------------------------


def read_back(command: Command, now: JsonObject | None, *, seen_uid: str) -> ReadBack:
    """Whether the object shows that a command was carried out.

    Args:
        command: claimed; whether it was sent is not known.
        now: the object now; None when it does not exist.
        seen_uid: uid of the object before; empty when there was none.
    """
    action = command.action
    if now is None:
        if isinstance(action, Delete):
            return ReadBack(True, "the object is gone", uid=seen_uid)
        return ReadBack(False, "the object does not exist")
    metadata = now["metadata"]
    uid, rv = str(metadata.get("uid", "")), str(metadata.get("resourceVersion", ""))
    if isinstance(action, Delete):
        if uid != seen_uid:
            return ReadBack(True, "the object is gone; another one has its name", uid=seen_uid)
        if metadata.get("deletionTimestamp"):
            return ReadBack(True, "the object is being deleted", uid, rv)
        return ReadBack(False, "the object is still there", uid, rv)
    if (metadata.get("annotations") or {}).get(COMMAND_ANNOTATION) == command.id:
        return ReadBack(True, f"the object carries {COMMAND_ANNOTATION}={command.id}", uid, rv)
    if isinstance(action, Scale):
        if paths.get(now, "/spec/replicas", None) != action.replicas:
            return ReadBack(False, f"replicas are not {action.replicas}", uid, rv)
        if _owns_replicas(metadata, field_manager(command.handler)):
            return ReadBack(True, f"replicas are {action.replicas}, set by {field_manager(command.handler)}", uid, rv)
        return ReadBack(False, f"replicas are {action.replicas}, but not set by {field_manager(command.handler)}", uid, rv)
    return ReadBack(False, "the object does not carry the command's annotation", uid, rv)


def _owns_replicas(metadata: JsonObject, manager: str) -> bool:
    """Whether this manager set the replicas last: whoever else changes the value takes the field over."""
    for entry in metadata.get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("subresource") == "scale":
            fields = (entry.get("fieldsV1") or {}).get("f:spec") or {}
            return "f:replicas" in fields
    return False
