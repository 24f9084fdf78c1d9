"""The agent: every cluster it serves, each supervised on its own, on one connection to the bus.

A cluster's four jobs (collect, act, answer, report) share its HTTP session and nothing with other clusters; when one of them
fails by a mistake of ours, that cluster's jobs start again after a pause, and the others notice nothing. Ending is orderly:
commands that have begun end and are answered, the Lease is given back so that another agent can take over at once, the last
status is told.
"""

import asyncio
import gc
import hmac
import platform
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ipe_events.agent.actuator import Actuator
from ipe_events.agent.alarms import LimitAlarm
from ipe_events.agent.carrier import FREEZE_BUCKET, Carrier
from ipe_events.agent.claims import BUCKET as CLAIMS_BUCKET
from ipe_events.agent.claims import Claims
from ipe_events.agent.collector import Collector, CollectSettings
from ipe_events.agent.config import AgentConfig
from ipe_events.agent.grants import GrantSet
from ipe_events.agent.guardrails import LONGEST_EXPIRY, Rules
from ipe_events.agent.lease import LeaseKeeper, Role
from ipe_events.agent.ledger import BUCKET as LEDGER_BUCKET
from ipe_events.agent.ledger import LedgerKeeper
from ipe_events.agent.redaction import RedactionRules
from ipe_events.agent.reporter import Reporter
from ipe_events.agent.services import AgentServices, View
from ipe_events.agent.wants import Wants
from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.clock import SYSTEM, Clock
from ipe_events.clusters.incluster import in_cluster_source, runs_in_cluster
from ipe_events.clusters.kubeconfig import kubeconfig_sources
from ipe_events.errors import BusNotFound, ConfigError, IpeError
from ipe_events.events.refs import ResourceRef
from ipe_events.events.registry import AgentStatus
from ipe_events.kube.session import ClusterSource, KubeSession
from ipe_events.tasks import end
from ipe_events.telemetry.health import HealthServer
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

Progress = Callable[[Sequence[AgentStatus]], None]

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_PROGRESS_SECONDS = 0.2
_LEAST_KEY = 32


def sources_of(config: AgentConfig) -> list[ClusterSource]:
    """The clusters that a configuration names.

    Raises:
        ConfigError: none is found, a glob matches nothing, or a name is given to several.
    """
    clusters = config.clusters
    if clusters.in_cluster or (runs_in_cluster() and not clusters.kubeconfig and not clusters.contexts):
        return [in_cluster_source(clusters.name)]
    found = kubeconfig_sources(kubeconfig=clusters.kubeconfig, contexts=clusters.contexts, allow_exec=clusters.allow_exec)
    if not clusters.name:
        return found
    if len(found) > 1:
        raise ConfigError(f"the name {clusters.name!r} is for one cluster, {len(found)} are served", where="clusters.name")
    (only,) = found
    return [ClusterSource(clusters.name, kubeconfig=only.kubeconfig, context=only.context, allow_exec=only.allow_exec)]


def collect_settings(config: AgentConfig, cluster: str) -> CollectSettings:
    """What the collector of one cluster is told.

    Raises:
        ConfigError: the key file is missing or too short.
    """
    collect, redaction = config.collect, config.redaction
    settings = CollectSettings(
        resources=collect.resources,
        always=tuple(map(ResourceRef.parse, collect.always)),
        deny=collect.deny,
        noise=collect.noise,
        secrets=collect.secrets,
        namespaces=collect.namespaces,
        selections={ResourceRef.parse(name): (each.labels, each.fields) for name, each in collect.selectors.items()},
        drop_managed_fields=collect.drop_managed_fields,
        redaction=RedactionRules(
            annotations=redaction.annotations,
            keep_annotations=redaction.keep_annotations,
            env_values=redaction.env_values,
        ),
        heartbeat=config.heartbeat,
    )
    return replace(settings, redaction_key=_key_of(redaction.key_file, cluster)) if redaction.key_file else settings


def _key_of(file: str, cluster: str) -> bytes:
    """The cluster's own key: masks of one cluster say nothing about another's."""
    try:
        key = Path(file).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the key: {error.strerror}", where=file) from error
    if len(key) < _LEAST_KEY:
        raise ConfigError(f"the key has {len(key)} bytes", where=file, fix=f"at least {_LEAST_KEY}, e.g. `openssl rand -hex 32`")
    return hmac.new(key, cluster.encode(), "sha256").digest()


