"""Which part of a subscription's filter the server applies, and which is left to the client.

NATS matches whole tokens: exact cluster and namespace names become subject filters, globs are checked here on the subject of each
message (remembered per subject, of which there are few), ``where=`` last, on the payload. JetStream refuses filters that overlap
within one consumer, and slows down with very many: both are dealt with here, purely.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

from ipe_events.declaration import Subscription
from ipe_events.errors import SubjectError
from ipe_events.interest import overlaps, topics_of
from ipe_events.subjects import Topic, escape, topic_of

MAX_FILTERS = 64
"""More subject filters than this make a consumer slow; the client filters instead."""


@dataclass(frozen=True, slots=True)
class Filters:
    """A subscription's filters, divided.

    Attributes:
        streams: stream → its subject filters on the server.
        clusters: globs that the client checks; empty: none.
        namespaces: globs that the client checks; empty: none.
        where: whether a condition on the payload follows.
        patterns: subject filters that the client checks, because the server's are wider.
    """

    streams: dict[str, tuple[str, ...]]
    clusters: tuple[str, ...]
    namespaces: tuple[str, ...]
    where: bool
    patterns: tuple[str, ...] = ()

    @property
    def on_client(self) -> bool:
        """Whether the client has to look at subjects at all."""
        return bool(self.clusters or self.namespaces or self.patterns)

    def wants(self, subject: str) -> bool:
        """Whether the client's globs let this subject pass."""
        if self.patterns and not any(overlaps(pattern, subject) for pattern in self.patterns):
            return False
        if not self.clusters and not self.namespaces:
            return True
        try:
            values = topic_of(subject).parse(subject)
        except SubjectError:
            return False
        return _matches(values.get("cluster"), self.clusters) and _matches(values.get("namespace"), self.namespaces)

    def describe(self) -> dict[str, str]:
        """For people: what filters where."""
        client = [f"clusters {', '.join(self.clusters)}"] if self.clusters else []
        client += [f"namespaces {', '.join(self.namespaces)}"] if self.namespaces else []
        client += ["where="] if self.where else []
        server = [pattern for patterns in self.streams.values() for pattern in patterns]
        return {"server": " ".join(server), "client": "; ".join(client) or "nothing"}


def divide(subscription: Subscription) -> Filters:
    """Divide a subscription's filter between server and client."""
    clusters, namespaces = subscription.clusters, subscription.namespaces
    exact_clusters = clusters if clusters and not any(map(_is_glob, clusters)) else ()
    exact_namespaces = namespaces if namespaces and not any(map(_is_glob, namespaces)) else ()
    if len(subscription.patterns) * max(1, len(exact_clusters)) * max(1, len(exact_namespaces)) > MAX_FILTERS:
        exact_namespaces = ()
    if len(subscription.patterns) * max(1, len(exact_clusters)) > MAX_FILTERS:
        exact_clusters = ()
    streams: dict[str, list[str]] = {}
    for pattern in subscription.patterns:
        for topic in topics_of(pattern):
            narrowed = {
                _narrow(pattern, topic, cluster, namespace)
                for cluster, namespace in product(exact_clusters or ("",), exact_namespaces or ("",))
            }
            streams.setdefault(topic.stream, []).extend(sorted(narrowed))
    server = {stream: without_overlaps(patterns) for stream, patterns in streams.items()}
    asked = {pattern for patterns in streams.values() for pattern in patterns}
    return Filters(
        streams=server,
        patterns=() if all(pattern in asked for patterns in server.values() for pattern in patterns) else tuple(sorted(asked)),
        clusters=() if exact_clusters else clusters,
        namespaces=() if exact_namespaces else namespaces,
        where=subscription.where is not None,
    )


def without_overlaps(patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns without those that another one contains; of two that overlap in part, what contains both.

    >>> without_overlaps(["ipe.a.*", "ipe.a.b", "ipe.c"])
    ('ipe.a.*', 'ipe.c')
    """
    kept: list[str] = []
    for pattern in dict.fromkeys(patterns):
        current = pattern
        while (other := next((known for known in kept if overlaps(known, current)), None)) is not None:
            kept.remove(other)
            current = _join(other, current)
        kept.append(current)
    return tuple(kept)


def _join(one: str, other: str) -> str:
    """The narrowest filter that contains two overlapping ones."""
    ones, others = one.split("."), other.split(".")
    tokens: list[str] = []
    for left, right in zip(ones, others, strict=False):
        if ">" in {left, right}:
            return ".".join([*tokens, ">"])
        tokens.append(left if left == right else "*")
    return ".".join(tokens)


def _narrow(pattern: str, topic: Topic, cluster: str, namespace: str) -> str:
    """``pattern`` within one topic, with the tokens of cluster and namespace filled in."""
    shape = topic.pattern.split(".")
    parts = pattern.split(".")
    if parts[-1] == ">" and (cluster or namespace):
        parts = parts[:-1] + ["*"] * (len(shape) - len(parts) + 1)
    for at, field in enumerate(shape):
        value = {"{cluster}": cluster, "{namespace}": namespace}.get(field)
        if value and at < len(parts) and parts[at] == "*":
            parts[at] = escape(value)
    return ".".join(parts)


def matches_any(value: str, names: tuple[str, ...]) -> bool:
    """Whether one of the names or globs fits; no names fit everything."""
    return _matches(value, names)


def _is_glob(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def _matches(value: str | None, globs: tuple[str, ...]) -> bool:
    return not globs or (value is not None and any(fnmatchcase(value, glob) for glob in globs))
