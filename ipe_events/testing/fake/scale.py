"""``/scale``: a workload's replicas through the one form that all of them share (``autoscaling/v1`` Scale)."""

from typing import Any

from ipe_events.testing.fake import rules, shapes, status
from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.operations import Operations, WriteOptions
from ipe_events.testing.fake.patch import apply_patch
from ipe_events.testing.fake.store import ObjectKey

JsonObject = dict[str, Any]
_SCALE = Kind("autoscaling", "v1", "scales", "Scale")


def of(kind: Kind, obj: JsonObject) -> JsonObject:
    """The Scale of a workload."""
    metadata = {field: obj["metadata"][field] for field in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")}
    replicas = obj.get("spec", {}).get("replicas", 0)
    scale: JsonObject = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata}
    scale["spec"] = {"replicas": replicas} if replicas else {}
    scale["status"] = {"replicas": obj.get("status", {}).get("replicas", 0)}
    if selector := _selector_text(obj.get("spec", {}).get("selector") or {}):
        scale["status"]["selector"] = selector
    return scale


def _selector_text(selector: JsonObject) -> str:
    labels = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
    parts = [f"{key}={value}" for key, value in sorted(labels.items())]
    for expression in selector.get("matchExpressions") or []:
        key, operator, values = expression["key"], expression["operator"], ",".join(sorted(expression.get("values") or []))
        word = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key, "DoesNotExist": f"!{key}"}
        parts.append(word[operator])
    return ",".join(parts)


def update(
    operations: Operations, kind: Kind, key: ObjectKey, scale: Any, options: WriteOptions, *, patched: bool = False
) -> JsonObject:
    """Put a Scale, which may be the result of a patch; returns the new one.

    Raises:
        StatusError: 400, 404, 409 or 422.
    """
    before = operations.existing(kind, key).obj
    if not isinstance(scale, dict):
        raise status.bad_request("the object provided is unrecognized (must be of type Scale)")
    shapes.fit(_SCALE, scale, patched=patched)
    metadata = scale.get("metadata", {})
    if metadata.get("name", key[1]) != key[1]:
        raise status.bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({key[1]})")
    replicas = scale.get("spec", {}).get("replicas", 0)
    if replicas < 0:
        cause = ("spec.replicas", "FieldValueInvalid", f"Invalid value: {replicas}: must be greater than or equal to 0")
        raise status.invalid(_SCALE, key[1], cause)
    changed = rules.copy(before)
    changed["spec"]["replicas"] = replicas
    for field in ("uid", "resourceVersion"):
        if metadata.get(field):
            changed["metadata"][field] = metadata[field]
        elif field == "resourceVersion":
            del changed["metadata"][field]
    return of(kind, operations.replace(kind, key, changed, options, "scale"))


def patch(
    operations: Operations, kind: Kind, key: ObjectKey, content_type: str, body: bytes, options: WriteOptions
) -> JsonObject:
    """PATCH a Scale; returns the new one.

    Raises:
        StatusError: 400, 404, 409, 415 or 422.
    """
    current = of(kind, operations.existing(kind, key).obj)
    return update(operations, kind, key, apply_patch(current, content_type, body), options, patched=True)
