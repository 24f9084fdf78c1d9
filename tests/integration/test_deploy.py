"""What `deploy/` promises, on the real API server: admitted as restricted, running, with exactly the rights it needs."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from ipe_events.agent.config import parse_config
from ipe_events.agent.lease import LeaseKeeper, Role
from ipe_events.bus.connection import Bus
from ipe_events.bus.settings import BusSettings
from ipe_events.bus.topology import TopologySettings, apply, desired, plan
from ipe_events.cli import main
from ipe_events.errors import KubeForbidden
from ipe_events.events.refs import ResourceRef
from ipe_events.events.registry import AgentStatus
from ipe_events.kube.decode import Item, Wants, WatchEvent
from ipe_events.kube.discovery import Discovery
from ipe_events.kube.rbac import AgentRights, Write, manifests, render
from ipe_events.kube.reflector import Reflector, Report
from ipe_events.kube.reflector_rules import Cause
from ipe_events.kube.session import ClusterSource, KubeSession
from ipe_events.subjects import CHANGE, CLUSTER
from ipe_events.version import __version__
from tests.controlplane.api import JSON_PATCH, Api, Refused
from tests.controlplane.cluster import APPS, CORE, RealCluster, write_kubeconfig
from tests.helpers import eventually
from tests.nats import NatsServer

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kustomize" / "base"
SYSTEM = "ipe-system"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@pytest.fixture
def rendered(real_cluster: RealCluster) -> dict[str, dict[str, Any]]:
    """The base as kustomize renders it, by kind and name."""
    documents = yaml.safe_load_all(real_cluster.run_kubectl("kustomize", str(BASE)))
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in documents}


@pytest.fixture
def installed(real_cluster: RealCluster) -> RealCluster:
    """The base, applied; applying it twice changes nothing, so tests may share it."""
    real_cluster.run_kubectl("apply", "--server-side", "-k", str(BASE))
    real_cluster.ensure(f"{CORE}/namespaces/{SYSTEM}/serviceaccounts", {"metadata": {"name": "default"}})
    return real_cluster


def may(api: Api, verb: str, resource: str, namespace: str = "", name: str = "") -> bool:
    """Whether this identity may, by the API server's own word."""
    plural, _, group = resource.partition(".")
    plural, _, subresource = plural.partition("/")
    attributes = {"verb": verb, "group": group, "resource": plural, "namespace": namespace, "name": name}
    body = {"spec": {"resourceAttributes": {**attributes, "subresource": subresource}}}
    allowed: bool = api.create(REVIEWS, body)["status"]["allowed"]
    return allowed


# --- kustomize -----------------------------------------------------------------------------------------------------------


def test_the_roles_are_what_ipe_rbac_agent_prints() -> None:
    printed = CliRunner().invoke(main.cli, ["rbac", "agent", "-f", str(BASE / "agent.yaml")])
    assert printed.exit_code == 0, printed.stderr
    stale = "rbac.yaml is stale: ipe rbac agent -f agent.yaml > rbac.yaml"
    assert (BASE / "rbac.yaml").read_text() == printed.stdout, stale


def test_the_deployment_runs_this_version_and_a_configuration_that_loads(rendered: dict[str, dict[str, Any]]) -> None:
    template = rendered["Deployment/ipe-agent"]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    assert container["image"] == f"ipe-events:{__version__}"

    (volume,) = (each for each in template["volumes"] if each["name"] == "config")
    data = rendered[f"ConfigMap/{volume['configMap']['name']}"]["data"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "config")
    assert container["args"][-1] in {f"{mount['mountPath']}/{file}" for file in data}
    config = parse_config(data["agent.yaml"])
    assert config.clusters.in_cluster
    assert config.lease.namespace == SYSTEM
    assert (config.health_host, config.health_port) == ("0.0.0.0", container["ports"][0]["containerPort"])


def test_the_environment_says_how_to_reach_the_bus(rendered: dict[str, dict[str, Any]]) -> None:
    template = rendered["Deployment/ipe-agent"]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    for source in container["envFrom"]:
        env |= rendered[f"ConfigMap/{source['configMapRef']['name']}"]["data"]

    settings = BusSettings.resolve(None, env)
    assert settings.servers == ("nats://nats.nats:4222",)
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "nats")
    assert settings.creds_file == f"{mount['mountPath']}/agent.creds"


