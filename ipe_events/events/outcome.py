"""Outcomes: what became of a command, told once by the agent that received it."""

from enum import StrEnum
from typing import Any, ClassVar

from pydantic import AwareDatetime

from ipe_events.events.base import Name, Payload
from ipe_events.events.refs import ObjectRef
from ipe_events.subjects import OUTCOME, Topic


class Status(StrEnum):
    """How a command ended."""

    APPLIED = "applied"
    """The API server accepted it; ``uid`` and ``resource_version`` join it to the change that it caused."""
    REFUSED = "refused"
    """A guardrail of the cluster said no; ``guardrail`` names it."""
    FAILED = "failed"
    """The API server said no, or could not be reached; ``message`` and ``reason`` are its own."""
    EXPIRED = "expired"
    """Nobody carried it out in time."""
    REJECTED = "rejected"
    """A person declined the proposal."""
    UNKNOWN = "unknown"
    """The agent died in between and reading back cannot tell; it is never retried."""
    DRY_RUN = "dry-run"
    """Nothing was written; ``result`` is what the API server would have made of it."""


class Outcome(Payload):
    """What became of a command.

    Attributes:
        id: derived from the command's id: there is one outcome per command.
        command: id of the command, also the outcome's cause.
        agent: identity of the agent that answers.
        status: how it ended.
        guardrail: which guardrail refused it (``grant``, ``mode``, ``protected``, ``expiry``…); empty otherwise.
        message: one sentence for people, redacted.
        reason: the API server's own reason (``Conflict``, ``Forbidden``…); empty otherwise.
        uid: of the object written.
        resource_version: of the object after the write.
        object_ref: the target.
        hops: of the command.
        time: when it was known.
        result: dry-run result, redacted; absent otherwise.
    """

    topic: ClassVar[Topic] = OUTCOME
    type_name: ClassVar[str] = "outcome"

    id: str
    command: str
    handler: Name
    cluster: Name
    verb: str
    agent: str = ""
    status: Status
    guardrail: str = ""
    message: str = ""
    reason: str = ""
    object_ref: ObjectRef | None = None
    uid: str = ""
    resource_version: str = ""
    cause: str = ""
    hops: int = 1
    time: AwareDatetime
    result: dict[str, Any] | None = None
