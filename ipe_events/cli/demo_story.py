"""The demo's story: what happens, in which order, and how it is known to have happened.

Every step waits for its own event on the bus, joined to the one before by id, and the end result is read from the cluster itself.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from ipe_events.cli.common import Session, describe, until_stopped
from ipe_events.cli.demo_narrator import Listener, Narrator, StepFailed, eventually
from ipe_events.cli.demo_stage import (
    DEPLOYMENT,
    ENFORCING,
    NAMESPACE,
    OBSERVING,
    SIMULATED,
    Stage,
    example_file,
    first_trouble,
    simulated,
    staged,
    start_agent,
    write_agent_config,
)
from ipe_events.cli.events import draw
from ipe_events.cli.reading import trail_around
from ipe_events.cli.record import Entry
from ipe_events.clock import SYSTEM
from ipe_events.declaration import Subscription
from ipe_events.errors import KubeError, KubeForbidden, KubeUnauthorized
from ipe_events.kube.config import ClusterSource
from ipe_events.kube.session import KubeSession
from ipe_events.runtime import registry
from ipe_events.runtime.app import HandlerApp
from ipe_events.subjects import CHANGE, CLUSTER, COMMAND, OUTCOME

CONTEXT = "demo"
WANTED, CAP = 80, 50
RESOURCE = "deployments.apps"

SETUP_SECONDS = 20.0
STEP_SECONDS = 15.0
SYNC_SECONDS = 120.0
"""A real cluster may be large and far away."""


async def tell(session: Session, *, keep: bool, kubeconfig: Path | None, pace: float) -> bool:
    """Tell the story; whether every step truly happened."""
    session.configure_log()
    narrator = Narrator(session, pace)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipe-demo-", ignore_cleanup_errors=True)))
        try:
            await narrator.chapter("The stage")
            stage = await stack.enter_async_context(staged(folder))
            narrator.step("bus", f"nats-server with JetStream runs on {stage.settings.servers[0]} (temporary store)",
                          show=f"ipe bus plan{_in_context()}")  # fmt: skip
            if keep:
                stack.enter_context(_remembered(stage))
            if kubeconfig is None:
                await stack.enter_async_context(simulated(stage))
            listener = await stack.enter_async_context(Listener(stage.bus, lambda: first_trouble(stage)))
            if kubeconfig is None:
                await _simulated_story(narrator, stage, listener, stack)
            else:
                await _observed_story(narrator, stage, listener, stack, kubeconfig)
        except StepFailed as error:
            narrator.failed(describe(error))
            return False
        await _epilogue(narrator, keep=keep)
    return True


def _in_context() -> str:
    return f" --context {CONTEXT}"


def _unless_on_path() -> str:
    """Where `ipe` is, when typing its name does not find it: `make demo` installs into a folder of its own."""
    return "" if shutil.which("ipe") else os.path.relpath(sys.argv[0])


async def _epilogue(narrator: Narrator, *, keep: bool) -> None:
    narrator.say(f"\nEvery step happened, in {narrator.seconds:.0f} seconds.")
    if where := _unless_on_path():
        narrator.say(f"`ipe` is {where} here.")
    if not keep:
        narrator.say("`ipe demo --keep` stays up: try the commands above in a second terminal.")
        return
    narrator.say(f"It stays up until Ctrl-C. In a second terminal: ipe doctor{_in_context()}, or any command above.")
    await until_stopped()


@contextmanager
def _remembered(stage: Stage) -> Iterator[None]:
    """A context for a second terminal, as long as the demo runs; the user's current context stays the current one."""
    from ipe_events.bus.contexts import Contexts

    contexts = Contexts()
    before = contexts.current()
    contexts.add(CONTEXT, stage.settings)
    try:
        yield
    finally:
        ours = next((one for one in contexts.list() if one.name == CONTEXT and one.origin == "ipe"), None)
        # another demo may have taken the name over meanwhile
        if ours is not None and ours.settings.servers == stage.settings.servers:
            contexts.remove(CONTEXT)
            if before and before != CONTEXT and contexts.current() != before:
                contexts.use(before)


# --- three simulated clusters --------------------------------------------------------------------------------------------


