"""Takes the commands for one cluster off the bus and hands each to the ``Carrier``.

One durable consumer per cluster; it runs only while this agent is the one to answer: the holder of the Lease, or, where nobody
can write, an agent that says so. What arrives is hostile until it has been parsed: a body that is no command is answered with a
refusal (guardrail ``schema``) and an audit line, and never stops the loop. Commands for one object are carried out in order,
different objects in parallel. Whoever waits in a lane keeps its message alive on the bus.
"""

import asyncio
import re
from collections.abc import Awaitable
from contextlib import suppress
from datetime import timedelta

import orjson
from pydantic import TypeAdapter, ValidationError

from ipe_events.agent.carrier import Carrier
from ipe_events.agent.claims import digest
from ipe_events.agent.guardrails import Addressee
from ipe_events.agent.job import Job, Postponed, outcome_id
from ipe_events.agent.lanes import Lanes
from ipe_events.agent.lease import Role
from ipe_events.agent.outcomes import Outcomes
from ipe_events.bus.connection import Bus
from ipe_events.bus.consumer import Consumer, ConsumerSpec, Delivery
from ipe_events.clock import SYSTEM, Clock
from ipe_events.errors import IpeError, SchemaError, SubjectError
from ipe_events.events.base import Name
from ipe_events.events.codec import decode
from ipe_events.events.command import VERBS, Command
from ipe_events.events.outcome import Outcome, Status
from ipe_events.subjects import COMMAND, OUTCOME, escape
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.metrics import counter, gauge
from ipe_events.telemetry.trace import new_trace, parse_traceparent, span

log = get_logger(__name__)

MALFORMED = counter("ipe_commands_malformed_total", "Messages on a command subject that are no command.", ("cluster",))
WAITING = gauge("ipe_commands_waiting", "Commands that arrived and are not answered yet.", ("cluster",))

ACK_WAIT = 10.0
"""Seconds until a command comes again that nobody keeps alive: its agent died, or gave up the Lease as it arrived."""
MAX_OPEN = 1_024
"""Commands that may be out at a time: the bound of every queue in here."""
_DRAIN_SECONDS = 20.0
_NAME = TypeAdapter[str](Name)
_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")


