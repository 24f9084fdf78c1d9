"""The Go types behind the fields that the fake reads: what does not fit is refused in the words of Go's JSON decoder.

A real API server decodes every body into typed structs before anything looks at it. The fake knows only the part of those types
that its own rules, quotas and controllers touch; there it is as strict, and elsewhere it takes what comes. ``null`` means, as in
Go, that the field is not set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ipe_events.objects.quantity import Quantity, QuantityError
from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.status import unreadable

JsonObject = dict[str, Any]


_QUANTITIES = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


class _Misfit(Exception):
    """A value is not of its field's type; the text is Go's."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One Go type.

    Attributes:
        go: its name in messages.
        json: what it is in JSON: ``object``, ``array``, ``string``, ``number``, or empty for anything.
        fields: of a struct; others are not looked at.
        each: of every item of a slice or value of a map.
        zero: what ``null`` stands for as a value of a map.
    """

    go: str
    json: str
    fields: Mapping[str, "Shape"] = field(default_factory=dict)
    each: "Shape | None" = None
    zero: Any = None


def _struct(go: str, **fields: Shape) -> Shape:
    return Shape(go, "object", fields)


def _list(each: Shape) -> Shape:
    return Shape(f"[]{each.go}", "array", each=each)


def _map(each: Shape, go: str = "") -> Shape:
    return Shape(go or f"map[string]{each.go}", "object", each=each)


_STRING = Shape("string", "string", zero="")
_INT32 = Shape("int32", "number")
_STRINGS = _map(_STRING)
_QUANTITY = Shape("resource.Quantity", "", zero="0")
_RESOURCES = _map(_QUANTITY, "v1.ResourceList")
_METADATA = _struct(
    "v1.ObjectMeta",
    name=_STRING, generateName=_STRING, namespace=_STRING, uid=Shape("types.UID", "string"), resourceVersion=_STRING,
    labels=_STRINGS, annotations=_STRINGS, finalizers=_list(_STRING),
    ownerReferences=_list(_struct("v1.OwnerReference", kind=_STRING, name=_STRING, uid=Shape("types.UID", "string"))),
    managedFields=_list(_struct("v1.ManagedFieldsEntry")),
)  # fmt: skip
_CONTAINER = _struct(
    "v1.Container",
    name=_STRING,
    image=_STRING,
    resources=_struct("v1.ResourceRequirements", requests=_RESOURCES, limits=_RESOURCES),
)
_POD_SPEC = _struct("v1.PodSpec", containers=_list(_CONTAINER), initContainers=_list(_CONTAINER))
_REQUIREMENT = _struct(
    "v1.LabelSelectorRequirement", key=_STRING, operator=Shape("v1.LabelSelectorOperator", "string"), values=_list(_STRING)
)
_SELECTOR = _struct("v1.LabelSelector", matchLabels=_STRINGS, matchExpressions=_list(_REQUIREMENT))
_TEMPLATE = _struct("v1.PodTemplateSpec", metadata=_METADATA, spec=_POD_SPEC)
_SCOPES = _list(Shape("v1.ResourceQuotaScope", "string"))


def _workload(kind: str, **more: Shape) -> Mapping[str, Shape]:
    return {"spec": _struct(f"v1.{kind}Spec", selector=_SELECTOR, template=_TEMPLATE, **more)}


_FIELDS: Mapping[tuple[str, str], Mapping[str, Shape]] = {
    ("", "pods"): {"spec": _POD_SPEC},
    ("", "configmaps"): {"data": _STRINGS},
    ("", "secrets"): {"stringData": _STRINGS, "data": _map(Shape("[]uint8", "string", zero=""), "map[string][]uint8")},
    ("", "persistentvolumeclaims"): {
        "spec": _struct("v1.PersistentVolumeClaimSpec", resources=_struct("v1.VolumeResourceRequirements", requests=_RESOURCES))
    },
    ("", "resourcequotas"): {
        "spec": _struct("v1.ResourceQuotaSpec", hard=_RESOURCES, scopes=_SCOPES),
        "status": _struct("v1.ResourceQuotaStatus", hard=_RESOURCES, used=_RESOURCES),
    },
    ("", "replicationcontrollers"): {
        "spec": _struct("v1.ReplicationControllerSpec", replicas=_INT32, selector=_STRINGS, template=_TEMPLATE)
    },
    ("apps", "deployments"): _workload("Deployment", replicas=_INT32),
    ("apps", "replicasets"): _workload("ReplicaSet", replicas=_INT32),
    ("apps", "statefulsets"): _workload("StatefulSet", replicas=_INT32),
    ("apps", "daemonsets"): _workload("DaemonSet"),
    ("autoscaling", "scales"): {"spec": _struct("v1.ScaleSpec", replicas=_INT32)},
    ("authorization.k8s.io", "selfsubjectaccessreviews"): {
        "spec": _struct(
            "v1.SelfSubjectAccessReviewSpec",
            resourceAttributes=_struct(
                "v1.ResourceAttributes",
                **dict.fromkeys(("namespace", "verb", "group", "version", "resource", "subresource", "name"), _STRING),
            ),
        )
    },
}


def fit(kind: Kind, obj: JsonObject, *, patched: bool = False) -> None:
    """Check ``obj`` against the types of its kind, in place: fields that are null go.

    Args:
        kind: of the object.
        obj: as the client sent it.
        patched: the client sent a patch, and this came of it.

    Raises:
        StatusError: 400, or 422 of a patch: a field is of another type.
    """
    fields = {"metadata": _METADATA}
    if not kind.custom:
        fields |= {name: _struct(f"v1.{kind.kind}{name.capitalize()}") for name in ("spec", "status")}
        fields |= _FIELDS.get(kind.group_resource, {})
    try:
        _fit(Shape(f"v1.{kind.kind}", "object", fields), obj, kind.kind, "")
    except _Misfit as misfit:
        raise unreadable(kind, str(misfit), patched=patched) from misfit


def _fit(shape: Shape, value: Any, struct: str, path: str) -> None:
    """Check one value; ``struct`` and ``path`` say which field of which struct it is in."""
    found = _kind_of(value)
    if shape.json not in ("", found):
        raise _Misfit(f"json: cannot unmarshal {found} into Go struct field {struct}.{path} of type {shape.go}")
    if shape is _INT32 and not (isinstance(value, int) and -(2**31) <= value < 2**31):
        raise _Misfit(f"json: cannot unmarshal number {value} into Go struct field {struct}.{path} of type int32")
    if shape is _QUANTITY:
        try:
            Quantity.parse(value)
        except QuantityError as error:
            raise _Misfit(_QUANTITIES) from error
    for name, inner in shape.fields.items():
        if value.get(name, ...) is None:
            del value[name]
        elif name in value:
            _fit(inner, value[name], shape.go.rpartition(".")[2], f"{path}.{name}".removeprefix("."))
    if shape.each is None:
        return
    for place, item in enumerate(value) if isinstance(value, list) else list(value.items()):
        if item is None:
            value[place] = {} if shape.each.json == "object" else shape.each.zero
        else:
            _fit(shape.each, item, struct, path)


def _kind_of(value: Any) -> str:
    """What Go calls a JSON value."""
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
    return "null"