async def _simulated_story(narrator: Narrator, stage: Stage, listener: Listener, stack: AsyncExitStack) -> None:
    file = example_file()
    handlers = registry.load([str(file)])
    name = handlers[0].name
    narrator.step(
        "clusters", f"{len(stage.clusters)} simulated clusters serve the Kubernetes API over HTTP: {', '.join(SIMULATED)}"
    )
    await narrator.chapter("Many clusters, one bus")
    begun = narrator.seconds
    for cluster in SIMULATED:
        mode = "enforce" if cluster == ENFORCING else "observe"
        kubeconfig = stage.folder / f"{cluster}.kubeconfig"
        config = write_agent_config(stage, cluster, kubeconfig=kubeconfig, handler=name, mode=mode, writes=True)
        start_agent(stage, config)
    first = await listener.until("a first change on the bus", _is(CHANGE.name), SETUP_SECONDS)
    narrator.step("first-event", f"the first change is on the bus: {first.summary} in {first.cluster}",
                  seconds=narrator.seconds - begun, show=f"ipe events show {first.ref}{_in_context()}")  # fmt: skip
    for cluster in SIMULATED:
        await listener.until(f"{cluster} connected", _is(CLUSTER.name, cluster=cluster, verb="connected"), SETUP_SECONDS)
    changes = listener.count(_is(CHANGE.name))
    narrator.step("connected", f"all three are connected and synchronised; {changes} changes so far, and they keep coming",
                  show=f"ipe clusters list{_in_context()}")  # fmt: skip

    await narrator.chapter("A handler joins")
    app = await stack.enter_async_context(HandlerApp(handlers, stage.settings))
    lines = len(file.read_text(encoding="utf-8").strip().splitlines())
    narrator.step("handler", f"{file.name} runs: {lines} lines that want no deployment above {CAP} replicas",
                  show=f"ipe handlers list{_in_context()}")  # fmt: skip
    assert app.bus.connected

    await narrator.chapter(f"Somebody scales {DEPLOYMENT} to {WANTED} in {ENFORCING}, which grants the handler `enforce`")
    joined = await _act(narrator, stage, listener, name)
    await narrator.chapter(f"The same in {OBSERVING}, which only lets itself be observed")
    await _refusal(narrator, stage, listener, name)
    await narrator.chapter("One causal trace")
    await _trace(narrator, stage, joined)


async def _scale(stage: Stage, cluster: str, listener: Listener) -> Entry:
    """Somebody scales the deployment; the change on the bus that says so."""
    scaled = stage.clusters[cluster].patch(
        "deployments", DEPLOYMENT, {"spec": {"replicas": WANTED}}, namespace=NAMESPACE, manager="kubectl"
    )
    version = scaled["metadata"]["resourceVersion"]
    return await listener.until(
        f"the change of {DEPLOYMENT} in {cluster}",
        lambda entry: (
            entry.topic == CHANGE.name
            and (entry.uid, entry.resource_version, entry.cluster) == (scaled["metadata"]["uid"], version, cluster)
        ),
        STEP_SECONDS,
    )


async def _act(narrator: Narrator, stage: Stage, listener: Listener, handler: str) -> Entry:
    change = await _scale(stage, ENFORCING, listener)
    narrator.step(
        "change", f"the agent saw it and published it: {change.summary}", show=f"ipe events show {change.ref}{_in_context()}"
    )
    command = await listener.until(
        "the handler's command", _is(COMMAND.name, cluster=ENFORCING, handler=handler, cause=change.id), STEP_SECONDS
    )
    narrator.step("command", f"{handler} asks: {command.summary}", show=f"ipe commands show {command.id[:12]}{_in_context()}")
    outcome = await listener.until("its outcome", _is(OUTCOME.name, cluster=ENFORCING, cause=command.id), STEP_SECONDS)
    if outcome.status != "applied":
        raise StepFailed(f"the command was not applied but {outcome.summary}", fix="look at the log with `ipe demo -v`")
    narrator.step("outcome", f"the grant of {ENFORCING} allows it, the agent wrote it: {outcome.summary}",
                  show=f"ipe commands list{_in_context()}")  # fmt: skip
    await eventually(f"{CAP} replicas in {ENFORCING}", lambda: _replicas(stage, ENFORCING) == CAP or None, STEP_SECONDS)
    effect = await listener.until(
        "the change that the write caused",
        lambda entry: (
            entry.topic == CHANGE.name and (entry.uid, entry.resource_version) == (outcome.uid, outcome.resource_version)
        ),
        STEP_SECONDS,
    )
    narrator.step("effect", f"the cluster says {CAP} replicas, and the change that the write caused came back: {effect.ref}",
                  show=f"ipe events list --topic change --cluster {ENFORCING} -n {NAMESPACE}{_in_context()}")  # fmt: skip
    return outcome


async def _refusal(narrator: Narrator, stage: Stage, listener: Listener, handler: str) -> None:
    change = await _scale(stage, OBSERVING, listener)
    command = await listener.until(
        "the handler's command", _is(COMMAND.name, cluster=OBSERVING, handler=handler, cause=change.id), STEP_SECONDS
    )
    outcome = await listener.until("its outcome", _is(OUTCOME.name, cluster=OBSERVING, cause=command.id), STEP_SECONDS)
    if outcome.status != "refused" or _replicas(stage, OBSERVING) != WANTED:
        raise StepFailed(f"the command was not refused but {outcome.summary}; {_replicas(stage, OBSERVING)} replicas")
    narrator.step("refusal", f"the agent of {OBSERVING} says no: {outcome.summary}; it still has {WANTED} replicas",
                  show=f"ipe commands list --status refused{_in_context()}")  # fmt: skip


