"""Acts: what an operator did. They are events too, so the trail shows people beside programs."""

from typing import Any, ClassVar

from pydantic import AwareDatetime

from ipe_events.events.base import Name, Payload
from ipe_events.subjects import ACT, Topic


class Act(Payload):
    """What an operator did, on ``ipe.op.<user>.<act>``.

    Attributes:
        user: identity on the bus; equals the subject's token.
        act: the verb: ``apply``, ``approve``, ``replay``…
        target: what it was done to, for people.
        reason: why, in the operator's words.
        arguments: what else was given.
        time: when.
    """

    topic: ClassVar[Topic] = ACT
    type_name: ClassVar[str] = "act"

    user: Name
    act: Name
    target: str = ""
    reason: str = ""
    arguments: dict[str, Any] = {}
    time: AwareDatetime
