"""What the API server knows about particular kinds, as far as the fake does: defaults, immutable fields, generations.

The fake validates no schemas beyond the types of what it reads (``shapes.py``); what it checks is what a client of this project
can run into: names, immutable fields of pods and workloads, updates that must carry a resourceVersion.
"""

import base64
import re
from typing import Any

import orjson

from ipe_events.testing.fake import status
from ipe_events.testing.fake.kinds import Kind

JsonObject = dict[str, Any]

UNDELETABLE_NAMESPACES = frozenset({"default", "kube-system"})
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_NAME_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with "
    "an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_PATH_NAMED = frozenset({"roles", "rolebindings", "clusterroles", "clusterrolebindings"})
"""Kinds whose names may hold nearly anything (``system:node``)."""
_CONDITIONAL_ONLY = frozenset({("coordination.k8s.io", "leases"), ("apiextensions.k8s.io", "customresourcedefinitions")})
_IMMUTABLE_SELECTOR = frozenset(
    {("apps", "deployments"), ("apps", "replicasets"), ("apps", "statefulsets"), ("apps", "daemonsets")}
)
_MUTABLE_POD_SPEC = ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations")


def copy(obj: JsonObject) -> JsonObject:
    """A deep copy, through JSON: what is not JSON is refused here.

    Raises:
        StatusError: 400.
    """
    try:
        copied: JsonObject = orjson.loads(orjson.dumps(obj))
    except (TypeError, orjson.JSONDecodeError) as error:
        raise status.bad_request(f"the object is not JSON: {error}") from error
    return copied


def check_metadata(kind: Kind, metadata: JsonObject) -> None:
    """Refuse names that no cluster accepts, and leave out what is empty.

    Raises:
        StatusError: 422.
    """
    name = metadata["name"]
    if kind.resource not in _PATH_NAMED and (len(name) > 253 or not _NAME.match(name)):
        raise status.invalid(kind, name, ("metadata.name", "FieldValueInvalid", f'Invalid value: "{name}": {_NAME_RULE}'))
    for field in ("labels", "annotations", "finalizers", "ownerReferences"):
        if not metadata.get(field, True):  # empty is left out, as Go's omitempty does
            del metadata[field]


def set_defaults(kind: Kind, obj: JsonObject) -> None:
    """The few defaults that clients of this project read."""
    match kind.group_resource:
        case ("", "namespaces"):
            obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
            obj.setdefault("status", {}).setdefault("phase", "Active")
            obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
        case ("", "pods"):
            obj.setdefault("status", {}).setdefault("phase", "Pending")
            obj.setdefault("spec", {})
        case ("apps", "deployments" | "replicasets" | "statefulsets") | ("", "replicationcontrollers"):
            spec = obj.setdefault("spec", {})
            if spec.get("replicas") is None:
                spec["replicas"] = 1
            obj.setdefault("status", {})
        case ("", "secrets"):
            _encode_string_data(obj)
            obj.setdefault("type", "Opaque")


def _encode_string_data(obj: JsonObject) -> None:
    for name, text in (obj.pop("stringData", None) or {}).items():
        obj.setdefault("data", {})[name] = base64.b64encode(str(text).encode()).decode()


def needs_resource_version(kind: Kind) -> bool:
    """Whether an update without resourceVersion is refused."""
    return kind.custom or kind.group_resource in _CONDITIONAL_ONLY


def bumps_generation(kind: Kind, before: JsonObject, new: JsonObject) -> bool:
    """Whether the write changes what ``metadata.generation`` counts."""
    if kind.custom:
        ignored = ("metadata", "status") if kind.has_status else ("metadata",)
        return _without(before, ignored) != _without(new, ignored)
    if before.get("spec") != new.get("spec"):
        return True
    if kind.group_resource == ("apps", "deployments"):
        return bool(before["metadata"].get("annotations") != new["metadata"].get("annotations"))
    return False


def check_update(kind: Kind, name: str, before: JsonObject, new: JsonObject) -> None:
    """Refuse changes of fields that are immutable in a real cluster.

    Raises:
        StatusError: 422.
    """
    old_spec, new_spec = before.get("spec") or {}, new.get("spec") or {}
    if kind.group_resource in _IMMUTABLE_SELECTOR and old_spec.get("selector") != new_spec.get("selector"):
        value = orjson.dumps(new_spec.get("selector")).decode()
        raise status.invalid(kind, name, ("spec.selector", "FieldValueInvalid", f"Invalid value: {value}: field is immutable"))
    if kind.group_resource == ("", "pods") and _immutable_pod_spec(old_spec) != _immutable_pod_spec(new_spec):
        allowed = (
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
            "tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        )
        raise status.invalid(kind, name, ("spec", "FieldValueForbidden", allowed))


def _immutable_pod_spec(spec: JsonObject) -> JsonObject:
    rest = _without(spec, _MUTABLE_POD_SPEC)
    for field in ("containers", "initContainers"):
        if isinstance(rest.get(field), list):
            rest[field] = [_without(c, ("image",)) if isinstance(c, dict) else c for c in rest[field]]
    return rest


def _without(obj: JsonObject, names: tuple[str, ...]) -> JsonObject:
    return {key: value for key, value in obj.items() if key not in names}
