"""Carries one command to its end: judged, claimed, written once, answered once.

The order is that of DESIGN §5. Up to the claim nothing has happened, and any trouble (no API server, no bus, another holder of
the Lease) only postpones: the message comes again. After the claim the command ends here in any case; what was not answered is
read back and ends as ``applied`` or ``unknown``. The claim's record receives the outcome before the bus does, and only then is
the message acknowledged.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ipe_events.agent.claims import Claim, Claimed, Claims
from ipe_events.agent.guardrails import Refusal, Rules, precondition
from ipe_events.agent.history import Chains, Writes
from ipe_events.agent.job import Job, Postponed
from ipe_events.agent.judge import Accepted, Judge, Target
from ipe_events.agent.ledger import LedgerKeeper
from ipe_events.agent.outcomes import Outcomes
from ipe_events.agent.wording import Redacts, Wording
from ipe_events.bus.connection import Bus
from ipe_events.bus.kv import KeyValue
from ipe_events.clock import SYSTEM, Clock
from ipe_events.errors import IpeError, KubeConflict, KubeError, KubeInvalid, KubeNotFound, KubeThrottled
from ipe_events.events.command import Create
from ipe_events.events.ids import derived_id
from ipe_events.events.outcome import Outcome, Status
from ipe_events.kube import write
from ipe_events.kube.discovery import ApiResource, Discovery
from ipe_events.kube.session import KubeSession
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.trace import Trace

log = get_logger(__name__)

JsonObject = dict[str, Any]

FREEZE_BUCKET = "ipe_freeze"
_TRIES = 3
_LEAST_TIME = 0.5
_UNREADABLE = timedelta(minutes=10)
"""How long after its expiry a claimed command waits for an API server that could tell what became of it."""


class Carrier:
    """Carries the commands of one cluster.

    Args:
        cluster: the operator's name for it.
        agent: identity of this agent.
        rules: the cluster's word.
        session: with the cluster.
        discovery: of the cluster; loaded again when a resource is missing.
        bus: for freezes, claims, ledger and outcomes.
        redactor: for everything that goes back to the bus.
        write_seconds: how long a write may still be started and last; 0 when this agent may not write now.
        no_lease: why this agent can never hold the Lease as things are; empty when another one holds it, or nobody knows yet.
        timeout: seconds of one request to the API server.
        on_written: told of each write: uid, resourceVersion, hops, command id, trace.
        clock: of the process.

    Attributes:
        outcomes: where answers go.
    """

    def __init__(
        self,
        *,
        cluster: str,
        agent: str,
        rules: Rules,
        session: KubeSession,
        discovery: Discovery,
        bus: Bus,
        claims: Claims,
        ledger: LedgerKeeper,
        freezes: KeyValue,
        redactor: Redacts,
        write_seconds: Callable[[], float],
        no_lease: Callable[[], str] = lambda: "",
        timeout: float = 10.0,
        on_written: Callable[[str, str, int, str, Trace], None] | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._cluster = cluster
        self._agent = agent
        self._session = session
        self.outcomes = Outcomes(cluster, agent, bus, claims, clock)
        self._claims = claims
        self._ledger = ledger
        self._redactor = redactor
        self._write_seconds = write_seconds
        self._no_lease = no_lease
        self._timeout = timeout
        self._on_written = on_written
        self._clock = clock
        self._chains = Chains()
        self._writes = Writes()
        self._wording = Wording(agent, self._chains, redactor, clock)
        self._judge = Judge(
            rules=rules,
            session=session,
            discovery=discovery,
            ledger=ledger,
            freezes=freezes,
            redactor=redactor,
            chains=self._chains,
            writes=self._writes,
            wording=self._wording,
            timeout=timeout,
            clock=clock,
        )

    async def carry(self, job: Job) -> None:
        """Carry one command to its outcome; on return the message may be acknowledged.

        Raises:
            Postponed: nothing has happened yet.
            BusError: the outcome may not be on the bus yet; the claim remembers it.
        """
        verdict = await self._judge.judge(job)
        if isinstance(verdict, Outcome):
            await self._conclude(job, verdict)
        else:
            self._writes.add(job.command.handler, job.command.id, job.command.target, self._clock.monotonic())
            await self._claim_and_write(job, verdict)

    async def rehearse(self, job: Job) -> Outcome:
        """What would become of a command: the same judgement and a dry run; nothing is claimed, written or published.

        Raises:
            Postponed: it cannot be told now.
        """
        dry = replace(job, command=job.command.model_copy(update={"dry_run": True}))
        verdict = await self._judge.judge(dry)
        assert isinstance(verdict, Outcome), "a dry run ends in an outcome"
        return verdict

    def recall(self, outcome: Outcome, age: float) -> None:
        """Count an outcome of this cluster that was published ``age`` seconds ago, by this agent or the one before."""
        if outcome.status in (Status.APPLIED, Status.UNKNOWN) and outcome.object_ref is not None:
            self._writes.add(outcome.handler, outcome.command, outcome.object_ref, self._clock.monotonic() - age)
            self._chains.wrote(outcome.uid, outcome.resource_version, outcome.hops)

    # --- writing -------------------------------------------------------------------------------------------------------------

    async def _claim_and_write(self, job: Job, accepted: Accepted) -> None:
        command, target, facts = job.command, accepted.target, accepted.facts
        if self._write_seconds() < _LEAST_TIME:
            why = self._no_lease()
            if not why:
                raise Postponed("this agent does not hold the cluster's Lease")
            await self._conclude(job, self._wording.refused(job, Refusal("lease", why)))
            return
        claim = Claim(
            command=command.id,
            digest=job.digest,
            agent=self._agent,
            token=secrets.token_hex(8),
            time=self._clock.now(),
            seen_uid=target.uid,
        )
        try:
            revision = await self._claims.take(command.handler, claim)
        except Claimed as found:
            await self._resume(job, found)
            return
        try:
            replaced = await self._ledger.enter(command, facts.now)
            refusal = await self._judge.last_look(job, accepted)
        except IpeError:
            # nothing was written: whoever gets the message next may begin anew
            await self._claims.drop(command.handler, claim, revision)
            raise
        if refusal is None and self._write_seconds() < _LEAST_TIME:
            await self._ledger.withdraw(command, facts.now, replaced)
            await self._claims.drop(command.handler, claim, revision)
            raise Postponed("this agent lost the cluster's Lease before it wrote")
        if refusal is not None:
            outcome = self._wording.refused(job, refusal)
        else:
            outcome = await self._write(job, target, claim)
        if outcome.status in (Status.FAILED, Status.REFUSED, Status.EXPIRED):
            await self._ledger.withdraw(command, facts.now, replaced)
        await self._finish(job, outcome, claim, revision)

    async def _write(self, job: Job, target: Target, claim: Claim) -> Outcome:
        """Send the write; repeated only after an answer that says it was not carried out."""
        command = job.command
        for attempt in range(1, _TRIES + 1):
            timeout = min(self._timeout, self._write_seconds())
            if timeout < _LEAST_TIME or command.expired(self._clock.now()):
                return self._wording.outcome(job, Status.EXPIRED, message="it could not be written in time")
            try:
                request = write.build(command, target.resource, target.seen, dry_run=False)
                written = await write.send(self._session, request, timeout=timeout)
            except KubeError as error:
                if write.is_ambiguous(error):
                    return await self._read_back(job, target.resource, claim, error)
                retry = await self._may_retry(job, target, error, last=attempt == _TRIES)
                if retry is not None:
                    return retry
                continue
            self._remember(job, written.uid or target.uid, written.resource_version)
            return self._wording.outcome(
                job, Status.APPLIED, uid=written.uid or target.uid, resource_version=written.resource_version
            )
        raise AssertionError("unreachable")  # the last attempt returns

    async def _may_retry(self, job: Job, target: Target, error: KubeError, *, last: bool) -> Outcome | None:
        """After a definite no: None when another attempt makes sense (``target`` is then as it is now), else the outcome."""
        command = job.command
        if isinstance(error, KubeThrottled) and not last:
            await asyncio.sleep(min(error.retry_after, 2.0))
            return None
        if not isinstance(error, KubeConflict | KubeInvalid | KubeNotFound) or isinstance(command.action, Create):
            return self._wording.failed(job, error)
        before = target.seen
        try:
            target.seen = await write.read(
                self._session, target.resource, command.target.namespace, command.target.name, timeout=self._timeout
            )
        except KubeError:
            return self._wording.failed(job, error)
        refusal = precondition(command, target.seen)
        if refusal is not None:
            return self._wording.outcome(
                job,
                Status.REFUSED,
                guardrail=refusal.guardrail,
                message=f"changed meanwhile: {refusal.message}",
                reason=error.reason,
            )
        same = before is not None and target.seen is not None and _version(before) == _version(target.seen)
        if last or same or target.uid != (before or {}).get("metadata", {}).get("uid", ""):
            return self._wording.failed(job, error)
        return None

    async def _read_back(self, job: Job, resource: ApiResource | None, claim: Claim, error: KubeError | None) -> Outcome:
        """What the cluster shows of a write that was not answered; a resource that is gone meanwhile shows nothing, ever.

        Raises:
            Postponed: the API server cannot be asked now; the claim stays, and the next delivery comes here again.
        """
        command = job.command
        why = (
            f"no answer to the write: {self._redactor.redact_text(error.message)}"
            if error
            else "the agent that claimed it left no outcome"
        )
        try:
            resource = resource or await self._judge.resource(command)
            now = await write.read(self._session, resource, command.target.namespace, command.target.name, timeout=self._timeout)
        except KubeError as failure:
            if failure.retryable and self._clock.now() < command.expires + _UNREADABLE:
                raise Postponed(f"it cannot be read back: {self._redactor.redact_text(failure.message)}", delay=2.0) from failure
            return self._wording.outcome(
                job,
                Status.UNKNOWN,
                message=f"{why}; it cannot be read back: {self._redactor.redact_text(failure.message)}",
                reason=failure.reason,
            )
        found = write.read_back(command, now, seen_uid=claim.seen_uid)
        status = Status.APPLIED if found.applied else Status.UNKNOWN
        if found.applied:
            self._remember(job, found.uid, found.resource_version)
        return self._wording.outcome(
            job, status, uid=found.uid, resource_version=found.resource_version, message=f"{why}; {found.evidence}"
        )

    def _remember(self, job: Job, uid: str, resource_version: str) -> None:
        hops = self._chains.hops(job.command)
        self._chains.wrote(uid, resource_version, hops)
        if self._on_written is not None:
            self._on_written(uid, resource_version, hops, job.command.id, job.trace)

    # --- answering -----------------------------------------------------------------------------------------------------------

    async def _conclude(self, job: Job, outcome: Outcome) -> None:
        """Answer a command that was not claimed, unless it has been answered before."""
        claim = Claim(
            command=job.command.id,
            digest=job.digest,
            agent=self._agent,
            token=secrets.token_hex(8),
            time=self._clock.now(),
            outcome=outcome,
        )
        handler = job.addressee.handler
        try:
            revision = await self._claims.take(handler, claim)
        except Claimed as found:
            await self._resume(job, found)
            return
        await self.outcomes.tell(job, claim, revision)

    async def _finish(self, job: Job, outcome: Outcome, claim: Claim, revision: int) -> None:
        """Put the outcome of a claimed command on record, then on the bus."""
        answered = claim.model_copy(update={"outcome": outcome})
        revision = await self._claims.update(job.addressee.handler, answered, revision)
        await self.outcomes.tell(job, answered, revision)

    async def _resume(self, job: Job, found: Claimed) -> None:
        """A command that has a record: answer as the record says, or find out what became of it."""
        claim, revision = found.claim, found.revision
        if claim.digest != job.digest:
            outcome = self._wording.refused(job, Refusal("replay", f"the id {job.command.id!r} belongs to another command"))
            twin = outcome.model_copy(update={"id": derived_id("outcome", job.digest, outcome.id)})
            log.warning("command reuses an id", cluster=self._cluster, handler=job.addressee.handler, command=job.command.id)
            await self.outcomes.publish(twin, job.trace)
            return
        if claim.published:
            log.info("command was answered before", cluster=self._cluster, command=claim.command)
            return
        if claim.outcome is None:
            await self._finish(job, await self._read_back(job, None, claim, None), claim, revision)
            return
        if not await self.outcomes.is_published(claim.outcome, claim.time):
            await self.outcomes.publish(claim.outcome, job.trace)
        await self._claims.update(job.addressee.handler, claim.model_copy(update={"published": True}), revision)


def _version(obj: JsonObject) -> str:
    return str(obj["metadata"].get("resourceVersion", ""))
