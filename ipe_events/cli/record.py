"""One line of the record: what any message on the bus says, whatever its topic.

``entry_of`` reads subject, headers and body of a message into an ``Entry``; it is pure and never fails, since a reader of the
record must be able to look at what a broken or hostile peer wrote: what cannot be read is said in the entry's summary. ``Query``
is what the commands' filters mean: the subjects that the server filters by, and the rest, which is filtered here.
"""

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from ipe_events.errors import IpeError, SubjectError
from ipe_events.subjects import ACT, CHANGE, CLUSTER, COMMAND, DLQ, EVENT, FINDING, OUTCOME, Topic, topic_of

RECORDED: tuple[Topic, ...] = (CHANGE, CLUSTER, FINDING, EVENT, COMMAND, OUTCOME, ACT, DLQ)
"""Topics that `ipe events` reads."""

UNREADABLE = "unreadable"
"""The topic of a message whose subject belongs to none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message.

    Attributes:
        ref: ``STREAM:SEQUENCE``, short and exact for `events show` and `events trace`.
        id: its CloudEvents id.
        time: when the stream stored it.
        topic: name of its topic, ``unreadable`` when its subject is none.
        subject: the NATS subject.
        cluster, namespace, resource, name: the object it is about; empty where it is about none.
        verb: the change's or the command's verb, the cluster event's state, the finding's type, the operator's act.
        handler: its author, for findings, events, commands, outcomes and dead letters.
        status: an outcome's status, a finding's severity; empty otherwise.
        summary: one sentence for people.
        cause: id of the event it names as its cause.
        uid, resource_version: of the object after the change or write.
        trace: the W3C trace id.
        headers: all of them.
        data: the body when it is a JSON object.
    """

    ref: str
    id: str
    time: datetime
    topic: str
    subject: str
    cluster: str = ""
    namespace: str = ""
    resource: str = ""
    name: str = ""
    verb: str = ""
    handler: str = ""
    status: str = ""
    summary: str = ""
    cause: str = ""
    uid: str = ""
    resource_version: str = ""
    trace: str = ""
    headers: Mapping[str, str] | None = None
    data: Mapping[str, Any] | None = None

    @property
    def target(self) -> str:
        """The object as ``namespace/resource/name``, as far as known."""
        return "/".join(part for part in (self.namespace, self.resource, self.name) if part)

    def as_data(self) -> dict[str, Any]:
        """The entry as a JSON object (version 1), without body and headers."""
        return {
            "ref": self.ref, "id": self.id, "time": self.time.isoformat(), "topic": self.topic, "subject": self.subject,
            "cluster": self.cluster, "namespace": self.namespace, "resource": self.resource, "name": self.name,
            "verb": self.verb, "handler": self.handler, "status": self.status, "summary": self.summary, "cause": self.cause,
            "uid": self.uid, "resourceVersion": self.resource_version, "trace": self.trace,
        }  # fmt: skip


def entry_of(ref: str, subject: str, time: datetime, headers: Mapping[str, str], body: bytes) -> Entry:
    """What a message says; a message that cannot be read says so in ``summary``."""
    headers = {name: unquote(value) if name.startswith(("ce-", "ipe-")) else value for name, value in headers.items()}
    common: dict[str, Any] = {
        "ref": ref,
        "id": headers.get("ce-id") or headers.get("Nats-Msg-Id", ""),
        "time": time,
        "subject": subject,
        "headers": headers,
        "cause": headers.get("ce-cause", ""),
        "trace": _trace_id(headers.get("traceparent", "")),
    }
    try:
        topic = topic_of(subject)
        tokens = topic.parse(subject)
    except SubjectError as error:
        return Entry(**common, topic=UNREADABLE, summary=error.message)
    common |= {
        "topic": topic.name,
        "cluster": tokens.get("cluster", ""),
        "namespace": tokens.get("namespace", ""),
        "handler": tokens.get("handler", ""),
        "verb": tokens.get("verb") or tokens.get("state") or tokens.get("type") or tokens.get("act") or "",
    }
    if topic is CHANGE:
        return _change(common, tokens, headers, body)
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    if topic is DLQ:
        return _dead_letter(common, headers, data)
    if not isinstance(data, dict):
        return Entry(**common, summary=f"the body ({len(body)} bytes) is not a JSON object")
    return _payload(common, topic, data)


