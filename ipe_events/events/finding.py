"""Findings: what a handler noticed, with the events that prove it."""

from enum import StrEnum
from typing import Any, ClassVar

from ipe_events.events.base import Name, Payload
from ipe_events.events.refs import ObjectRef
from ipe_events.subjects import FINDING, Topic


class Severity(StrEnum):
    """How much a finding matters."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Finding(Payload):
    """What a handler noticed. Subclass it to give a type of finding fields of its own.

    Attributes:
        cluster: where.
        subject: the object it is about.
        severity: how much it matters.
        message: one sentence for people.
        evidence: ids of the events that show it.
        proposal: what could be done about it, free form.
    """

    topic: ClassVar[Topic] = FINDING

    cluster: Name
    subject: ObjectRef
    severity: Severity = Severity.MEDIUM
    message: str
    evidence: tuple[str, ...] = ()
    proposal: dict[str, Any] | None = None