async def _trace(narrator: Narrator, stage: Stage, outcome: Entry) -> None:
    trail, entry = await trail_around(stage.bus, outcome.ref, since=SYSTEM.now().replace(year=2000))
    steps = trail.tree(trail.root_of(entry))
    told = [step.entry.topic for step in steps]
    if told[:4] != [CHANGE.name, COMMAND.name, OUTCOME.name, CHANGE.name]:
        raise StepFailed(f"the trace is {' → '.join(told)}, not change → command → outcome → change")
    narrator.step("trace", "change → command → outcome → change, joined by ids, uid and resourceVersion:",
                  show=f"ipe events trace {outcome.ref}{_in_context()}", detail="\n".join(draw(steps)))  # fmt: skip


# --- your own cluster ------------------------------------------------------------------------------------------------------


async def _observed_story(narrator: Narrator, stage: Stage, listener: Listener, stack: AsyncExitStack, kubeconfig: Path) -> None:
    handlers = registry.load([str(example_file())])
    name = handlers[0].name
    config = write_agent_config(stage, "yours", kubeconfig=kubeconfig, handler=name, mode="observe", writes=False)
    await narrator.chapter("Your cluster, observed only: the agent's configuration forbids every write")
    await _recognise(kubeconfig)
    begun = narrator.seconds
    start_agent(stage, config)
    # a cluster whose rights are refused, or that is empty, connects without any change
    change, connected = _is(CHANGE.name), _is(CLUSTER.name, verb="connected")
    first = await listener.until("a first change on the bus", lambda entry: change(entry) or connected(entry), SYNC_SECONDS)
    if change(first):
        narrator.step("first-event", f"the first change is on the bus: {first.summary} in {first.cluster}",
                      seconds=narrator.seconds - begun, show=f"ipe events show {first.ref}{_in_context()}")  # fmt: skip
    told = await listener.until("connected", connected, SYNC_SECONDS)
    forbidden: dict[str, str] = (told.data or {}).get("refused", {})
    narrator.step("connected", f"{told.cluster} is synchronised: {listener.count(change)} objects on the bus",
                  show=f"ipe clusters show {told.cluster}{_in_context()}")  # fmt: skip
    if RESOURCE in forbidden:
        fix = f"give these credentials what `ipe rbac agent --collect {RESOURCE}` prints"
        raise StepFailed(f"{RESOURCE} is refused: {forbidden[RESOURCE]}", where=told.cluster, fix=fix)

    await narrator.chapter("A handler reads every deployment")
    deployments = listener.count(_is(CHANGE.name, resource=RESOURCE))
    settled: list[object] = []
    from_start = [replace(one, start="all", clusters=()) if isinstance(one, Subscription) else one for one in handlers]
    await stack.enter_async_context(HandlerApp(from_start, stage.settings, on_settled=lambda *_event: settled.append(None)))
    await eventually("the handler has read all deployments", lambda: len(settled) >= deployments or None, SYNC_SECONDS)
    asked = listener.count(_is(COMMAND.name, handler=name))
    narrator.step("handler", f"{name} looked at {deployments} deployments and asked for {asked} changes",
                  show=f"ipe commands list{_in_context()}")  # fmt: skip
    await eventually("an outcome for every command", lambda: listener.count(_is(OUTCOME.name)) >= asked or None, STEP_SECONDS)
    refused = listener.count(_is(OUTCOME.name, status="refused"))
    if refused != asked:
        raise StepFailed(f"of {asked} commands {refused} were refused; on an observed cluster all must be")
    narrator.step("refusal", f"{refused} of {asked} commands were refused, since you only observe: nothing was written")


async def _recognise(kubeconfig: Path) -> None:
    """Ask for what gives a cluster its identity: without it an agent goes on trying, and the demo would only wait for it.

    Raises:
        StepFailed: the API server does not answer, or these credentials may not.
    """
    async with await KubeSession.open(ClusterSource(name="your cluster", kubeconfig=str(kubeconfig))) as session:
        try:
            await session.json("GET", "/api/v1/namespaces/kube-system")
        except (KubeForbidden, KubeUnauthorized) as error:
            fix = "use other credentials, or give these what `ipe rbac agent` prints"
            raise StepFailed(error.message, where=error.where, fix=fix) from error
        except KubeError as error:
            raise StepFailed(error.message, where=error.where, fix="try `kubectl --kubeconfig … version`") from error


def _replicas(stage: Stage, cluster: str) -> int:
    found = stage.clusters[cluster].get("deployments", DEPLOYMENT, namespace=NAMESPACE)
    return int(found["spec"]["replicas"])


class _is:  # noqa: N801 - reads as a predicate: until(…, _is("change", cluster=…))
    """A predicate on entries: the topic, and attributes that must be equal."""

    def __init__(self, topic: str, **attributes: str) -> None:
        self._wanted = {"topic": topic, **attributes}

    def __call__(self, entry: Entry) -> bool:
        return all(getattr(entry, name) == value for name, value in self._wanted.items())
