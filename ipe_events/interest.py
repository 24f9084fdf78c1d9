"""Which subjects a handler is interested in: what ``on=`` or the payload's type stands for, as subject filters.

Pure; a filter that can match nothing, or that carries another payload, is refused at import, with near names.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from ipe_events.declaration import declaration_error
from ipe_events.errors import UsageError
from ipe_events.events.base import Payload
from ipe_events.events.change import Change
from ipe_events.events.cluster import ClusterEvent
from ipe_events.events.finding import Finding
from ipe_events.events.message import Message
from ipe_events.events.refs import ResourceRef
from ipe_events.subjects import CHANGE, CLUSTER, EVENT, FINDING, TOPICS, Topic

FAMILY_ROOTS: frozenset[type] = frozenset({Payload, Finding, ClusterEvent})
"""Payloads that stand for every type of their topic."""


def patterns_of(
    function: Callable[..., Any], on: Sequence[str], payloads: Sequence[type]
) -> tuple[tuple[str, ...], tuple[ResourceRef, ...]]:
    """Subject filters and Kubernetes resources that ``on`` (or else the payload types) stand for.

    Raises:
        DeclarationError: a resource or topic that cannot exist, or that does not carry the payload.
    """
    if not on:
        if any(issubclass(payload, Message) for payload in payloads):
            raise declaration_error(
                function, f"a {payloads[0].__name__} of what?", fix='say on="deployments.apps" or another resource'
            )
        return tuple(dict.fromkeys(_pattern_of_type(payload) for payload in payloads)), ()
    patterns: list[str] = []
    resources: list[ResourceRef] = []
    for text in on:
        if text.partition(".")[0] == "ipe" or "*" in text or ">" in text:
            patterns.append(_topic_pattern(function, text, payloads))
            continue
        try:
            resource = ResourceRef.parse(text)
        except UsageError as error:
            raise declaration_error(function, f"on={text!r} is neither a resource nor a topic", fix=_near_topics(text)) from error
        if not all(issubclass(payload, Message) for payload in payloads):
            raise declaration_error(function, f"on={text!r} brings Change, not {payloads[0].__name__}", fix="Event[Change]")
        patterns.append(CHANGE.filter(group=resource.group, resource=resource.resource))
        resources.append(resource)
    return tuple(dict.fromkeys(patterns)), tuple(resources)


def overlaps(one: str, other: str) -> bool:
    """Whether some subject matches both filters.

    >>> overlaps("ipe.finding.>", "ipe.finding.*.*.*.*"), overlaps("ipe.a.b", "ipe.a.*.c")
    (True, False)
    """
    ones, others = one.split("."), other.split(".")
    for left, right in zip(ones, others, strict=False):
        if ">" in {left, right}:
            return True
        if left != right and "*" not in {left, right}:
            return False
    return len(ones) == len(others)


def topics_of(pattern: str) -> tuple[Topic, ...]:
    """Topics kept by a stream that a subject filter reaches."""
    return tuple(topic for topic in TOPICS if topic.stream and overlaps(pattern, topic.wildcard))


def _pattern_of_type(payload: type[Payload]) -> str:
    topic = payload.topic
    if payload in FAMILY_ROOTS:
        return topic.wildcard
    if topic in {EVENT, FINDING}:
        return topic.filter(type=payload.type_name)
    return topic.filter(state=payload.type_name) if topic is CLUSTER else topic.wildcard


def _topic_pattern(function: Callable[..., Any], pattern: str, payloads: Sequence[type]) -> str:
    parts = pattern.split(".")
    if any(not part or (">" in part and (part != ">" or at < len(parts) - 1)) for at, part in enumerate(parts)):
        raise declaration_error(
            function, f"on={pattern!r} is not a subject filter", fix="tokens joined by dots, `*` for one, a final `>`"
        )
    topics = topics_of(pattern)
    if not topics:
        raise declaration_error(function, f"on={pattern!r} matches no topic", fix=_near_topics(pattern))
    for payload in payloads:
        carried = {CHANGE.name, "snapshot"} if issubclass(payload, Change) else None
        if carried is not None and not any(topic.name in carried for topic in topics):
            raise declaration_error(function, f"on={pattern!r} carries no {payload.__name__}")
        if issubclass(payload, Payload) and payload is not Payload and payload.topic not in topics:
            raise declaration_error(
                function,
                f"on={pattern!r} is topic {topics[0].name}, {payload.__name__} travels on {payload.topic.pattern}",
            )
    return pattern


def _near_topics(text: str) -> str:
    known = {topic.pattern.partition(".{")[0]: topic for topic in TOPICS}
    wanted = ".".join(token for token in text.split(".")[:2] if token not in {"*", ">"})
    near = difflib.get_close_matches(wanted, known, n=2, cutoff=0.5) or [prefix for prefix in known if wanted in prefix]
    if near:
        return "did you mean " + " or ".join(known[prefix].pattern for prefix in near) + "?"
    return 'a resource such as "deployments.apps", or a topic of `ipe topics list`'
