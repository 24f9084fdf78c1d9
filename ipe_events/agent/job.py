"""One command on its way through the agent, and the word that its time has not come."""

from dataclasses import dataclass

from ipe_events.agent.guardrails import Addressee
from ipe_events.events.command import Command
from ipe_events.events.ids import derived_id
from ipe_events.telemetry.trace import Trace


class Postponed(Exception):
    """Nothing was done; the message is to come again after ``delay`` seconds."""

    def __init__(self, why: str, delay: float = 1.0) -> None:
        super().__init__(why)
        self.delay = delay


@dataclass(frozen=True, slots=True)
class Job:
    """One command as it arrived.

    Attributes:
        command: read strictly.
        addressee: what its subject says.
        digest: of its body.
        arrived: monotonic second.
        trace: of the message.
    """

    command: Command
    addressee: Addressee
    digest: str
    arrived: float
    trace: Trace


def outcome_id(addressee: Addressee, command: str) -> str:
    """There is one outcome per command: its id follows from the command's."""
    return derived_id("outcome", addressee.cluster, addressee.handler, command)
