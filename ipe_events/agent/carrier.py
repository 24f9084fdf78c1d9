"""Carries one command to its end: judged, claimed, written once, answered once.

The order is that of DESIGN §5. Up to the claim nothing has happened, and any trouble (no API server, no bus, another holder of
the Lease) only postpones: the message comes again. After the claim the command ends here in any case; what was not answered is
read back and ends as ``applied`` or ``unknown``. The claim's record receives the outcome before the bus does, and only then is
the message acknowledged.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Protocol

import orjson

from ipe_events.agent.claims import Claim, Claimed, Claims
from ipe_events.agent.guardrails import Facts, Refusal, Rules, after_read, before_read, labels_of, precondition
from ipe_events.agent.history import Chains, Writes
from ipe_events.agent.job import Job, Postponed, outcome_id
from ipe_events.agent.ledger import LedgerKeeper
from ipe_events.agent.outcomes import Outcomes
from ipe_events.bus.connection import Bus
from ipe_events.bus.kv import KeyValue
from ipe_events.clock import SYSTEM, Clock
from ipe_events.errors import IpeError, KubeConflict, KubeError, KubeInvalid, KubeNotFound, KubeThrottled, SchemaError
from ipe_events.events.codec import decode
from ipe_events.events.command import Command, Create
from ipe_events.events.freeze import FREEZE_KEY, FreezeState
from ipe_events.events.ids import derived_id
from ipe_events.events.outcome import Outcome, Status
from ipe_events.events.refs import ResourceRef
from ipe_events.kube import write
from ipe_events.kube.discovery import ApiResource, Discovery
from ipe_events.kube.session import KubeSession
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.trace import Trace

log = get_logger(__name__)

JsonObject = dict[str, Any]

FREEZE_BUCKET = "ipe_freeze"
FRESH_SECONDS = 0.5
"""How old the look at the freezes may be when the write starts."""
MAX_RESULT = 256 << 10
"""Bytes of a dry run's result in an outcome; a larger one is left out, and that is said."""
_TRIES = 3
_LEAST_TIME = 0.5
_UNREADABLE = timedelta(minutes=10)
"""How long after its expiry a claimed command waits for an API server that could tell what became of it."""


class Redacts(Protocol):
    """What the carrier needs of the redactor."""

    def redact_object(self, obj: JsonObject) -> JsonObject:
        """A copy fit for the bus."""
        ...

    def redact_text(self, text: str) -> str:
        """The text without what must not cross the bus."""
        ...


