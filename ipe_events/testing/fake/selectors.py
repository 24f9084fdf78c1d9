"""Label and field selectors, parsed as the API server parses them."""

import re
from collections.abc import Callable
from typing import Any

from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.status import bad_request

JsonObject = dict[str, Any]
Predicate = Callable[[JsonObject], bool]

_SET = re.compile(r"^\s*(?P<key>[\w./-]+)\s+(?P<op>in|notin)\s*\(\s*(?P<values>[^()]*)\)\s*$")
_EQUAL = re.compile(r"^\s*(?P<key>[\w./-]+)\s*(?P<op>==|=|!=)\s*(?P<value>[\w.-]*)\s*$")
_EXISTS = re.compile(r"^\s*(?P<op>!?)\s*(?P<key>[\w./-]+)\s*$")
_OWN_FIELDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "pods"): ("spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase", "status.podIP"),
    ("", "events"): (
        "involvedObject.kind", "involvedObject.name", "involvedObject.namespace", "involvedObject.uid", "reason", "type",
    ),
    ("", "namespaces"): ("status.phase",),
}  # fmt: skip
"""Selectable fields beside name and namespace."""


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    return [part for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def _requirement(text: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(text):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["op"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.match(text):
        key, value = match["key"], match["value"]
        if match["op"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(text):
        key = match["key"]
        if match["op"]:
            return lambda labels: key not in labels
        return lambda labels: key in labels
    raise bad_request(f"unable to parse requirement: found '{text}', expected: key, !key, key=value, or key in (value, …)")


def label_selector(text: str) -> Predicate | None:
    """The predicate of a ``labelSelector``; None selects everything.

    Raises:
        StatusError: 400, the selector does not parse.
    """
    requirements = [_requirement(part) for part in _split(text)]
    if not requirements:
        return None

    def selects(obj: JsonObject) -> bool:
        labels = obj["metadata"].get("labels") or {}
        return all(requirement(labels) for requirement in requirements)

    return selects


def _field(obj: JsonObject, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def field_selector(text: str, kind: Kind) -> Predicate | None:
    """The predicate of a ``fieldSelector``; None selects everything.

    Raises:
        StatusError: 400, the selector does not parse, or this kind has no such selectable field.
    """
    known = ["metadata.name", "metadata.namespace"]
    known += _OWN_FIELDS.get(kind.group_resource, ())
    tests: list[tuple[str, bool, str]] = []
    for part in _split(text):
        match = re.match(r"^\s*(?P<path>[\w.-]+?)\s*(?P<op>==|=|!=)(?P<value>.*)$", part)
        if match is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        if match["path"] not in known:
            if kind.group_resource in _OWN_FIELDS:
                raise bad_request(f"field label not supported: {match['path']}")
            names = ", ".join(f'"{name}"' for name in known)
            raise bad_request(f'"{match["path"]}" is not a known field selector: only {names}')
        tests.append((match["path"], match["op"] != "!=", match["value"].strip()))
    if not tests:
        return None
    return lambda obj: all((_field(obj, path) == value) is wanted for path, wanted, value in tests)


def both(first: Predicate | None, second: Predicate | None) -> Predicate | None:
    """The conjunction."""
    if first is None or second is None:
        return first or second
    return lambda obj: first(obj) and second(obj)
