"""ResourceQuota: what a create may still take of a namespace's budget, and what is used of it.

``check`` refuses in the real server's words before an object is stored; ``settle`` books the difference afterwards, so that
``status.used`` follows every create, delete and phase change at the cost of one subtraction, whatever the namespace holds. Quotas
with scopes are refused, not ignored.
"""

from typing import Any, Protocol

from ipe_events.objects.quantity import Quantity
from ipe_events.testing.fake import status
from ipe_events.testing.fake.kinds import Kind, Registry
from ipe_events.testing.fake.store import ObjectKey, Store

JsonObject = dict[str, Any]
Usage = dict[str, Quantity]

_QUOTAS = ("", "resourcequotas")
_NOTHING = Quantity(0)
_SHORT_COUNTS = frozenset({
    "pods", "services", "configmaps", "secrets", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas",
})  # fmt: skip
"""Core resources that a quota may count by their plural alone."""
_COMPUTE = ("cpu", "memory", "ephemeral-storage")
_MUST_SPECIFY = frozenset({"cpu", "memory", *(f"{side}.{name}" for side in ("requests", "limits") for name in ("cpu", "memory"))})


class Writes(Protocol):
    """What quotas need of the operations."""

    store: Store
    registry: Registry

    def commit(self, kind: Kind, key: ObjectKey, before: JsonObject | None, new: JsonObject) -> JsonObject:
        """Store an object as it is."""
        ...


class Quotas:
    """The quotas of one cluster."""

    def __init__(self, writes: Writes) -> None:
        self._writes = writes

    def check(self, kind: Kind, key: ObjectKey, new: JsonObject) -> None:
        """Refuse ``new`` when a quota of its namespace has no room, or cannot be served truthfully.

        Raises:
            StatusError: 403, or 422 for a quota with scopes.
        """
        if kind.group_resource == _QUOTAS:
            for field in ("scopes", "scopeSelector"):
                if new.get("spec", {}).get(field):
                    message = "Forbidden: this simulated cluster does not support quota scopes"
                    raise status.invalid(kind, key[1], (f"spec.{field}", "FieldValueForbidden", message))
        if not kind.namespaced:
            return
        for (_, name), item in self._writes.store.items(_QUOTAS, key[0]):
            hard = _quantities(item.obj.get("status", {}).get("hard"))
            used = _quantities(item.obj.get("status", {}).get("used"))
            _check_specified(kind, key, new, name, hard)
            requested = {resource: amount for resource, amount in usage(kind, new).items() if resource in hard}
            over = [r for r, amount in sorted(requested.items()) if amount and used.get(r, _NOTHING) + amount > hard[r]]
            if over:
                parts = (_listed(requested, over), _listed(used, over), _listed(hard, over))
                why = f"exceeded quota: {name}, requested: {parts[0]}, used: {parts[1]}, limited: {parts[2]}"
                raise status.refused_by_admission(kind, key[1], why)

    def settle(self, kind: Kind, key: ObjectKey, before: JsonObject | None, after: JsonObject | None) -> None:
        """Book the difference that a write made; a quota that is new or changed is counted from scratch."""
        if not kind.namespaced:
            return
        if kind.group_resource == _QUOTAS and after is not None:
            self._count(kind, key, after)
        quotas = self._writes.registry.at("", "v1", "resourcequotas")
        in_force = self._writes.store.items(_QUOTAS, key[0])
        freed, taken = (usage(kind, before or {}), usage(kind, after or {})) if in_force else ({}, {})
        if freed == taken:
            return
        for quota_key, item in in_force:
            if quotas is None or quota_key == key:
                continue
            hard = item.obj.get("status", {}).get("hard") or {}
            used = _quantities(item.obj["status"].get("used"))
            for resource in hard:
                change = taken.get(resource, _NOTHING) - freed.get(resource, _NOTHING)
                used[resource] = used.get(resource, _NOTHING) + change
            self._write(quotas, quota_key, item.obj, hard, used)

    def _count(self, kind: Kind, key: ObjectKey, quota: JsonObject) -> None:
        hard = quota.get("spec", {}).get("hard") or {}
        if quota.get("status", {}).get("hard") == hard and "used" in quota.get("status", {}):
            return
        used = dict.fromkeys(hard, _NOTHING)
        for counted in self._writes.registry:
            if counted.namespaced:
                for _, item in self._writes.store.items(counted.group_resource, key[0]):
                    for resource, amount in usage(counted, item.obj).items():
                        if resource in used:
                            used[resource] += amount
        self._write(kind, key, quota, hard, used)

    def _write(self, kind: Kind, key: ObjectKey, quota: JsonObject, hard: JsonObject, used: Usage) -> None:
        booked = {"hard": hard, "used": {resource: str(used[resource]) for resource in hard}}
        if quota.get("status") != booked:
            self._writes.commit(kind, key, quota, quota | {"metadata": dict(quota["metadata"]), "status": booked})


