"""Judges one command: looks at the freezes, the target and who owns its fields, and asks the guardrails in their order.

The answer is an outcome, when the command ends here (refused, failed, tried as a dry run), or all that is needed to write it.
Nothing is written and nothing is claimed. What cannot be seen now postpones the command.
"""

from dataclasses import dataclass, replace
from typing import Any

import orjson

from ipe_events.agent.guardrails import Facts, Refusal, Rules, after_read, before_read, labels_of, precondition
from ipe_events.agent.history import Chains, Writes
from ipe_events.agent.job import Job, Postponed
from ipe_events.agent.ledger import LedgerKeeper
from ipe_events.agent.wording import Redacts, Wording
from ipe_events.bus.kv import KeyValue
from ipe_events.clock import Clock
from ipe_events.errors import KubeError, KubeInvalid, SchemaError
from ipe_events.events.codec import decode
from ipe_events.events.command import Command, Create
from ipe_events.events.freeze import FREEZE_KEY, FreezeState
from ipe_events.events.outcome import Outcome, Status
from ipe_events.events.refs import ResourceRef
from ipe_events.kube import write
from ipe_events.kube.discovery import ApiResource, Discovery
from ipe_events.kube.session import KubeSession

JsonObject = dict[str, Any]

FRESH_SECONDS = 0.5
"""How old the look at the freezes may be when the write starts."""
MAX_RESULT = 256 << 10
"""Bytes of a dry run's result in an outcome; a larger one is left out, and that is said."""


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


class Judge:
    """Judges the commands of one cluster.

    Args:
        rules: the cluster's word.
        session: with the cluster.
        discovery: of the cluster; loaded again when a resource is missing.
        ledger: who owns which field.
        freezes: the bucket with the freezes.
        redactor: for the results of dry runs, and for what the API server says.
        chains: which command led to what.
        writes: who wrote how much lately.
        wording: makes outcomes.
        timeout: seconds of one request to the API server.
        clock: of the process.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        session: KubeSession,
        discovery: Discovery,
        ledger: LedgerKeeper,
        freezes: KeyValue,
        redactor: Redacts,
        chains: Chains,
        writes: Writes,
        wording: Wording,
        timeout: float,
        clock: Clock,
    ) -> None:
        self._rules = rules
        self._session = session
        self._discovery = discovery
        self._ledger = ledger
        self._freezes = freezes
        self._redactor = redactor
        self._chains = chains
        self._writes = writes
        self._wording = wording
        self._timeout = timeout
        self._clock = clock
        self._discovered = float("-inf")

    async def judge(self, job: Job) -> Outcome | Accepted:
        """The outcome of a command that is not to be written, or what is needed to write it.

        Raises:
            Postponed: it cannot be told now.
        """
        command = job.command
        looked = self._clock.monotonic()
        known = Facts(now=self._clock.now(), freezes=await self._read_freezes(), hops=self._chains.hops(command))
        refusal = before_read(command, job.addressee, self._rules, known)
        if refusal is not None:
            return self._wording.refused(job, refusal)
        try:
            target = await self._look(command)
        except KubeError as error:
            if error.retryable:
                raise Postponed(f"the API server cannot be asked: {self._redactor.redact_text(error.message)}") from error
            return self._wording.failed(job, error)
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
            return await self._would_have(job, target, refusal) if observed else self._wording.refused(job, refusal)
        if command.dry_run:
            return await self._dry_run(job, target)
        return Accepted(target, facts, looked)

    async def last_look(self, job: Job, accepted: Accepted) -> Refusal | None:
        """Freezes and expiry once more, when the first look is too long ago."""
        if self._clock.monotonic() - accepted.looked <= FRESH_SECONDS:
            return None
        try:
            freezes = await self._read_freezes()
        except Postponed as error:
            return Refusal("freeze", str(error))
        return before_read(job.command, job.addressee, self._rules, Facts(now=self._clock.now(), freezes=freezes))

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

    async def resource(self, command: Command) -> ApiResource:
        """The target's resource in the version that the command names.

        Raises:
            KubeError: there is none, or discovery failed.
        """
        ref = ResourceRef(group=command.target.group, resource=command.target.resource)
        if self._discovery.find(ref) is None and self._clock.monotonic() - self._discovered > 10:
            self._discovered = self._clock.monotonic()
            await self._discovery.load(self._session)
        return write.in_version(self._discovery.resource(ref), command.target.version)

    async def _look(self, command: Command) -> Target:
        resource = await self.resource(command)
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
            raise Postponed(
                f"the namespace's objects cannot be counted: {self._redactor.redact_text(error.message)}", delay=5.0
            ) from error
        remaining = (page.get("metadata") or {}).get("remainingItemCount") or 0
        return len(page.get("items") or ()) + int(remaining)

    # --- dry runs ------------------------------------------------------------------------------------------------------------

    async def _dry_run(self, job: Job, target: Target) -> Outcome:
        try:
            request = write.build(job.command, target.resource, target.seen, dry_run=True)
            written = await write.send(self._session, request, timeout=self._timeout)
        except KubeError as error:
            return self._wording.failed(job, error)
        result, note = self._result(written.object)
        return self._wording.outcome(job, Status.DRY_RUN, uid=written.uid, message=note, result=result)

    async def _would_have(self, job: Job, target: Target, refusal: Refusal) -> Outcome:
        """The refusal of a command that is only observed, with what it would have done as far as the API server tells."""
        command, labels = job.command, labels_of(job.command, target.seen)
        matching = self._rules.grants.decide(command.handler, command.action.verb, command.target, labels).matching
        if precondition(command, target.seen) is not None or self._rules.protected.why(command.target, labels, matching):
            return self._wording.refused(job, refusal)
        tried = await self._dry_run(job, target)
        note = f"{refusal.message}; dry run: {tried.message or 'it would succeed'}"
        return self._wording.refused(job, Refusal(refusal.guardrail, note), tried.result)

    def _result(self, obj: JsonObject) -> tuple[JsonObject | None, str]:
        shown = self._redactor.redact_object(obj)
        if isinstance(shown.get("metadata"), dict):
            shown["metadata"] = {key: value for key, value in shown["metadata"].items() if key != "managedFields"}
        size = len(orjson.dumps(shown))
        if size > MAX_RESULT:
            return None, f"the result has {size} bytes and is left out"
        return shown, ""