class ClusterAgent:
    """One cluster's four jobs.

    Args:
        source: how to reach it.
        config: of the agent.
        agent: identity of this process.
        bus: the connection.
        wants: what handlers need.
        clock: of the process.
    """

    def __init__(self, source: ClusterSource, config: AgentConfig, agent: str, bus: Bus, wants: Wants, clock: Clock) -> None:
        self.cluster = source.name
        self._source = source
        self._config = config
        self._agent = agent
        self._bus = bus
        self._wants = wants
        self._clock = clock
        self._settings = collect_settings(config, source.name)
        writes = config.act.writes
        self._may_write = source.in_cluster if writes is None else writes
        self._collector: Collector | None = None
        self._lease: LeaseKeeper | None = None
        self._wanted: frozenset[ResourceRef] = frozenset()
        self._problem = ""
        wants.follow(self.cluster, self._want)

    def status(self) -> AgentStatus:
        """What is done for the cluster now."""
        if self._collector is None:
            return AgentStatus(cluster=self.cluster, agent=self._agent, state="disconnected", time=self._clock.now())
        writes = self._lease is not None and self._lease.role is Role.HOLDER and self._may_write
        return self._collector.status().model_copy(update={"writes": writes})

    def problem(self) -> str:
        """What keeps this cluster from being served fully; empty when nothing does."""
        lease = self._lease.problem if self._lease is not None else ""
        return self._problem or lease

    async def run(self) -> None:
        """Serve the cluster until cancelled, beginning anew after a failure."""
        pause = _FIRST_PAUSE
        while True:
            started = self._clock.monotonic()
            try:
                await self._serve()
            except* IpeError as group:
                self._problem = str(group.exceptions[0])
                log.error("cluster cannot be served", cluster=self.cluster, error=self._problem, retry_seconds=pause)  # noqa: TRY400 - the error says it all
            except* Exception as group:
                self._problem = f"internal: {group.exceptions[0]!r}"
                log.exception("serving a cluster failed", cluster=self.cluster, retry_seconds=pause)
            if self._clock.monotonic() - started > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _want(self, resources: frozenset[ResourceRef]) -> None:
        self._wanted = resources
        if self._collector is not None:
            self._collector.want(resources)

    async def _serve(self) -> None:
        async with await KubeSession.open(self._source) as session:
            collector = Collector(self.cluster, session, self._bus, self._settings, clock=self._clock, agent_id=self._agent)
            lease = LeaseKeeper(
                session, self._config.lease, f"{self._agent}_{secrets.token_hex(3)}", hold=self._may_write, clock=self._clock
            )
            carrier = await self._carrier(session, collector, lease)
            actuator = Actuator(
                self.cluster, self._bus, carrier, carrier.outcomes, parallel=self._config.act.parallel, clock=self._clock
            )
            lease.on_role = actuator.on_role
            handle = await self._services(session, collector, carrier, lease).start()
            self._collector, self._lease, self._problem = collector, lease, ""
            collector.want(self._wanted)
            reporter = Reporter(self._bus, self.cluster, self.status, self._config.heartbeat)
            log.info("serving cluster", cluster=self.cluster, server=session.server, may_write=self._may_write)
            try:
                async with asyncio.TaskGroup() as jobs:
                    for job, name in (
                        (collector.run(), "collect"),
                        (self._act(actuator, lease), "act"),
                        (reporter.run(), "report"),
                    ):
                        jobs.create_task(job, name=f"{name}-{self.cluster}")
            finally:
                await handle.stop()
                self._collector = self._lease = None

    async def _act(self, actuator: Actuator, lease: LeaseKeeper) -> None:
        """Answer commands while the Lease says so; on the way out end what has begun, then give the Lease back."""
        keeping = asyncio.create_task(lease.run(), name=f"lease-{self.cluster}")
        acting = asyncio.create_task(actuator.run(), name=f"commands-{self.cluster}")
        try:
            # neither ends by itself; when one fails, the cluster's jobs begin anew
            done, _ = await asyncio.wait({keeping, acting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end(acting)
            await end(keeping)
            await lease.release()

    async def _carrier(self, session: KubeSession, collector: Collector, lease: LeaseKeeper) -> Carrier:
        act = self._config.act
        rules = Rules(
            grants=GrantSet(self._config.grants), protected=act.protected, max_hops=act.max_hops, writes=self._may_write
        )
        return Carrier(
            cluster=self.cluster,
            agent=self._agent,
            rules=rules,
            session=session,
            discovery=collector.discovery,
            bus=self._bus,
            claims=await Claims.open(self._bus, self.cluster),
            ledger=await LedgerKeeper.open(self._bus),
            freezes=await self._bus.kv(FREEZE_BUCKET),
            redactor=collector.redactor,
            write_seconds=lease.remaining,
            no_lease=lease.hopeless,
            timeout=act.timeout,
            on_written=collector.written,
            clock=self._clock,
        )

    def _services(self, session: KubeSession, collector: Collector, carrier: Carrier, lease: LeaseKeeper) -> AgentServices:
        settings = self._settings

        def collected() -> Collection[ResourceRef]:
            return [ref for ref in self._wanted | set(settings.always) if not settings.why_not(ref)]

        return AgentServices(
            cluster=self.cluster,
            agent=self._agent,
            bus=self._bus,
            session=session,
            discovery=collector.discovery,
            redactor=collector.redactor,
            grants=GrantSet(self._config.grants),
            carrier=carrier,
            view=View(
                cluster_uid=lambda: collector.cluster_uid,
                epoch=lambda: collector.epoch,
                collected=collected,
                selection=settings.selection,
                writes=lambda: lease.role is Role.HOLDER,
            ),
            limits=self._config.answers,
            clock=self._clock,
        )


async def run_agent(
    config: AgentConfig,
    bus_settings: BusSettings,
    *,
    stop: asyncio.Event,
    on_progress: Progress | None = None,
    clock: Clock = SYSTEM,
) -> None:
    """Serve every cluster of the configuration until ``stop`` is set.

    Args:
        config: what to serve and how.
        bus_settings: how to reach the bus.
        stop: ends the agent in good order.
        on_progress: called several times a second with the status of every cluster.
        clock: of the process.

    Raises:
        ConfigError: no cluster is found, or a kubeconfig is malformed.
        BusError: the bus cannot be reached, or its buckets are missing.
    """
    sources = sources_of(config)
    for source in sources:
        # a malformed kubeconfig is the reader's mistake and said at once; a cluster that is away is not
        await (await KubeSession.open(source)).close()
    agent = config.agent or f"{platform.node() or 'agent'}-{secrets.token_hex(3)}"
    async with await Bus.connect(bus_settings, name=f"ipe-agent {agent}") as bus:
        await _check_buckets(bus)
        wants = Wants(bus)
        agents = [ClusterAgent(source, config, agent, bus, wants, clock) for source in sources]
        gc.collect()
        gc.freeze()  # what starting made lives as long as the process: no use in looking at it again and again
        jobs = [wants.run(), LimitAlarm(bus).run(), *(each.run() for each in agents)]
        if on_progress is not None:
            jobs.append(_tell_progress(agents, on_progress))
        tasks = [asyncio.create_task(job) for job in jobs]
        health = _health(config, bus, agents)
        try:
            if health is not None:
                await health.start()
                log.info("health endpoints are served", host=config.health_host, port=health.port)
            stopping = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for task in done - {stopping}:
                task.result()
        finally:
            await end(*tasks)
            if health is not None:
                await health.stop()


async def _check_buckets(bus: Bus) -> None:
    """Fail at the start, not at the first command, when the bus is not prepared."""
    for bucket in (CLAIMS_BUCKET, LEDGER_BUCKET, FREEZE_BUCKET):
        try:
            await bus.kv(bucket)
        except BusNotFound as error:
            raise BusNotFound(f"bucket {bucket} is missing", fix="prepare the bus with `ipe bus apply`") from error
    info = await bus.stream_info(f"KV_{CLAIMS_BUCKET}")
    kept = info["config"].get("max_age", 0) / 1e9
    if kept and kept < LONGEST_EXPIRY.total_seconds():
        raise ConfigError(
            f"bucket {CLAIMS_BUCKET} forgets after {kept / 3600:.0f} h, commands may live {LONGEST_EXPIRY.days} days",
            fix="set claim_hours higher and run `ipe bus apply`",
        )


async def _tell_progress(agents: Sequence[ClusterAgent], tell: Progress) -> None:
    while True:
        tell([each.status() for each in agents])
        await asyncio.sleep(_PROGRESS_SECONDS)


def _health(config: AgentConfig, bus: Bus, agents: Sequence[ClusterAgent]) -> HealthServer | None:
    if config.health_port is None:
        return None

    def clusters() -> str:
        """One dead cluster of many is its own trouble; none alive is ours."""
        states = {each.cluster: each.status().state for each in agents}
        if any(state == "connected" for state in states.values()):
            return ""
        return ", ".join(f"{name} is {state}" for name, state in states.items())

    checks = {"bus": lambda: "" if bus.connected else "no connection to NATS", "clusters": clusters}
    return HealthServer(checks, port=config.health_port, host=config.health_host)
