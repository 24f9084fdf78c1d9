"""Which objects of a resource count, decided here and not by the API server.

With a selector in the request the server reports an object whose label was removed as DELETED, though it lives on. So the agent
watches everything and applies Kubernetes' label and field selectors itself; an object that stops matching has *left*.
"""

import fnmatch
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from ipe_events.errors import ConfigError
from ipe_events.kube.decode import Body, Meta, Wants, labels_of

Test = Callable[[dict[str, str]], bool]

_PART = re.compile(r",(?![^()]*\))")
_SET = re.compile(r"([\w./-]+)\s+(in|notin)\s*\(([^()]*)\)")
_EQUAL = re.compile(r"([\w./-]+)\s*(==|!=|=)\s*([\w.-]*)")
_EXISTS = re.compile(r"(!?)\s*([\w./-]+)")
_FIELD = re.compile(r"([\w.]+)\s*(==|!=|=)\s*(.*)")


def parse_labels(text: str) -> tuple[Test, ...]:
    """The conditions of a label selector as ``kubectl -l`` takes it: ``app=web,tier in (a, b),!legacy``.

    Raises:
        ConfigError: names the part that is none.
    """
    return tuple(_label_test(part.strip()) for part in _PART.split(text) if part.strip())


def _label_test(part: str) -> Test:
    if found := _SET.fullmatch(part):
        key, values = found[1], frozenset(value.strip() for value in found[3].split(","))
        if found[2] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.fullmatch(part):
        key, value = found[1], found[3]
        if found[2] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTS.fullmatch(part):
        key = found[2]
        if found[1]:
            return lambda labels: key not in labels
        return lambda labels: key in labels
    raise ConfigError(f"label selector: {part!r} is no condition", fix="write it as for `kubectl -l`: app=web,tier in (a,b),!old")


def parse_fields(text: str) -> tuple[tuple[tuple[str, ...], bool, str], ...]:
    """The conditions of a field selector as (path, equal, value): ``status.phase!=Succeeded,spec.nodeName=n1``.

    Raises:
        ConfigError: names the part that is none.
    """
    conditions = []
    for part in (part.strip() for part in text.split(",")):
        found = _FIELD.fullmatch(part)
        if found:
            conditions.append((tuple(found[1].split(".")), found[2] != "!=", found[3]))
        elif part:
            raise ConfigError(f"field selector: {part!r} is no condition", fix="write it as for `kubectl --field-selector`")
    return tuple(conditions)


@dataclass(frozen=True)
class Selection:
    """All conditions together; empty ones hold for every object.

    Attributes:
        labels: label selector.
        fields: field selector; fields outside ``metadata.name`` and ``metadata.namespace`` cost a full decode per object.
        namespaces: globs; cluster-scoped objects always match.
    """

    labels: str = ""
    fields: str = ""
    namespaces: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        _ = self._labels, self._fields, self._namespaces  # parsed now, so that a mistake is told when the agent starts

    @cached_property
    def _labels(self) -> tuple[Test, ...]:
        return parse_labels(self.labels)

    @cached_property
    def _fields(self) -> tuple[tuple[tuple[str, ...], bool, str], ...]:
        return parse_fields(self.fields)

    @cached_property
    def _namespaces(self) -> re.Pattern[str] | None:
        return None if "*" in self.namespaces else re.compile("|".join(map(fnmatch.translate, self.namespaces)) or r"(?!)")

    @property
    def everything(self) -> bool:
        """Whether no object can fail it."""
        return not self._labels and not self._fields and self._namespaces is None

    @property
    def wants(self) -> Wants:
        """What ``matches`` needs decoded."""
        return Wants(labels=bool(self._labels))

    @property
    def digest(self) -> str:
        """The same for the same selection, over restarts."""
        return hashlib.sha256(msgspec.json.encode((self.labels, self.fields, sorted(self.namespaces)))).hexdigest()[:16]

    def matches(self, meta: Meta, body: Body) -> bool:
        """Whether an object counts."""
        if self._namespaces is not None and meta.namespace and not self._namespaces.match(meta.namespace):
            return False
        if self._labels:
            labels = labels_of(meta)
            if not all(test(labels) for test in self._labels):
                return False
        return not self._fields or self._fields_match(meta, body)

    def _fields_match(self, meta: Meta, body: Body) -> bool:
        document: Any = None
        for path, equal, wanted in self._fields:
            if path == ("metadata", "name"):
                value: Any = meta.name
            elif path == ("metadata", "namespace"):
                value = meta.namespace
            else:
                document = msgspec.json.decode(body) if document is None else document
                value = document
                for key in path:
                    value = value.get(key) if isinstance(value, dict) else None
            if (_as_text(value) == wanted) != equal:
                return False
        return True


def _as_text(value: Any) -> str:
    """A field as selectors compare it: absent is empty, booleans are lower case."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