class Actuator:
    """The acting side of one cluster's agent.

    Args:
        cluster: the operator's name for it.
        bus: the connection.
        carrier: carries out what arrives.
        outcomes: answers what is no command.
        parallel: commands carried out at a time.
        clock: of the process.
    """

    def __init__(
        self, cluster: str, bus: Bus, carrier: Carrier, outcomes: Outcomes, *, parallel: int = 16, clock: Clock = SYSTEM
    ) -> None:
        self._cluster = cluster
        self._bus = bus
        self._carrier = carrier
        self._outcomes = outcomes
        self._clock = clock
        self._lanes = Lanes(parallel)
        self._open: dict[int, Delivery] = {}
        self._consumer: Consumer | None = None
        self._active = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting = WAITING.labels(cluster)

    def on_role(self, role: Role) -> None:
        """Follow the Lease: the holder answers; where nobody holds it, we do (and refuse what would write)."""
        if role in (Role.HOLDER, Role.VACANT):
            self._active.set()
            self._idle.clear()
        else:
            self._active.clear()
            self._idle.set()

    async def run(self) -> None:
        """Answer commands whenever it is our turn; ends only when cancelled, and then finishes what has begun."""
        keepalive = asyncio.create_task(self._keep_alive(), name=f"commands-alive-{self._cluster}")
        try:
            while True:
                await self._active.wait()
                await self._recall()
                self._consumer = await Consumer.start(self._bus, self._spec(), self._receive)
                log.info("answering commands", cluster=self._cluster)
                await self._idle.wait()
                await self._pause()
        finally:
            await self._pause()
            await end(keepalive)

    def _spec(self) -> ConsumerSpec:
        return ConsumerSpec(
            stream=COMMAND.stream,
            name=f"act-{escape(self._cluster)}",
            filters=(f"ipe.cmd.{escape(self._cluster)}.>",),
            start="all",
            ack_wait=ACK_WAIT,
            max_ack_pending=MAX_OPEN,
            description=f"commands for cluster {self._cluster}, answered by its agent",
        )

    async def _pause(self) -> None:
        """Take nothing more, give back what has not begun, and let what has begun end."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        consumer.pause()
        self._lanes.clear()
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._lanes.join()
        except TimeoutError:
            log.warning("commands were still at work when the time to end was over", cluster=self._cluster)
            await self._lanes.cancel()
        for delivery in self._open.values():
            delivery.nak(0.0)
        self._open.clear()
        await consumer.stop()

    async def _recall(self) -> None:
        """Count the last hour's writes, so that a restart does not begin a new budget."""
        now = self._clock.now()
        subject = OUTCOME.filter(cluster=self._cluster)
        async for delivery in self._bus.read(OUTCOME.stream, [subject], start=now - timedelta(hours=1)):
            try:
                outcome = decode(Outcome, delivery.body)
            except SchemaError:
                log.warning("an outcome cannot be read", cluster=self._cluster, sequence=delivery.seq)
                continue
            self._carrier.recall(outcome, max(0.0, (now - delivery.time).total_seconds()))

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(ACK_WAIT / 3)
            self._waiting.set(len(self._open))
            for delivery in list(self._open.values()):
                delivery.in_progress()

    # --- one message ---------------------------------------------------------------------------------------------------------

    def _receive(self, delivery: Delivery) -> None:
        again = delivery.seq in self._open
        self._open[delivery.seq] = delivery
        if again:
            return  # still in its lane; the newer delivery is the one to acknowledge
        try:
            tokens = COMMAND.parse(delivery.subject)
            _check_author(tokens["handler"])
        except SubjectError as error:
            log.warning("audit: malformed command subject", cluster=self._cluster, sequence=delivery.seq, error=str(error))
            MALFORMED.labels(self._cluster).add(1)
            self._open.pop(delivery.seq).term("malformed subject")
            return
        addressee = Addressee(cluster=tokens["cluster"], handler=tokens["handler"], verb=tokens["verb"])
        try:
            trace = parse_traceparent(delivery.headers.get("traceparent", "")) or new_trace()
        except SchemaError:
            trace = new_trace()
        try:
            command = decode(Command, delivery.body, ce_type=delivery.headers.get("ce-type"))
        except SchemaError as error:
            outcome = self._malformed(delivery, addressee, str(error)[:2_000])
            self._lanes.submit(
                ("malformed", addressee.handler),
                lambda: self._settle(
                    delivery.seq, self._outcomes.answer_malformed(outcome, delivery.seq, digest(delivery.body), trace)
                ),
            )
            return
        job = Job(command, addressee, digest(delivery.body), self._clock.monotonic(), trace)
        target = command.target
        key = (target.group, target.resource, target.namespace, target.name)
        self._lanes.submit(key, lambda: self._carry(delivery.seq, job))

    async def _carry(self, seq: int, job: Job) -> None:
        name = f"command {job.command.action.verb}"
        attributes = {"cluster": self._cluster, "handler": job.addressee.handler, "command": job.command.id}
        with span(name, job.trace, attributes=attributes) as step:
            traced = Job(job.command, job.addressee, job.digest, job.arrived, step)
            await self._settle(seq, self._carrier.carry(traced))

    async def _settle(self, seq: int, work: Awaitable[None]) -> None:
        """Do the work, then acknowledge; postponed or failed work makes the message come again."""
        delay = 0.0
        try:
            await work
        except Postponed as why:
            delay = why.delay
            log.info("command postponed", cluster=self._cluster, sequence=seq, reason=str(why), retry_seconds=delay)
        except IpeError as error:
            delay = 2.0
            log.warning("command not answered yet", cluster=self._cluster, sequence=seq, error=str(error), retry_seconds=delay)
        except Exception:  # a mistake of ours: said, and the command comes again until it expires
            delay = 5.0
            log.exception("command could not be judged", cluster=self._cluster, sequence=seq)
        delivery = self._open.pop(seq, None)
        if delivery is None:
            return
        if delay:
            delivery.nak(delay)
        else:
            delivery.ack()

    def _malformed(self, delivery: Delivery, addressee: Addressee, problem: str) -> Outcome:
        """The refusal of something that is no command; it is joined to its author's id when there is one."""
        MALFORMED.labels(self._cluster).add(1)
        command = _stated_id(delivery) or f"malformed-{delivery.seq}"
        verb = addressee.verb if addressee.verb in VERBS else "unknown"
        log.warning(
            "audit: malformed command refused",
            cluster=self._cluster,
            handler=addressee.handler,
            verb=addressee.verb,
            sequence=delivery.seq,
            problem=problem,
        )
        return Outcome(
            id=outcome_id(addressee, f"{command}@{delivery.seq}"),
            command=command,
            handler=addressee.handler,
            cluster=addressee.cluster,
            verb=verb,
            status=Status.REFUSED,
            guardrail="schema",
            message=problem,
            cause=command,
            time=self._clock.now(),
        )


def _check_author(handler: str) -> None:
    """Refuses a name that no outcome could be addressed to.

    Raises:
        SubjectError: it is empty, too long, or no text.
    """
    try:
        _NAME.validate_python(handler)
        handler.encode()
    except (ValidationError, UnicodeEncodeError) as error:
        raise SubjectError(f"{handler[:100]!r} cannot be the name of a handler") from error


def _stated_id(delivery: Delivery) -> str:
    """The id that a malformed command gives itself, or its message has; empty when neither can be one."""
    stated: list[object] = []
    with suppress(orjson.JSONDecodeError):
        body = orjson.loads(delivery.body)
        stated.append(body.get("id") if isinstance(body, dict) else None)
    with suppress(SchemaError):
        stated.append(delivery.headers.get("Nats-Msg-Id"))
    return next((each for each in stated if isinstance(each, str) and _ID.fullmatch(each)), "")