def test_the_overlay_of_the_readme_renders(real_cluster: RealCluster, tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    overlay = textwrap.dedent(example)
    assert "../../deploy/kustomize/base" in overlay
    kustomization = overlay.replace("../../deploy/kustomize/base", os.path.relpath(BASE, tmp_path))
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    (tmp_path / "agent.yaml").write_text("# mine\n")

    documents = list(yaml.safe_load_all(real_cluster.run_kubectl("kustomize", str(tmp_path))))
    data: dict[str, str] = {}
    for each in documents:
        data |= each.get("data", {})
    assert data == {"agent.yaml": "# mine\n", "IPE_NATS_URL": "tls://nats.example:4222"}
    (deployment,) = (each for each in documents if each["kind"] == "Deployment")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"registry.example/ipe-events:{__version__}"


def test_the_restricted_standard_refuses_what_the_base_avoids(installed: RealCluster) -> None:
    pod = {"metadata": {"name": "root"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    with pytest.raises(Refused, match='violates PodSecurity "restricted') as refused:
        installed.api.create(f"{CORE}/namespaces/{SYSTEM}/pods", pod)
    assert refused.value.status == 403


def test_the_pod_is_admitted_and_runs(real_workloads: RealCluster, installed: RealCluster) -> None:
    api, pods = real_workloads.api, f"{CORE}/namespaces/{SYSTEM}/pods"

    def running() -> dict[str, Any] | None:
        found = api.get(pods, labelSelector="app.kubernetes.io/name=ipe-agent")["items"]
        return next((pod for pod in found if pod["status"]["phase"] == "Running"), None)

    pod = api.wait(running, "the agent's pod Running")
    assert pod["spec"]["serviceAccountName"] == "ipe-agent"
    projected = [source for volume in pod["spec"]["volumes"] for source in volume.get("projected", {}).get("sources", [])]
    assert any("serviceAccountToken" in source for source in projected)
    status = api.get(f"{APPS}/namespaces/{SYSTEM}/deployments/ipe-agent")
    assert (status["spec"]["strategy"]["type"], status["spec"]["replicas"]) == ("Recreate", 1)


# --- rights --------------------------------------------------------------------------------------------------------------


def test_the_service_account_may_read_what_is_collected_and_nothing_else(installed: RealCluster) -> None:
    agent = installed.api.as_token(installed.token_of(SYSTEM, "ipe-agent"))
    config = parse_config((BASE / "agent.yaml").read_text())
    for resource in config.collect.resources:
        assert all(may(agent, verb, resource) for verb in ("get", "list", "watch")), resource
        assert not any(may(agent, verb, resource) for verb in ("create", "update", "patch", "delete")), resource
    for verb in ("get", "list", "watch"):
        assert not may(agent, verb, "secrets")
    assert not may(agent, "create", "pods/exec", "default")
    assert not may(agent, "impersonate", "users")

    assert may(agent, "create", "leases.coordination.k8s.io", SYSTEM)
    assert may(agent, "update", "leases.coordination.k8s.io", SYSTEM, "ipe-agent")
    assert not may(agent, "update", "leases.coordination.k8s.io", SYSTEM, "somebody-else")
    assert not may(agent, "create", "leases.coordination.k8s.io", "kube-system")
    with pytest.raises(Refused, match="cannot list resource"):
        agent.get(f"{CORE}/secrets")


async def test_the_agents_own_code_gets_by_with_these_rights(installed: RealCluster, tmp_path: Path) -> None:
    token = installed.token_of(SYSTEM, "ipe-agent")
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", installed, token=token)
    config = parse_config((BASE / "agent.yaml").read_text())
    async with await KubeSession.open(ClusterSource(name="real", kubeconfig=str(kubeconfig))) as session:
        discovery = Discovery()
        await discovery.load(session)
        for name in config.collect.resources:
            resource = discovery.resource(ResourceRef.parse(name))
            assert (await session.json("GET", resource.path(), params={"limit": "1"}))["kind"].endswith("List")

        keeper = LeaseKeeper(session, config.lease, "this-test")
        await keeper.turn()  # takes the Lease
        await keeper.turn()  # renews it
        assert (keeper.role, keeper.problem) == (Role.HOLDER, "")
        await keeper.release()
        assert installed.api.get(f"{LEASES}/{config.lease.name}")["spec"].get("holderIdentity", "") == ""

        with pytest.raises(KubeForbidden, match="cannot list resource") as refused:
            await session.json("GET", "/api/v1/secrets")
        assert not refused.value.retryable


class Seen:
    """A reflector's sink that remembers names."""

    wants = Wants()
    full = False

    def __init__(self) -> None:
        self.names: list[str] = []

    async def wait_room(self) -> None: ...
    def chunk(self, data: bytes) -> None: ...
    def bookmark(self, version: int) -> None: ...
    def begin_list(self) -> None: ...
    def end_list(self, version: int) -> None: ...
    def abort_list(self) -> None: ...

    def event(self, event: WatchEvent, version: int) -> None:
        self.names.append(event[1].metadata.name)

    def item(self, item: Item) -> None:
        self.names.append(item.head.metadata.name)


async def test_what_was_not_given_is_reported_once_and_left_alone(
    installed: RealCluster, real_namespace: str, tmp_path: Path
) -> None:
    """The reflectors of one agent: a refused resource waits for minutes, and the others work meanwhile."""
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", installed, token=installed.token_of(SYSTEM, "ipe-agent"))
    reports: asyncio.Queue[Report] = asyncio.Queue()
    secrets, configmaps = Seen(), Seen()

    def rewound(highest: int, lower: int) -> None:
        raise AssertionError(f"history went from {highest} back to {lower}")

    async with await KubeSession.open(ClusterSource(name="real", kubeconfig=str(kubeconfig))) as session:
        discovery = Discovery()
        await discovery.load(session)

        def reflector(name: str, sink: Seen, report: Callable[[Report], None]) -> Reflector:
            return Reflector(session, discovery.resource(ResourceRef.parse(name)), sink, report=report, rewound=rewound)

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(reflector("secrets", secrets, reports.put_nowait).run()),
                group.create_task(reflector("configmaps", configmaps, lambda _report: None).run()),
            ]
            report = await asyncio.wait_for(reports.get(), 20)
            path = f"{CORE}/namespaces/{real_namespace}"
            installed.api.create(f"{path}/secrets", {"metadata": {"name": "hidden"}, "stringData": {"a": "b"}})
            installed.api.create(f"{path}/configmaps", {"metadata": {"name": real_namespace}})
            await eventually(lambda: real_namespace in configmaps.names)
            for task in tasks:
                task.cancel()

    assert report.cause is Cause.REFUSED
    assert isinstance(report.error, KubeForbidden)
    assert "secrets is forbidden" in report.error.message
    assert report.wait > 60
    assert reports.empty()
    assert secrets.names == []


async def test_ipe_agent_run_works_with_exactly_this_service_account(
    installed: RealCluster, real_namespace: str, nats_server: NatsServer, bus: Bus, tmp_path: Path
) -> None:
    """The deployed configuration plus one resource that its roles do not cover: it collects, and says what it may not."""
    await apply(bus, await plan(bus, desired(TopologySettings())))
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", installed, token=installed.token_of(SYSTEM, "ipe-agent"))
    config = yaml.safe_load((BASE / "agent.yaml").read_text())
    config["clusters"] = {"name": "prod-eu", "kubeconfig": str(kubeconfig)}
    config["collect"] = {"resources": [*config["collect"]["resources"], "ingresses.networking.k8s.io"]}
    config["collect"]["always"] = ["configmaps", "ingresses.networking.k8s.io"]
    config |= {"healthHost": "127.0.0.1", "healthPort": 0, "heartbeat": "1s"}
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump(config))

    with running_agent(nats_server.url, tmp_path / "agent.yaml", tmp_path / "agent.log") as agent:
        collected = await eventually(lambda: _collects(bus, "configmaps"), timeout=30)
        assert collected is not None
        assert "cannot watch resource" in collected.resources["ingresses.networking.k8s.io"]
        made = installed.api.create(f"{CORE}/namespaces/{real_namespace}/configmaps", {"metadata": {"name": "seen"}})
        subject = CHANGE.filter(cluster="prod-eu", resource="configmaps", namespace=real_namespace)
        async with asyncio.timeout(20):
            async for delivery in bus.read("IPE_K8S", [subject], follow=True):
                if made["metadata"]["uid"] in delivery.headers["ce-id"]:
                    break
        # a refusal is told once and asked for again after minutes: heartbeats go by, the log does not grow
        await eventually(lambda: _heartbeats(bus, 3), timeout=20)
        refusals = [line for line in (tmp_path / "agent.log").read_text().splitlines() if "ingresses" in line]
        assert len(refusals) == 1, refusals
        assert agent.poll() is None


async def _collects(bus: Bus, resource: str) -> AgentStatus | None:
    entry = await (await bus.kv("ipe_agents")).get("prod-eu")
    status = AgentStatus.model_validate_json(entry.value) if entry else None
    return status if status and status.state == "connected" and status.resources.get(resource) == "watching" else None


async def _heartbeats(bus: Bus, number: int) -> bool:
    beats = [each async for each in bus.read("IPE_GOV", [CLUSTER.filter(cluster="prod-eu", state="heartbeat")], start="all")]
    return len(beats) >= number


@contextmanager
def running_agent(url: str, config: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`ipe agent run` as a process of its own; SIGTERM ends it in good order."""
    environment = {**os.environ, "IPE_NATS_URL": url, "IPE_LOG_FORMAT": "json"}
    ipe = str(Path(sys.executable).with_name("ipe"))
    with log.open("wb") as output:
        agent = subprocess.Popen([ipe, "agent", "run", "--config", str(config)], env=environment, stderr=output)
        try:
            yield agent
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(timeout=20) == 0, log.read_text()
        finally:
            if agent.poll() is None:
                agent.kill()
                agent.wait()


def test_granted_commands_are_possible_and_others_are_not(real_cluster: RealCluster, real_namespace: str) -> None:
    writes = (
        Write(ResourceRef.parse("deployments.apps"), ("scale",), (real_namespace,)),
        Write(ResourceRef.parse("configmaps"), ("create", "patch", "delete"), (real_namespace,)),
    )
    rights = AgentRights(collect=(), writes=writes, name=real_namespace, namespace=real_namespace)
    real_cluster.ensure(f"{CORE}/namespaces/{real_namespace}/serviceaccounts", {"metadata": {"name": "ipe-agent"}})
    real_cluster.run_kubectl("apply", "-f", "-", stdin=render(manifests(rights)))
    agent = real_cluster.api.as_token(real_cluster.token_of(real_namespace, "ipe-agent"))

    configmaps = f"{CORE}/namespaces/{real_namespace}/configmaps"
    agent.create(configmaps, {"metadata": {"name": "one"}, "data": {"a": "1"}})
    agent.patch(f"{configmaps}/one", [{"op": "replace", "path": "/data/a", "value": "2"}], JSON_PATCH)
    assert agent.get(f"{configmaps}/one")["data"] == {"a": "2"}
    agent.delete(f"{configmaps}/one")

    deployments = f"{APPS}/namespaces/{real_namespace}/deployments"
    pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": pod}
    real_cluster.api.create(deployments, {"metadata": {"name": "web"}, "spec": spec})
    scaled = agent.patch(f"{deployments}/web/scale", [{"op": "replace", "path": "/spec/replicas", "value": 2}], JSON_PATCH)
    assert scaled["spec"]["replicas"] == 2

    with pytest.raises(Refused, match='cannot patch resource "deployments"'):
        agent.patch(f"{deployments}/web", {"spec": {"replicas": 3}})
    with pytest.raises(Refused, match='cannot delete resource "deployments"'):
        agent.delete(f"{deployments}/web")
    with pytest.raises(Refused, match='cannot create resource "configmaps"'):
        agent.create(f"{CORE}/namespaces/default/configmaps", {"metadata": {"name": "elsewhere"}})


# --- image ---------------------------------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, comments left out."""
    lines = (DEPLOY / "image" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")]


def test_the_image_is_built_in_stages_from_a_pinned_base() -> None:
    bases = [rest.split()[0] for word, rest in dockerfile() if word == "FROM"]
    assert len(bases) == 2
    for base in bases:
        tag = base.partition(":")[2]
        assert re.match(r"3\.\d+", tag), f"{base} is not pinned"
        minor = tuple(map(int, re.findall(r"\d+", tag)[:2]))
        assert minor >= (3, 11)


def test_the_image_runs_ipe_as_an_ordinary_user() -> None:
    instructions = dockerfile()
    final = instructions[max(at for at, (word, _) in enumerate(instructions) if word == "FROM") :]
    (user,) = (rest for word, rest in final if word == "USER")
    security = yaml.safe_load((BASE / "deployment.yaml").read_text())["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert user != "0:0"
    assert ("ENTRYPOINT", '["ipe"]') in final
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert "ipe" in scripts
    assert not any(word == "ADD" for word, _ in instructions)


def test_the_image_copies_what_is_there_and_is_not_ignored() -> None:
    ignore = (DEPLOY / "image" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source
        for word, rest in dockerfile()
        if word == "COPY" and not rest.startswith("--from")
        for source in shlex.split(rest)[:-1]
    }
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