def _change(common: dict[str, Any], tokens: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Entry:
    parts = common["id"].split("/")
    resource = f"{tokens['resource']}.{tokens['group']}" if tokens["group"] else tokens["resource"]
    name = headers.get("ce-name", "")
    synthetic = ", found by a relist" if headers.get("ce-synthetic") == "true" else ""
    return Entry(
        **common,
        resource=resource,
        name=name,
        uid=parts[4] if len(parts) == 7 else "",
        resource_version=parts[5] if len(parts) == 7 else "",
        summary=f"{headers.get('ce-kind') or resource} {name} {tokens['verb']}{synthetic} ({len(body)} bytes)",
    )


def _dead_letter(common: dict[str, Any], headers: Mapping[str, str], data: object) -> Entry:
    error = headers.get("ipe-dlq-error", "no reason header")
    message = headers.get("ipe-dlq-message", "")
    return Entry(
        **common,
        summary=f"given up after {headers.get('ipe-dlq-attempts', '?')} attempts: {error}" + (f": {message}" if message else ""),
        data=data if isinstance(data, dict) else None,
    )


def _payload(common: dict[str, Any], topic: Topic, data: Mapping[str, Any]) -> Entry:
    """Findings, commands, outcomes, acts and the rest: JSON bodies."""
    places = (data[key] for key in ("subject", "target", "object_ref") if isinstance(data.get(key), dict))
    about: Mapping[str, Any] = next(places, {})
    group, resource = _text(about, "group"), _text(about, "resource")
    if topic is COMMAND:
        common["id"] = _text(data, "id") or common["id"]
    cause = common.pop("cause") or (_text(data, "command") if topic is OUTCOME else "") or _text(data, "cause")
    return Entry(
        **common | {"namespace": _text(about, "namespace") or common["namespace"]},
        cause=cause,
        resource=f"{resource}.{group}" if group else resource or _text(data, "resource"),
        name=_text(about, "name"),
        status=_text(data, "status") or _text(data, "severity"),
        summary=_summary(topic, data),
        uid=_text(data, "uid") or _text(about, "uid"),
        resource_version=_text(data, "resource_version"),
        data=data,
    )


def _summary(topic: Topic, data: Mapping[str, Any]) -> str:
    if topic is COMMAND:
        return f"{_asked(data.get('action'))}: {_text(data, 'reason')}"
    if topic is OUTCOME:
        by = f" by {_text(data, 'guardrail')}" if _text(data, "guardrail") else ""
        message = _text(data, "message")
        return f"{_text(data, 'status')}{by}" + (f": {message}" if message else "")
    if topic is CLUSTER:
        said = [_text(data, key) for key in ("cause", "error", "detail", "version")]
        return ", ".join(part for part in said if part)
    if topic is ACT:
        words = [_text(data, key) for key in ("user", "act", "target", "reason")]
        return " ".join(word for word in words if word)
    return _text(data, "message") or ", ".join(f"{key}={value}" for key, value in list(data.items())[:4])


def _asked(action: object) -> str:
    """What a command's action does, in a few words."""
    if not isinstance(action, dict):
        return "unreadable action"
    verb = _text(action, "verb")
    operations = action.get("operations")
    if verb == "patch" and isinstance(operations, list):
        changes = [one for one in operations if isinstance(one, dict) and one.get("op") != "test"]
        return (
            "patch " + ", ".join(f"{one.get('path')} → {one.get('value')}" for one in changes[:3]) + (" …" if changes[3:] else "")
        )
    if verb == "scale":
        return f"scale to {action.get('replicas')}"
    return verb


def _trace_id(traceparent: str) -> str:
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries a command wants.

    Attributes:
        topics: names of topics; empty: all recorded ones but heartbeats.
        cluster: name or glob; empty: all.
        namespace: exact; empty: all.
        resource: as ``deployments.apps``; empty: all.
        verb: exact (change or command verb, state, type or act); empty: all.
        handler: exact; empty: all.
    """

    topics: tuple[str, ...] = ()
    cluster: str = ""
    namespace: str = ""
    resource: str = ""
    verb: str = ""
    handler: str = ""

    def streams(self) -> dict[str, list[str]]:
        """Stream → subject filters, as narrow as the server can."""
        found: dict[str, list[str]] = {}
        for topic in RECORDED:
            if self.topics and topic.name not in self.topics:
                continue
            wanted = self._wanted(topic)
            if wanted is not None:
                found.setdefault(topic.stream, []).append(topic.filter(**wanted))
        return found

    def _wanted(self, topic: Topic) -> dict[str, str] | None:
        """The tokens to filter a topic's subjects by, or None when nothing of it can match."""
        resource, _, group = self.resource.partition(".")
        exact = {
            "cluster": "" if any(letter in self.cluster for letter in "*?[") else self.cluster,
            "namespace": self.namespace,
            "handler": self.handler,
        }
        if topic is CHANGE:
            if self.handler:
                return None
            exact |= {"verb": self.verb, "resource": resource, "group": group}
        if (self.cluster and "cluster" not in topic.fields) or (self.handler and "handler" not in topic.fields):
            return None
        wanted = {key: value for key, value in exact.items() if value and key in topic.fields}
        if topic is CHANGE and self.resource:
            wanted["group"] = group  # the core group's name is empty, and still a filter
        return wanted

    def matches(self, entry: Entry) -> bool:
        """What the server's filters cannot say."""
        if not self.topics and not self.verb and entry.topic == CLUSTER.name and entry.verb == "heartbeat":
            return False
        return (
            (not self.cluster or fnmatch.fnmatchcase(entry.cluster, self.cluster))
            and (not self.namespace or entry.namespace == self.namespace)
            and (not self.resource or entry.resource == self.resource)
            and (not self.verb or entry.verb == self.verb)
            and (not self.handler or entry.handler == self.handler)
        )


def parse_ref(text: str) -> tuple[str, int] | None:
    """Stream and sequence of ``STREAM:SEQUENCE``; None when the text is something else."""
    stream, colon, seq = text.rpartition(":")
    return (stream, int(seq)) if colon and stream.isupper() and seq.isascii() and seq.isdecimal() else None


class NoSuchEvent(IpeError, LookupError):
    """The record holds no such event, as far as it was read."""
