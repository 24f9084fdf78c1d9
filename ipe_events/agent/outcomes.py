"""Tells what became of commands: outcomes onto the bus, once each, in step with the claims that remember them."""

import secrets
from datetime import datetime, timedelta

from ipe_events.agent.claims import Claim, Claimed, Claims
from ipe_events.agent.job import Job
from ipe_events.bus.cloudevents import headers_for
from ipe_events.bus.connection import Bus
from ipe_events.clock import Clock
from ipe_events.events.codec import encode
from ipe_events.events.headers import header
from ipe_events.events.outcome import Outcome
from ipe_events.subjects import OUTCOME
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.metrics import counter, histogram
from ipe_events.telemetry.trace import Trace

log = get_logger(__name__)

COMMANDS = counter("ipe_commands_total", "Commands answered.", ("cluster", "handler", "verb", "status"))
SECONDS = histogram("ipe_command_seconds", "From the command's arrival to its outcome on the bus.", ("cluster",))


class Outcomes:
    """The outcomes of one cluster's commands.

    Args:
        cluster: the operator's name for it.
        agent: identity of this agent.
        bus: the connection.
        claims: the records.
        clock: of the process.
    """

    def __init__(self, cluster: str, agent: str, bus: Bus, claims: Claims, clock: Clock) -> None:
        self._cluster = cluster
        self._agent = agent
        self._bus = bus
        self._claims = claims
        self._clock = clock
        self._seconds = SECONDS.labels(cluster)

    async def tell(self, job: Job, claim: Claim, revision: int) -> None:
        """Publish the outcome on a record, note that it is published, count and log it."""
        assert claim.outcome is not None, "only answered commands are told"
        await self.publish(claim.outcome, job.trace)
        await self._claims.update(job.addressee.handler, claim.model_copy(update={"published": True}), revision)
        outcome = claim.outcome
        COMMANDS.labels(self._cluster, outcome.handler, outcome.verb, outcome.status.value).add(1)
        self._seconds.observe(self._clock.monotonic() - job.arrived)
        log.info(
            "command answered",
            cluster=self._cluster,
            handler=outcome.handler,
            verb=outcome.verb,
            object=str(outcome.object_ref),
            command=outcome.command,
            status=outcome.status.value,
            guardrail=outcome.guardrail,
            reason=outcome.reason,
            trace_id=job.trace.trace_id,
        )

    async def publish(self, outcome: Outcome, trace: Trace) -> None:
        """Store the outcome in its stream; its id is the message's, so that a repetition within the window is dropped."""
        subject = OUTCOME.format(cluster=outcome.cluster, handler=outcome.handler, verb=outcome.verb)
        headers = headers_for(
            outcome,
            id=outcome.id,
            source=f"/clusters/{self._cluster}",
            subject=str(outcome.object_ref) if outcome.object_ref else "",
            time=outcome.time,
            trace=trace.traceparent,
            extensions={"cause": outcome.command, "hops": str(outcome.hops)},
        )
        body = encode(outcome)
        ack = await self._bus.publish(subject, body, id=outcome.id, headers=headers)
        if ack.duplicate and not await self.is_published(outcome, outcome.time):
            # ids are one space for all subjects of a stream: somebody else has used ours, and the stream dropped the outcome
            log.warning("audit: an outcome's message id was taken", cluster=self._cluster, outcome=outcome.id, sequence=ack.seq)
            await self._bus.publish(subject, body, id=f"{outcome.id}/{secrets.token_hex(8)}", headers=headers)

    async def is_published(self, outcome: Outcome, since: datetime) -> bool:
        """Whether the outcome is in the stream: deduplication does not survive a restart of the broker, so we look."""
        subject = OUTCOME.format(cluster=outcome.cluster, handler=outcome.handler, verb=outcome.verb)
        async for delivery in self._bus.read(OUTCOME.stream, [subject], start=since - timedelta(minutes=1)):
            if header(delivery.header_bytes, b"ce-id") == outcome.id:
                return True
        return False

    async def answer_malformed(self, outcome: Outcome, sequence: int, digest: str, trace: Trace) -> None:
        """Record and publish the outcome of something that is no command.

        Its place in the stream is its identity: whatever id it gives itself, it cannot occupy that of a true command.
        """
        claim = Claim(
            command=f"malformed.{sequence}",
            digest=digest,
            agent=self._agent,
            token=secrets.token_hex(8),
            time=outcome.time,
            outcome=outcome,
        )
        try:
            revision = await self._claims.take(outcome.handler, claim)
        except Claimed as found:
            claim, revision = found.claim, found.revision
        if claim.outcome is not None and not claim.published:
            await self.publish(claim.outcome, trace)
            await self._claims.update(outcome.handler, claim.model_copy(update={"published": True}), revision)