@dataclass(slots=True)
class Target:
    """What is known of a command's target: its resource, and the object as it was read (None: it does not exist)."""

    resource: ApiResource
    seen: JsonObject | None

    @property
    def uid(self) -> str:
        """Of the object; empty when there is none."""
        return str(self.seen["metadata"].get("uid", "")) if self.seen else ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A command that passed: its target, what it was judged by, and the monotonic second of the look at the freezes."""

    target: Target
    facts: Facts
    looked: float


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
        self._rules = rules
        self._session = session
        self._discovery = discovery
        self.outcomes = Outcomes(cluster, agent, bus, claims, clock)
        self._claims = claims
        self._ledger = ledger
        self._freezes = freezes
        self._redactor = redactor
        self._write_seconds = write_seconds
        self._no_lease = no_lease
        self._timeout = timeout
        self._on_written = on_written
        self._clock = clock
        self._chains = Chains()
        self._writes = Writes()
        self._discovered = float("-inf")

    async def carry(self, job: Job) -> None:
        """Carry one command to its outcome; on return the message may be acknowledged.

        Raises:
            Postponed: nothing has happened yet.
            BusError: the outcome may not be on the bus yet; the claim remembers it.
        """
        verdict = await self._judge(job)
        if isinstance(verdict, Outcome):
            await self._conclude(job, verdict)
        else:
            self._writes.add(job.command.handler, job.command.target, self._clock.monotonic())
            await self._claim_and_write(job, verdict)

    async def rehearse(self, job: Job) -> Outcome:
        """What would become of a command: the same judgement and a dry run; nothing is claimed, written or published.

        Raises:
            Postponed: it cannot be told now.
        """
        dry = replace(job, command=job.command.model_copy(update={"dry_run": True}))
        verdict = await self._judge(dry)
        assert isinstance(verdict, Outcome), "a dry run ends in an outcome"
        return verdict

    async def _judge(self, job: Job) -> Outcome | Accepted:
        """The outcome of a command that is not to be written, or what is needed to write it."""
        command = job.command
        looked = self._clock.monotonic()
        known = Facts(now=self._clock.now(), freezes=await self._read_freezes(), hops=self._chains.hops(command))
        refusal = before_read(command, job.addressee, self._rules, known)
        if refusal is not None:
            return self._refused(job, refusal)
        try:
            target = await self._look(command)
        except KubeError as error:
            if error.retryable:
                raise Postponed(f"the API server cannot be asked: {error}") from error
            return self._failed(job, error)
        population = await self._population(job, target)
        owners = await self._ledger.owners(command, known.now)
        facts = replace(
            known,
            now=self._clock.now(),
            seen=target.seen,
            usage=self._writes.usage(command.handler, command.target, self._clock.monotonic(), population),
            owners=owners,
        )
        refusal = after_read(command, self._rules, facts)
        if refusal is not None:
            observed = refusal.guardrail in ("mode", "read-only")
            return await self._would_have(job, target, refusal) if observed else self._refused(job, refusal)
        if command.dry_run:
            return await self._dry_run(job, target)
        return Accepted(target, facts, looked)

    def recall(self, outcome: Outcome, age: float) -> None:
        """Count an outcome of this cluster that was published ``age`` seconds ago, by this agent or the one before."""
        if outcome.status in (Status.APPLIED, Status.UNKNOWN) and outcome.object_ref is not None:
            self._writes.add(outcome.handler, outcome.object_ref, self._clock.monotonic() - age)
            self._chains.wrote(outcome.uid, outcome.resource_version, outcome.hops)

    # --- looking -------------------------------------------------------------------------------------------------------------

    async def _read_freezes(self) -> FreezeState:
        entry = await self._freezes.get(FREEZE_KEY)
        if entry is None:
            return FreezeState()
        try:
            return decode(FreezeState, entry.value)
        except SchemaError as error:
            # who cannot read the stop sign stops
            raise Postponed(f"the freeze state cannot be read: {error}", delay=5.0) from error

    async def _resource(self, command: Command) -> ApiResource:
        ref = ResourceRef(group=command.target.group, resource=command.target.resource)
        if self._discovery.find(ref) is None and self._clock.monotonic() - self._discovered > 10:
            self._discovered = self._clock.monotonic()
            await self._discovery.load(self._session)
        return write.in_version(self._discovery.resource(ref), command.target.version)

    async def _look(self, command: Command) -> Target:
        resource = await self._resource(command)
        if resource.namespaced != bool(command.target.namespace):
            scope = "needs a namespace" if resource.namespaced else "is cluster-scoped"
            raise KubeInvalid(f"{resource.ref} {scope}, the target's namespace is {command.target.namespace!r}")
        if isinstance(command.action, Create):
            return Target(resource, None)
        target = command.target
        return Target(resource, await write.read(self._session, resource, target.namespace, target.name, timeout=self._timeout))

    async def _population(self, job: Job, target: Target) -> int | None:
        """How many objects of the resource the namespace holds; asked only when a grant limits the share."""
        command = job.command
        labels = labels_of(command, target.seen)
        grant = self._rules.grants.decide(command.handler, command.action.verb, command.target, labels).grant
        if grant is None or grant.limits.namespace_share >= 1:
            return None
        try:
            page = await self._session.json(
                "GET", target.resource.path(command.target.namespace), params={"limit": "1"}, timeout=self._timeout
            )
        except KubeError as error:
            raise Postponed(f"the namespace's objects cannot be counted: {error}", delay=5.0) from error
        remaining = (page.get("metadata") or {}).get("remainingItemCount") or 0
        return len(page.get("items") or ()) + int(remaining)

    # --- dry runs ------------------------------------------------------------------------------------------------------------

    async def _dry_run(self, job: Job, target: Target) -> Outcome:
        try:
            request = write.build(job.command, target.resource, target.seen, dry_run=True)
            written = await write.send(self._session, request, timeout=self._timeout)
        except KubeError as error:
            return self._failed(job, error)
        result, note = self._result(written.object)
        return self._outcome(job, Status.DRY_RUN, uid=written.uid, message=note, result=result)

    async def _would_have(self, job: Job, target: Target, refusal: Refusal) -> Outcome:
        """The refusal of a command that is only observed, with what it would have done as far as the API server tells."""
        command, labels = job.command, labels_of(job.command, target.seen)
        matching = self._rules.grants.decide(command.handler, command.action.verb, command.target, labels).matching
        if precondition(command, target.seen) is not None or self._rules.protected.why(command.target, labels, matching):
            return self._refused(job, refusal)
        tried = await self._dry_run(job, target)
        note = f"{refusal.message}; dry run: {tried.message or 'it would succeed'}"
        return self._refused(job, Refusal(refusal.guardrail, note), tried.result)

    def _result(self, obj: JsonObject) -> tuple[JsonObject | None, str]:
        shown = self._redactor.redact_object(obj)
        if isinstance(shown.get("metadata"), dict):
            shown["metadata"] = {key: value for key, value in shown["metadata"].items() if key != "managedFields"}
        size = len(orjson.dumps(shown))
        if size > MAX_RESULT:
            return None, f"the result has {size} bytes and is left out"
        return shown, ""

    # --- writing -------------------------------------------------------------------------------------------------------------

    async def _claim_and_write(self, job: Job, accepted: Accepted) -> None:
        command, target, facts = job.command, accepted.target, accepted.facts
        if self._write_seconds() < _LEAST_TIME:
            why = self._no_lease()
            if not why:
                raise Postponed("this agent does not hold the cluster's Lease")
            await self._conclude(job, self._refused(job, Refusal("lease", why)))
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
            refusal = await self._last_look(job, accepted.looked)
        except IpeError:
            # nothing was written: whoever gets the message next may begin anew
            await self._claims.drop(command.handler, claim, revision)
            raise
        if refusal is None and self._write_seconds() < _LEAST_TIME:
            await self._ledger.withdraw(command, facts.now, replaced)
            await self._claims.drop(command.handler, claim, revision)
            raise Postponed("this agent lost the cluster's Lease before it wrote")
        if refusal is not None:
            outcome = self._refused(job, refusal)
        else:
            outcome = await self._write(job, target, claim)
        if outcome.status in (Status.FAILED, Status.REFUSED, Status.EXPIRED):
            await self._ledger.withdraw(command, facts.now, replaced)
        await self._finish(job, outcome, claim, revision)

    async def _last_look(self, job: Job, looked: float) -> Refusal | None:
        """Freezes and expiry once more, when the first look is too long ago."""
        if self._clock.monotonic() - looked <= FRESH_SECONDS:
            return None
        try:
            freezes = await self._read_freezes()
        except Postponed as error:
            return Refusal("freeze", str(error))
        return before_read(job.command, job.addressee, self._rules, Facts(now=self._clock.now(), freezes=freezes))

    async def _write(self, job: Job, target: Target, claim: Claim) -> Outcome:
        """Send the write; repeated only after an answer that says it was not carried out."""
        command = job.command
        for attempt in range(1, _TRIES + 1):
            timeout = min(self._timeout, self._write_seconds())
            if timeout < _LEAST_TIME or command.expired(self._clock.now()):
                return self._outcome(job, Status.EXPIRED, message="it could not be written in time")
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
            return self._outcome(job, Status.APPLIED, uid=written.uid or target.uid, resource_version=written.resource_version)
        raise AssertionError("unreachable")  # the last attempt returns

    async def _may_retry(self, job: Job, target: Target, error: KubeError, *, last: bool) -> Outcome | None:
        """After a definite no: None when another attempt makes sense (``target`` is then as it is now), else the outcome."""
        command = job.command
        if isinstance(error, KubeThrottled) and not last:
            await asyncio.sleep(min(error.retry_after, 2.0))
            return None
        if not isinstance(error, KubeConflict | KubeInvalid | KubeNotFound) or isinstance(command.action, Create):
            return self._failed(job, error)
        before = target.seen
        try:
            target.seen = await write.read(
                self._session, target.resource, command.target.namespace, command.target.name, timeout=self._timeout
            )
        except KubeError:
            return self._failed(job, error)
        refusal = precondition(command, target.seen)
        if refusal is not None:
            return self._outcome(
                job,
                Status.REFUSED,
                guardrail=refusal.guardrail,
                message=f"changed meanwhile: {refusal.message}",
                reason=error.reason,
            )
        same = before is not None and target.seen is not None and _version(before) == _version(target.seen)
        if last or same or target.uid != (before or {}).get("metadata", {}).get("uid", ""):
            return self._failed(job, error)
        return None

    async def _read_back(self, job: Job, resource: ApiResource, claim: Claim, error: KubeError | None) -> Outcome:
        """What the cluster shows of a write that was not answered.

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
            now = await write.read(self._session, resource, command.target.namespace, command.target.name, timeout=self._timeout)
        except KubeError as failure:
            if failure.retryable and self._clock.now() < command.expires + _UNREADABLE:
                raise Postponed(f"it cannot be read back: {failure}", delay=2.0) from failure
            return self._outcome(
                job,
                Status.UNKNOWN,
                message=f"{why}; it cannot be read back: {self._redactor.redact_text(failure.message)}",
                reason=failure.reason,
            )
        found = write.read_back(command, now, seen_uid=claim.seen_uid)
        status = Status.APPLIED if found.applied else Status.UNKNOWN
        if found.applied:
            self._remember(job, found.uid, found.resource_version)
        return self._outcome(
            job, status, uid=found.uid, resource_version=found.resource_version, message=f"{why}; {found.evidence}"
        )

    def _remember(self, job: Job, uid: str, resource_version: str) -> None:
        hops = self._chains.hops(job.command)
        self._chains.wrote(uid, resource_version, hops)
        if self._on_written is not None:
            self._on_written(uid, resource_version, hops, job.command.id, job.trace)

    # --- answering -----------------------------------------------------------------------------------------------------------

    def _refused(self, job: Job, refusal: Refusal, result: JsonObject | None = None) -> Outcome:
        status = Status.EXPIRED if refusal.guardrail == "expiry" and job.command.expired(self._clock.now()) else Status.REFUSED
        return self._outcome(job, status, guardrail=refusal.guardrail, message=refusal.message, result=result)

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
            outcome = self._refused(job, Refusal("replay", f"the id {job.command.id!r} belongs to another command"))
            twin = outcome.model_copy(update={"id": derived_id("outcome", job.digest, outcome.id)})
            log.warning("command reuses an id", cluster=self._cluster, handler=job.addressee.handler, command=job.command.id)
            await self.outcomes.publish(twin, job.trace)
            return
        if claim.published:
            log.info("command was answered before", cluster=self._cluster, command=claim.command)
            return
        if claim.outcome is None:
            try:
                resource = await self._resource(job.command)
            except KubeError as error:
                raise Postponed(f"it cannot be read back: {error}", delay=2.0) from error
            await self._finish(job, await self._read_back(job, resource, claim, None), claim, revision)
            return
        if not await self.outcomes.is_published(claim.outcome, claim.time):
            await self.outcomes.publish(claim.outcome, job.trace)
        await self._claims.update(job.addressee.handler, claim.model_copy(update={"published": True}), revision)

    def _failed(self, job: Job, error: KubeError) -> Outcome:
        return self._outcome(
            job, Status.FAILED, message=self._redactor.redact_text(error.message), reason=error.reason or type(error).__name__
        )

    def _outcome(self, job: Job, status: Status, *, message: str = "", **fields: Any) -> Outcome:
        command, addressee = job.command, job.addressee
        return Outcome(
            id=outcome_id(addressee, command.id),
            command=command.id,
            handler=addressee.handler,
            cluster=addressee.cluster,
            verb=addressee.verb,
            agent=self._agent,
            status=status,
            message=message[:4_000],
            object_ref=command.target,
            cause=command.id,
            hops=self._chains.hops(command),
            time=self._clock.now(),
            **fields,
        )


def _version(obj: JsonObject) -> str:
    return str(obj["metadata"].get("resourceVersion", ""))
