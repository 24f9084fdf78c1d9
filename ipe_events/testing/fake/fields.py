"""``metadata.managedFields`` of Update operations: who set which field last.

The real server compares the live object with the new one through the schema of its type; this module does the same without
schemas, from what is common to the built-in types: a map owns its keys one by one, a few lists are keyed (containers by name,
ports by number and protocol …), every other list is one value, and a few maps are (label selectors, references). A set of
fields is held in the wire form's shape, with each owned path marked by ``"."``, so that reading and writing stay trivial.
"""

from typing import Any

import orjson

JsonObject = dict[str, Any]
FieldSet = dict[str, Any]
"""``{"f:spec": {"f:replicas": {".": {}}}}``: nested path elements, ``"."`` where the path itself is owned."""

LIST_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",), "initContainers": ("name",), "ephemeralContainers": ("name",), "env": ("name",),
    "volumes": ("name",), "volumeMounts": ("mountPath",), "volumeDevices": ("devicePath",), "imagePullSecrets": ("name",),
    "conditions": ("type",), "ownerReferences": ("uid",), "hostAliases": ("ip",), "podIPs": ("ip",), "addresses": ("type",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"), "resourceClaims": ("name",),
}  # fmt: skip
SET_LISTS = frozenset({"finalizers"})
ATOMIC_MAPS = frozenset({
    "selector", "nodeSelector", "labelSelector", "podSelector", "namespaceSelector", "fieldRef", "resourceFieldRef",
    "configMapKeyRef", "secretKeyRef", "secretRef", "scopeSelector", "involvedObject", "objectRef", "targetRef", "claimRef",
})  # fmt: skip
ALWAYS_THERE = frozenset(
    {"metadata", "spec", "status", "template", "jobTemplate", "strategy", "updateStrategy", "scaleTargetRef"}
)
"""Structs that exist in every object of their type: never owned themselves, only their fields are."""

_UNTRACKED_METADATA = frozenset({
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink",
})  # fmt: skip
_CUSTOM_LISTS = frozenset({"ownerReferences", "finalizers"})
_OWNED: FieldSet = {".": {}}


def tracked(obj: JsonObject) -> JsonObject:
    """The part of an object that managers can own."""
    metadata = {key: value for key, value in obj.get("metadata", {}).items() if key not in _UNTRACKED_METADATA}
    return {k: v for k, v in obj.items() if k not in ("kind", "apiVersion", "metadata")} | {"metadata": metadata}


class Comparison:
    """Which fields of ``new`` differ from ``old`` (``changed``: added or other value), and which are gone (``removed``)."""

    def __init__(self, old: JsonObject, new: JsonObject, *, custom: bool) -> None:
        self._custom = custom
        self.changed: FieldSet = {}
        self.removed: FieldSet = {}
        self._compare("", tracked(old), tracked(new), self.changed, self.removed)

    def _compare(self, name: str, old: Any, new: Any, changed: FieldSet, removed: FieldSet) -> None:
        if old == new:
            return
        old_children, new_children = self._children(name, old), self._children(name, new)
        if old_children is None or new_children is None:
            changed["."] = {}
            return
        for element, (child, value) in new_children.items():
            below_changed: FieldSet = {}
            below_removed: FieldSet = {}
            if element in old_children:
                self._compare(child, old_children[element][1], value, below_changed, below_removed)
            else:
                below_changed = self._everything(child, value)
            if below_changed:
                changed[element] = below_changed
            if below_removed:
                removed[element] = below_removed
        for element, (child, value) in old_children.items():
            if element not in new_children and (below := self._everything(child, value)):
                removed[element] = below

    def _everything(self, name: str, value: Any) -> FieldSet:
        children = self._children(name, value)
        if not children:
            return {} if self._implied(name) and value == {} else dict(_OWNED)
        owned: FieldSet = {} if self._implied(name) else {".": {}}
        for element, (child, below) in children.items():
            if below_owned := self._everything(child, below):
                owned[element] = below_owned
        return owned

    def _implied(self, name: str) -> bool:
        if self._custom:
            return name == "metadata"
        return name in ALWAYS_THERE or name == "containers"

    def _children(self, name: str, value: Any) -> dict[str, tuple[str, Any]] | None:
        """Path elements below ``value`` with (field name, value); None when it is one indivisible value."""
        if isinstance(value, dict):
            if not self._custom and name in ATOMIC_MAPS:
                return None
            return {f"f:{key}": (key, below) for key, below in value.items()}
        if isinstance(value, list) and not (self._custom and name not in _CUSTOM_LISTS):
            return _keyed_items(name, value)
        return None


def _keyed_items(name: str, items: list[Any]) -> dict[str, tuple[str, Any]] | None:
    if name in SET_LISTS:
        return {f"v:{_json(item)}": ("", item) for item in items}
    keys = _port_keys(items) if name == "ports" else LIST_KEYS.get(name)
    if keys is None or not all(isinstance(item, dict) and keys[0] in item for item in items):
        return None
    return {f"k:{_json({key: item[key] for key in keys if key in item})}": ("", item) for item in items}


