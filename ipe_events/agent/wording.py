"""Words every outcome of an agent: which command, what became of it, and nothing that must not cross the bus."""

from typing import Any, Protocol

from ipe_events.agent.guardrails import Refusal
from ipe_events.agent.history import Chains
from ipe_events.agent.job import Job, outcome_id
from ipe_events.clock import Clock
from ipe_events.errors import KubeError
from ipe_events.events.outcome import Outcome, Status

JsonObject = dict[str, Any]

_LONGEST = 4_000
"""Characters of an outcome's message."""


class Redacts(Protocol):
    """What carrying commands needs of the redactor."""

    def redact_object(self, obj: JsonObject) -> JsonObject:
        """A copy fit for the bus."""
        ...

    def redact_text(self, text: str) -> str:
        """The text without what must not cross the bus."""
        ...


class Wording:
    """Makes the outcomes of one cluster's commands.

    Args:
        agent: identity of this agent.
        chains: which command led to what.
        redactor: for the API server's words.
        clock: of the process.
    """

    def __init__(self, agent: str, chains: Chains, redactor: Redacts, clock: Clock) -> None:
        self._agent = agent
        self._chains = chains
        self._redactor = redactor
        self._clock = clock

    def outcome(self, job: Job, status: Status, *, message: str = "", **fields: Any) -> Outcome:
        """The outcome of a job; ``fields`` are the outcome's own."""
        command, addressee = job.command, job.addressee
        return Outcome(
            id=outcome_id(addressee, command.id),
            command=command.id,
            handler=addressee.handler,
            cluster=addressee.cluster,
            verb=addressee.verb,
            agent=self._agent,
            status=status,
            message=_fitting(message),
            object_ref=command.target,
            cause=command.id,
            hops=self._chains.hops(command),
            time=self._clock.now(),
            **fields,
        )

    def refused(self, job: Job, refusal: Refusal, result: JsonObject | None = None) -> Outcome:
        """The outcome of a command that a guardrail refused."""
        status = Status.EXPIRED if refusal.guardrail == "expiry" and job.command.expired(self._clock.now()) else Status.REFUSED
        return self.outcome(job, status, guardrail=refusal.guardrail, message=refusal.message, result=result)

    def failed(self, job: Job, error: KubeError) -> Outcome:
        """The outcome of a command that the API server refused."""
        return self.outcome(
            job, Status.FAILED, message=self._redactor.redact_text(error.message), reason=error.reason or type(error).__name__
        )


def _fitting(message: str) -> str:
    """The message; a cut is said, with the full length."""
    note = f"… (cut, {len(message):,} characters)"
    return message if len(message) <= _LONGEST else message[: _LONGEST - len(note)] + note