def usage(kind: Kind, obj: JsonObject) -> Usage:
    """What one object takes of a quota, by the quota's resource names; empty for no object."""
    if not obj:
        return {}
    one = Quantity.parse(1)
    taken = {f"count/{kind.qualified}": one}
    if not kind.group and kind.resource == "pods":
        if obj.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            taken |= {"pods": one} | _compute(obj.get("spec", {}))
    elif not kind.group and kind.resource in _SHORT_COUNTS:
        taken[kind.resource] = one
    if kind.group_resource == ("", "persistentvolumeclaims"):
        requests = obj.get("spec", {}).get("resources", {}).get("requests", {})
        if "storage" in requests:
            taken["requests.storage"] = Quantity.parse(requests["storage"])
    return taken


def _compute(spec: JsonObject) -> Usage:
    """Requests and limits of a pod: the sum over its containers, or the largest init container if that is more."""
    taken: Usage = {}
    for side in ("requests", "limits"):
        for name in _COMPUTE:
            running = [_resource(container, side, name) for container in spec.get("containers") or []]
            total = sum((amount for amount in running if amount is not None), _NOTHING)
            initial = [_resource(container, side, name) for container in spec.get("initContainers") or []]
            needed = max([total, *(amount for amount in initial if amount is not None)])
            if needed:
                taken[f"{side}.{name}"] = needed
                if side == "requests":
                    taken[name] = needed
    return taken


def _resource(container: JsonObject, side: str, name: str) -> Quantity | None:
    resources = container.get("resources") or {}
    text = (resources.get(side) or {}).get(name)
    if text is None and side == "requests":  # a limit without a request is the request
        text = (resources.get("limits") or {}).get(name)
    return None if text is None else Quantity.parse(text)


def _check_specified(kind: Kind, key: ObjectKey, new: JsonObject, quota: str, hard: Usage) -> None:
    """A quota on cpu or memory demands that every container says how much.

    Raises:
        StatusError: 403.
    """
    if kind.group_resource != ("", "pods"):
        return
    missing: dict[str, list[str]] = {}
    for resource in sorted(_MUST_SPECIFY & hard.keys()):
        side, _, name = resource.rpartition(".")
        for container in new.get("spec", {}).get("containers") or []:
            if _resource(container, side or "requests", name) is None:
                missing.setdefault(resource, []).append(str(container.get("name")))
    if missing:
        told = "; ".join(f"{resource} for: {','.join(names)}" for resource, names in missing.items())
        raise status.refused_by_admission(kind, key[1], f"failed quota: {quota}: must specify {told}")


def _quantities(texts: JsonObject | None) -> Usage:
    return {resource: Quantity.parse(text) for resource, text in (texts or {}).items()}


def _listed(amounts: Usage, resources: list[str]) -> str:
    return ",".join(f"{resource}={amounts.get(resource, _NOTHING)}" for resource in resources)
