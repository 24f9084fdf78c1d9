"""Topics as data: every subject of the bus is formatted, parsed and documented here, and nowhere else.

A topic is a pattern of tokens (``ipe.k8s.{cluster}.{group}…``). Values become tokens by a reversible escape, since groups and
custom resources hold dots and cluster names are free text: everything outside ``A-Z a-z 0-9 - _`` turns into ``=`` and two hex
digits per UTF-8 byte. The token ``_`` stands for "none" (a cluster-scoped object's namespace); a value that is ``_`` itself is
escaped. Names and uids of objects never become tokens: a stream's memory grows with its subjects.

The same table feeds the streams' configuration (``ipe_events.bus.topology``), permissions, ``ipe topics list`` and AsyncAPI.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ipe_events.errors import SubjectError

NONE = "_"
"""Token of an absent value, e.g. the namespace of a cluster-scoped object."""

CORE = "core"
"""Token of Kubernetes' core group, whose name is empty."""

PARTITIONS = 32
"""How many partitions share one cluster's changes (the last token of a change's subject)."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_ESCAPED = re.compile(r"(?:=[0-9A-F]{2})+")
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_FIELD = re.compile(r"\{(\w+)\}")


@lru_cache(maxsize=65_536)
def escape(value: str) -> str:
    """One subject token for any text; the empty text becomes ``_``.

    >>> escape("cert-manager.io"), escape(""), escape("_")
    ('cert-manager=2Eio', '_', '=5F')
    """
    if value == "":
        return NONE
    if value == NONE:
        return "=5F"
    return _UNSAFE.sub(lambda match: "".join(f"={byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")), value)


@lru_cache(maxsize=65_536)
def unescape(token: str) -> str:
    """The text behind a token.

    Raises:
        SubjectError: the token is not one that ``escape`` writes.
    """
    if token == NONE:
        return ""
    if not _TOKEN.fullmatch(token):
        raise SubjectError(
            f"token {token!r} holds a character that is not escaped", fix="format subjects with ipe_events.subjects"
        )
    try:
        value = _ESCAPED.sub(lambda match: bytes.fromhex(match[0].replace("=", "")).decode("utf-8", "surrogatepass"), token)
    except UnicodeDecodeError as error:
        raise SubjectError(f"token {token!r} does not hold UTF-8 text") from error
    if escape(value) != token:
        raise SubjectError(f"token {token!r} is not in its one escaped form {escape(value)!r}")
    return value


def partition(cluster: str, namespace: str, resource: str) -> int:
    """Partition 0–31 of a change: by (cluster, namespace), or by (cluster, resource) for cluster-scoped objects.

    Stable for ever: replicas of a handler share the work by it, and an object never changes its partition.
    """
    return zlib.crc32(f"{cluster}/{namespace or resource}".encode("utf-8", "surrogatepass")) % PARTITIONS


def _token(field: str, value: str | int) -> str:
    """The token of one field. The core group's empty name becomes ``core``: no built-in group is called so, others hold a dot."""
    return CORE if field == "group" and value == "" else escape(str(value))