def _port_keys(items: list[Any]) -> tuple[str, ...] | None:
    first = items[0] if items and isinstance(items[0], dict) else {}
    for number in ("containerPort", "port"):
        if number in first:
            return number, "protocol"
    return None


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _union(left: FieldSet, right: FieldSet) -> FieldSet:
    merged = dict(left)
    for element, below in right.items():
        merged[element] = _union(merged[element], below) if element in merged and element != "." else below
    return merged


def _minus(left: FieldSet, right: FieldSet) -> FieldSet:
    rest: FieldSet = {}
    for element, below in left.items():
        if element == ".":
            if "." not in right:
                rest["."] = {}
        elif element not in right:
            rest[element] = below
        elif remaining := _minus(below, right[element]):
            rest[element] = remaining
    return rest


def _parse(fields: JsonObject) -> FieldSet:
    return {e: {} if e == "." else (_parse(below) if below else dict(_OWNED)) for e, below in fields.items()}


def _write(fields: FieldSet) -> JsonObject:
    written: JsonObject = {}
    for element in sorted(fields):
        below = fields[element]
        written[element] = {} if element == "." or below == _OWNED else _write(below)
    return written


def _without(wire: JsonObject, gone: FieldSet) -> JsonObject:
    """``wire`` minus ``gone``; the same object when they share nothing, which is the rule: most writes touch few fields."""
    return _write(_minus(_parse(wire), gone)) if _meet(wire, gone) else wire


def _meet(wire: JsonObject, fields: FieldSet) -> bool:
    """Whether some field is in both."""
    return any(
        element == "." or ("." in below if not wire[element] else _meet(wire[element], below))
        for element, below in fields.items()
        if element in wire
    )


def _holds(wire: JsonObject, fields: FieldSet) -> bool:
    """Whether ``wire`` has all of ``fields``."""
    return all(
        element in wire and (element == "." or (below == _OWNED if not wire[element] else _holds(wire[element], below)))
        for element, below in fields.items()
    )


def after_update(
    entries: list[JsonObject],
    old: JsonObject,
    new: JsonObject,
    *,
    manager: str,
    api_version: str,
    subresource: str,
    time: str,
    custom: bool,
) -> list[JsonObject]:
    """The ``managedFields`` of ``new`` after ``manager`` turned ``old`` into it.

    Args:
        entries: the managedFields of ``old``; not touched.
        old: the live object, ``{}`` on create.
        new: the object to be stored.
        manager: the field manager's name.
        api_version: of the request.
        subresource: ``status``, ``scale`` or empty.
        time: RFC 3339, whole seconds.
        custom: a custom resource (no schema knowledge).
    """
    difference = Comparison(old, new, custom=custom)
    if subresource == "scale":
        _as_scale_does(difference, entries, new)
    changed, removed = difference.changed, difference.removed
    mine = (manager, "Update", api_version, subresource)
    result: list[JsonObject] = []
    own: JsonObject = {}
    for entry in entries:
        fields = _without(entry.get("fieldsV1", {}), removed)
        if (entry.get("manager"), entry.get("operation"), entry.get("apiVersion"), entry.get("subresource", "")) == mine:
            own = fields
            if not changed and fields:
                result.append(entry | {"fieldsV1": fields})
        elif left := _without(fields, changed):
            result.append(entry if left is entry.get("fieldsV1") else entry | {"fieldsV1": left})
    if changed:
        mine_entry: JsonObject = {"manager": manager, "operation": "Update", "apiVersion": api_version}
        if subresource != "scale":  # the real server forgets the time of these
            mine_entry["time"] = time
        fields_v1 = own if _holds(own, changed) else _write(_union(_parse(own), changed))
        mine_entry |= {"fieldsType": "FieldsV1", "fieldsV1": fields_v1}
        if subresource:
            mine_entry["subresource"] = subresource
        result.append(mine_entry)
    return sorted(result, key=lambda e: (e["operation"], e.get("time", ""), e["manager"], e.get("subresource", "")))


def _as_scale_does(difference: Comparison, entries: list[JsonObject], new: JsonObject) -> None:
    """The real server's accounting of ``/scale``: zero replicas belong to nobody, and what is nobody's stays nobody's.

    A Scale leaves zero replicas out, so scaling to zero removes the field from every manager; and a scale of a field without an
    owner records none. Only a write of the object itself gives it an owner again.
    """
    replicas: FieldSet = {"f:spec": {"f:replicas": {".": {}}}}
    owned = any("f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {}) for entry in entries)
    if not new.get("spec", {}).get("replicas"):
        difference.changed, difference.removed = {}, replicas
    elif not owned:
        difference.changed = {}
