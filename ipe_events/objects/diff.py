"""What differs between two versions of an object, in the words of Kubernetes: lists with keys are sets of named items.

``containers`` are told apart by ``name``, ``ports`` by number and protocol, ``conditions`` by ``type``: an item that moved has
not changed, and an item that was inserted has not changed all that follow it. Lists without keys, with an item that lacks its
key, or with one key twice, are compared as one value, as the API server does. Parts that are equal, nearly all of an object, are
recognised in C and never walked; no copies are made.

``to_json_patch`` turns differences into an RFC 6902 patch that first *tests* everything it relies on (old values, and which item
stands at an index), then changes it: an API server carries out all of it or nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import orjson

from ipe_events.objects import quantity
from ipe_events.objects.paths import KEY_DEFAULTS, Item, KeyedPath, Pointer, keyed_text, pointer

Kind = Literal["added", "removed", "changed"]

ListKeys = Mapping[str, tuple[tuple[str, ...], ...]]
"""Name of a list's field → sets of merge keys; the first set that every item has is the one."""

LIST_KEYS: ListKeys = {
    "addresses": (("type", "address"),),
    "claims": (("name",),),
    "conditions": (("type",),),
    "containers": (("name",),),
    "containerStatuses": (("name",),),
    "env": (("name",),),
    "ephemeralContainers": (("name",),),
    "ephemeralContainerStatuses": (("name",),),
    "hostAliases": (("ip",),),
    "hostIPs": (("ip",),),
    "imagePullSecrets": (("name",),),
    "initContainers": (("name",),),
    "initContainerStatuses": (("name",),),
    "matchConditions": (("name",),),
    "ownerReferences": (("uid",),),
    "podIPs": (("ip",),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "readinessGates": (("conditionType",),),
    "resourceClaims": (("name",),),
    "schedulingGates": (("name",),),
    "secrets": (("name",),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "volumeDevices": (("devicePath",),),
    "volumeMounts": (("mountPath",),),
    "volumes": (("name",),),
    "webhooks": (("name",),),
}
"""Merge keys of the built-in kinds. Every other list is compared as one value."""

QUANTITY_FIELDS = frozenset(
    {
        "allocatable",
        "allocatedResources",
        "capacity",
        "default",
        "defaultRequest",
        "hard",
        "limits",
        "overhead",
        "requests",
        "used",
    }
)
"""Fields that map resource names to quantities."""


_ABSENT = object()


class Difference(NamedTuple):
    """One difference.

    Attributes:
        kind: ``added`` (only in the new version), ``removed`` (only in the old one), ``changed``.
        path: where, with items of keyed lists named.
        at: where in the old version, by position; of an added item: how many of the items that stay stand before it.
        old: the old value; None when added.
        new: the new value; None when removed.
    """

    kind: Kind
    path: KeyedPath
    at: Pointer
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.kind} {keyed_text(self.path)}"


def diff(old: Any, new: Any, *, semantic: bool = False, list_keys: ListKeys = LIST_KEYS) -> list[Difference]:
    """What differs between two versions of an object.

    Args:
        old: plain JSON.
        new: plain JSON.
        semantic: treat two spellings of one quantity (``1000m``, ``1``) as equal where quantities stand. Only for comparing: the
            differences then no longer turn ``old`` into ``new`` to the letter.
        list_keys: which lists have keys.

    Returns:
        Differences in a fixed order: inside an object by the new version's keys, then what was removed; inside a keyed list the
        common items, then removed ones from the end, then added ones from the start.
    """
    walk = _Walk(list_keys, semantic, skipped=([], []))
    walk.value(old, new, (), (), "")
    if walk.skipped_rightly():
        return walk.found
    walk = _Walk(list_keys, semantic, skipped=None)
    walk.value(old, new, (), (), "")
    return walk.found


class _Walk:
    """One comparison.

    Parts that ``==`` finds equal are skipped. It takes ``True`` for ``1``, also deep inside, so what was skipped is collected and
    its JSON text compared once at the end; should that differ, everything is walked again without skipping.
    """

    __slots__ = ("_list_keys", "_semantic", "_skipped", "found")

    def __init__(self, list_keys: ListKeys, semantic: bool, skipped: tuple[list[Any], list[Any]] | None) -> None:
        self.found: list[Difference] = []
        self._list_keys = list_keys
        self._semantic = semantic
        self._skipped = skipped

    def skipped_rightly(self) -> bool:
        """Whether everything skipped is equal in JSON too; a no may be for other reasons (order of keys, ``1`` and ``1.0``)."""
        try:
            return self._skipped is None or orjson.dumps(self._skipped[0]) == orjson.dumps(self._skipped[1])
        except TypeError:  # an integer beyond 64 bits
            return False

    def _skips(self, old: Any, new: Any) -> bool:
        """Whether two values that ``==`` finds equal need no walk."""
        if old is new:
            return True
        if self._skipped is None:
            return type(new) is not dict and type(new) is not list and equal(old, new)
        self._skipped[0].append(old)
        self._skipped[1].append(new)
        return True

    def value(self, old: Any, new: Any, path: KeyedPath, at: Pointer, field: str) -> None:
        """Compare two values that stand at one place, in an object's field of this name."""
        kind = type(new)
        if kind is dict and type(old) is dict:
            self.mapping(old, new, path, at, field)
        elif kind is list and type(old) is list:
            self.sequence(old, new, path, at, field)
        elif not equal(old, new):
            self.found.append(Difference("changed", path, at, old, new))

    def mapping(self, old: dict[str, Any], new: dict[str, Any], path: KeyedPath, at: Pointer, field: str) -> None:
        quantities = self._semantic and field in QUANTITY_FIELDS
        for key, after in new.items():
            before = old.get(key, _ABSENT)
            if before is after or (before == after and (type(after) is str or self._skips(before, after))):
                continue
            if before is _ABSENT:
                self.found.append(Difference("added", (*path, key), (*at, key), None, after))
            elif not (quantities and quantity.same_quantity(before, after)):
                self.value(before, after, (*path, key), (*at, key), key)
        if len(old) != len(new) or old.keys() != new.keys():
            for key, before in old.items():
                if key not in new:
                    self.found.append(Difference("removed", (*path, key), (*at, key), before, None))

    def sequence(self, old: list[Any], new: list[Any], path: KeyedPath, at: Pointer, field: str) -> None:
        named = self._named(old, new, field) if field in self._list_keys else None
        if named is None:
            if not equal(old, new):
                self.found.append(Difference("changed", path, at, old, new))
            return
        before, after = named
        for item, value in after.items():
            if item in before:
                index, was = before[item]
                if was != value[1] or not self._skips(was, value[1]):
                    self.value(was, value[1], (*path, item), (*at, index), "")
        for item, (index, was) in reversed(before.items()):
            if item not in after:
                self.found.append(Difference("removed", (*path, item), (*at, index), was, None))
        staying = 0
        for item, (_, value) in after.items():
            if item in before:
                staying += 1
            else:
                self.found.append(Difference("added", (*path, item), (*at, staying), None, value))

    def _named(self, old: list[Any], new: list[Any], field: str) -> tuple["_Named", "_Named"] | None:
        """Both lists by item, or None when they are compared as one value."""
        for keys in self._list_keys[field]:
            before = _by_item(old, keys)
            after = _by_item(new, keys) if before is not None else None
            if before is not None and after is not None:
                return before, after
        return None


_Named = dict[Item, tuple[int, Any]]


def _by_item(values: list[Any], keys: tuple[str, ...]) -> _Named | None:
    """Item → (index, value), or None when an item has no such key or two have the same."""
    named: _Named = {}
    for index, value in enumerate(values):
        if type(value) is not dict:
            return None
        parts: list[str | int] = []
        for key in keys:
            part = value.get(key, KEY_DEFAULTS.get(key))
            if type(part) is not str and type(part) is not int:
                return None
            parts.append(part)
        named[Item(keys, tuple(parts))] = (index, value)
    return named if len(named) == len(values) else None


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal. Unlike ``==``, ``True`` is not ``1``; like JSON, ``1`` is ``1.0``."""
    if type(one) is dict and type(other) is dict:
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if type(one) is list and type(other) is list:
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other) and (type(one) is bool) is (type(other) is bool)


def to_json_patch(differences: Iterable[Difference]) -> list[dict[str, Any]]:
    """The RFC 6902 patch that makes these changes to the old version, or fails if it is no longer what it was.

    All ``test`` operations come first and see the object as it is: the old value of everything changed or removed, and the merge
    keys of every item that an index stands for. That something is still *absent* RFC 6902 cannot test.

    Args:
        differences: of one ``diff``, in its order; some may be left out.
    """
    tests: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    tested: set[Pointer] = set()
    grown: dict[Pointer, int] = {}
    for difference in differences:
        tests.extend(_identity_tests(difference, tested))
        at = difference.at
        if difference.kind == "added":
            if isinstance(difference.path[-1], Item):
                earlier = grown.get(at[:-1], 0)
                grown[at[:-1]] = earlier + 1
                at = (*at[:-1], int(at[-1]) + earlier)
            changes.append({"op": "add", "path": pointer(at), "value": difference.new})
            continue
        tests.append({"op": "test", "path": pointer(at), "value": difference.old})
        if difference.kind == "removed":
            changes.append({"op": "remove", "path": pointer(at)})
        else:
            changes.append({"op": "replace", "path": pointer(at), "value": difference.new})
    return tests + changes


def _identity_tests(difference: Difference, tested: set[Pointer]) -> Iterable[dict[str, Any]]:
    """Tests that the indexes on the way to a difference still stand for the items that were meant."""
    for depth, part in enumerate(difference.path[:-1]):
        place = difference.at[: depth + 1]
        if isinstance(part, Item) and place not in tested:
            tested.add(place)
            for key, value in zip(part.keys, part.values, strict=True):
                # a key with its default value may be absent, and a test of it would fail
                if KEY_DEFAULTS.get(key) != value:
                    yield {"op": "test", "path": pointer((*place, key)), "value": value}