@dataclass(frozen=True, slots=True)
class Topic:
    """One family of subjects.

    Attributes:
        name: how code and ``ipe topics list`` call it.
        pattern: the subject with named tokens.
        stream: the JetStream stream that keeps it; empty for services.
        doc: one sentence for people.
    """

    name: str
    pattern: str
    stream: str
    doc: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the tokens, in order."""
        return tuple(_FIELD.findall(self.pattern))

    @property
    def wildcard(self) -> str:
        """The subject filter of the whole family, e.g. ``ipe.k8s.*.*.*.*.*.*``."""
        return _FIELD.sub("*", self.pattern)

    def format(self, **values: str | int) -> str:
        """The subject for these values, each escaped.

        Raises:
            SubjectError: a field is missing or not one of this topic's.
        """
        self._check_names(values, complete=True)
        return _FIELD.sub(lambda match: _token(match[1], values[match[1]]), self.pattern)

    def filter(self, **values: str | int | None) -> str:
        """The subject filter for these values; what is missing or None matches everything.

        Raises:
            SubjectError: a field is not one of this topic's.
        """
        self._check_names(values, complete=False)

        def token(match: re.Match[str]) -> str:
            value = values.get(match[1])
            return "*" if value is None else _token(match[1], value)

        return _FIELD.sub(token, self.pattern)

    def parse(self, subject: str) -> dict[str, str]:
        """The values in a subject of this family.

        Raises:
            SubjectError: the subject does not belong to this topic.
        """
        parts, shape = subject.split("."), self.pattern.split(".")
        if len(parts) != len(shape):
            raise SubjectError(f"subject {subject!r} has {len(parts)} tokens, {self.name} has {len(shape)}: {self.pattern}")
        values: dict[str, str] = {}
        for part, expected in zip(parts, shape, strict=True):
            if expected.startswith("{"):
                field = expected[1:-1]
                values[field] = "" if field == "group" and part == CORE else unescape(part)
            elif part != expected:
                raise SubjectError(f"subject {subject!r} is not of topic {self.name}: {self.pattern}")
        return values

    def _check_names(self, values: Mapping[str, object], *, complete: bool) -> None:
        fields = self.fields
        unknown = [name for name in values if name not in fields]
        missing = [name for name in fields if name not in values] if complete else []
        if unknown or missing:
            wrong = ", ".join([f"unknown {name!r}" for name in unknown] + [f"missing {name!r}" for name in missing])
            raise SubjectError(f"topic {self.name} has the fields {', '.join(fields)}: {wrong}")


CHANGE = Topic(
    "change",
    "ipe.k8s.{cluster}.{group}.{resource}.{namespace}.{verb}.{partition}",
    "IPE_K8S",
    "An object was added, modified, deleted, or left the selection.",
)
SNAPSHOT = Topic(
    "snapshot",
    "ipe.snap.{handler}.{request}.{cluster}.{group}.{resource}",
    "IPE_SNAP",
    "Snapshot items for one handler, ended by a marker.",
)
CLUSTER = Topic(
    "cluster",
    "ipe.cluster.{cluster}.{state}",
    "IPE_GOV",
    "What an agent says of its cluster: connected, disconnected, stale, gap, heartbeat, epoch.",
)
METRICS = Topic("metrics", "ipe.metrics.{cluster}.{namespace}", "IPE_METRICS", "Usage samples, batched per namespace.")
FINDING = Topic(
    "finding",
    "ipe.finding.{handler}.{cluster}.{namespace}.{type}",
    "IPE_GOV",
    "What a handler noticed, with its evidence.",
)
EVENT = Topic("event", "ipe.event.{handler}.{type}", "IPE_GOV", "Other payloads that handlers return.")
COMMAND = Topic("command", "ipe.cmd.{cluster}.{handler}.{verb}", "IPE_CMD", "What a handler wants done in a cluster.")
OUTCOME = Topic("outcome", "ipe.outcome.{cluster}.{handler}.{verb}", "IPE_GOV", "What became of a command, told by the agent.")
ACT = Topic("act", "ipe.op.{user}.{act}", "IPE_GOV", "What an operator did: apply, approve, reject, freeze, wake, accept.")
APIAUDIT = Topic("apiaudit", "ipe.apiaudit.{cluster}", "IPE_APIAUDIT", "Audit events of the Kubernetes API server.")
AUDIT = Topic(
    "audit",
    "ipe.audit.{cluster}.{namespace}.{category}",
    "IPE_AUDIT",
    "Audit records, a copy for tailing and standbys.",
)
DLQ = Topic("dlq", "ipe.dlq.{handler}", "IPE_DLQ", "Messages that a handler gave up on, with the reason in their headers.")
AGENT_SERVICE = Topic(
    "agent-service",
    "ipe.svc.agent.{cluster}.{caller}.{verb}",
    "",
    "Questions to a cluster's agent: snapshot, get, list, dryrun…",
)
SERVICE = Topic("service", "ipe.svc.{service}.{scope}.{verb}", "", "Questions to a handler's service, by scope.")

TOPICS: tuple[Topic, ...] = (
    CHANGE, SNAPSHOT, CLUSTER, METRICS, FINDING, EVENT, COMMAND, OUTCOME, ACT, APIAUDIT, AUDIT, DLQ, AGENT_SERVICE, SERVICE,
)  # fmt: skip
"""Every topic there is."""


def topic_of(subject: str) -> Topic:
    """The topic that a concrete subject belongs to.

    Raises:
        SubjectError: no topic has this shape.
    """
    parts = subject.split(".")
    for topic in TOPICS:
        shape = topic.pattern.split(".")
        if len(shape) == len(parts) and all(
            want.startswith("{") or want == part for want, part in zip(shape, parts, strict=True)
        ):
            return topic
    raise SubjectError(f"no topic has the shape of {subject!r}", fix="see `ipe topics list`")
