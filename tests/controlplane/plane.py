"""Runs one control plane: etcd and kube-apiserver, and on demand what makes pods run.

Each control plane has an etcd of its own (43 MB), so that compacting or rewinding one history never touches
another. With the ServiceAccount admission on, a pod needs its namespace's `default` ServiceAccount, which the
harness creates itself: controller-manager, scheduler and kwok (which plays the nodes) start only for the tests
that want pods to run. Everything listens on loopback, and everything is thrown away at the end, so stopping is
SIGKILL.
"""

import json
import secrets
import shutil
import ssl
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Self

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.controlplane.build import Binaries
from tests.controlplane.cluster import CORE, RealCluster, write_kubeconfig
from tests.controlplane.metrics import MetricsServer
from tests.controlplane.process import Child, PortTaken
from tests.helpers import free_port

HERE = Path(__file__).parent
START_ATTEMPTS = 5
NODES = ("kwok-0", "kwok-1")
WORKLOAD_TOOLS = ("kube-controller-manager", "kube-scheduler", "kwok")


class ControlPlane:
    """The processes of one cluster, in `folder` (keys, logs, etcd's data); a context manager that starts and stops it."""

    def __init__(self, binaries: Binaries, folder: Path, name: str, *, watch_cache: bool = True, audit: bool = False) -> None:
        self.binaries = binaries
        self.folder = folder
        self.name = name
        self.watch_cache = watch_cache
        self.audit = audit
        self._token = secrets.token_hex(16)
        self._etcd: Child | None = None
        self._apiserver: Child | None = None
        self._workloads: list[Child] = []
        self._metrics: MetricsServer | None = None
        self._authority = trustme.CA(organization_name=f"ipe-events test cluster {name}")
        self._cluster: RealCluster | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def cluster(self) -> RealCluster:
        """The handle for tests."""
        assert self._cluster is not None, f"control plane {self.name} was not started"
        return self._cluster

    def start(self) -> RealCluster:
        """Start etcd and the API server; returns once `/readyz` is ok and the default namespace is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ca_pem = self._write_keys()
        try:
            etcd_url = self._start_etcd()
            server = self._start_apiserver(etcd_url, ca_pem)
            cluster = RealCluster(self.name, server, ca_pem, self._token, etcd_url, str(self.folder), self.binaries["kubectl"])
            write_kubeconfig(cluster.kubeconfig, cluster)
            cluster.api.wait(lambda: cluster.api.exists(f"{CORE}/namespaces/default"), "the default namespace")
            cluster.ensure(f"{CORE}/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
        except BaseException:
            self.stop()
            raise
        self._cluster = cluster
        return cluster

    def stop(self) -> None:
        """End every process and wait for it; logs stay in the folder, etcd's data (64 MB at least) does not."""
        self._stop_workloads()
        for child in (self._apiserver, self._etcd):
            if child is not None:
                child.kill()
        for data in self.folder.glob("etcd*/"):
            shutil.rmtree(data, ignore_errors=True)

    def start_workloads(self) -> None:
        """Start controller-manager, scheduler, kwok, two nodes and metrics; returns when all of them work."""
        if self._workloads:
            return
        try:
            for tool, flags in self._workload_flags().items():
                command = [self.binaries[tool], "--kubeconfig", str(self.cluster.kubeconfig), *flags]
                child = Child(tool, command, self.folder / f"{tool}.log")
                self._workloads.append(child)
                child.start()
            for node in NODES:
                labels = {"kubernetes.io/hostname": node}
                self.cluster.ensure(f"{CORE}/nodes", {"metadata": {"name": node, "labels": labels}})
            self._wait_workloads()
            self._metrics = MetricsServer(self.cluster, self._authority, self.folder)
            self._metrics.start()
        except BaseException:
            self._stop_workloads()
            raise

    def _stop_workloads(self) -> None:
        if self._metrics is not None:
            self._metrics.stop()
            self._metrics = None
        for child in self._workloads:
            child.kill()
        self._workloads = []

    def _workload_flags(self) -> dict[str, list[str]]:
        manager = [
            *("--leader-elect=false", "--secure-port=0", "--kube-api-qps=200", "--kube-api-burst=400"),
            *("--service-account-private-key-file", str(self.folder / "service-account.key")),
            # no kubelet sends heartbeats here, and a ConfigMap in every namespace would be noise to a watch
            *("--node-monitor-grace-period=24h", "--controllers=*,-root-ca-certificate-publisher-controller"),
        ]
        stages = str(HERE / "stages.yaml")
        return {
            "kube-controller-manager": manager,
            "kube-scheduler": ["--leader-elect=false", "--secure-port=0"],
            "kwok": ["--manage-all-nodes", "--node-lease-duration-seconds=0", "--v=WARN", "--config", stages],
        }

    def stop_apiserver(self, *, gracefully: bool = False) -> None:
        """End the API server alone, as a crash or (`gracefully`) as an upgrade does it."""
        assert self._apiserver is not None, f"control plane {self.name} was not started"
        if gracefully:
            self._apiserver.terminate()
        else:
            self._apiserver.kill()

    def restart_apiserver(self) -> None:
        """Start a stopped API server again at the same address."""
        assert self._apiserver is not None, f"control plane {self.name} was not started"
        self._apiserver.start()
        self._apiserver_again()

    def save(self, name: str) -> None:
        """Keep a copy of etcd's data as it is now, for `rewind`; requests fail for about a second."""
        self._copy_data(self.folder / "etcd", self.folder / f"etcd-{name}")
        self._apiserver_again()

    def rewind(self, name: str) -> None:
        """Restore etcd from a copy: resourceVersions and objects go back to the moment of `save`."""
        self.stop_apiserver()
        self._copy_data(self.folder / f"etcd-{name}", self.folder / "etcd")
        self.restart_apiserver()

    def _copy_data(self, source: Path, target: Path) -> None:
        """Copy etcd's data while it is stopped; killed, because it would wait for its watchers, and its log replays."""
        assert self._etcd is not None, f"control plane {self.name} was not started"
        self._etcd.kill()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        self._etcd.start()
        self._etcd.wait_ready(lambda: _etcd_ready(self.cluster.etcd))

    def _apiserver_again(self) -> None:
        assert self._apiserver is not None, f"control plane {self.name} was not started"
        self._apiserver.wait_ready(lambda: _apiserver_ready(self.cluster.server, self.cluster.ca_pem))

    def _write_keys(self) -> str:
        authority = self._authority
        authority.cert_pem.write_to_path(self.folder / "ca.pem")
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(self.folder / "server.pem")
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.folder / "service-account.key").write_bytes(pem)
        (self.folder / "tokens.csv").write_text(f'{self._token},admin,admin,"system:masters"\n')
        return authority.cert_pem.bytes().decode()

    def _start_etcd(self) -> str:
        for attempt in range(START_ATTEMPTS):
            client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
            flags = [
                *("--name", "etcd", "--data-dir", str(self.folder / "etcd"), "--log-level", "warn"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"etcd={peer}", "--unsafe-no-fsync"),
            ]
            self._etcd = Child("etcd", [self.binaries["etcd"], *flags], self.folder / f"etcd{attempt or ''}.log")
            self._etcd.start()
            try:
                self._etcd.wait_ready(lambda url=client: _etcd_ready(url))  # type: ignore[misc]  # bound early
            except PortTaken:
                shutil.rmtree(self.folder / "etcd", ignore_errors=True)
                continue
            return client
        raise PortTaken(f"etcd found no free port in {START_ATTEMPTS} attempts; its logs are in {self.folder}")

    def _start_apiserver(self, etcd_url: str, ca_pem: str) -> str:
        for attempt in range(START_ATTEMPTS):
            port = free_port()
            server = f"https://127.0.0.1:{port}"
            command = [self.binaries["kube-apiserver"], *self._apiserver_flags(etcd_url, port)]
            log = self.folder / f"kube-apiserver{attempt or ''}.log"
            self._apiserver = Child("kube-apiserver", command, log)
            self._apiserver.start()
            try:
                self._apiserver.wait_ready(lambda url=server: _apiserver_ready(url, ca_pem))  # type: ignore[misc]  # bound early
            except PortTaken:
                continue
            return server
        raise PortTaken(f"kube-apiserver found no free port in {START_ATTEMPTS} attempts; see {self.folder}")

    def _apiserver_flags(self, etcd_url: str, port: int) -> list[str]:
        key = str(self.folder / "service-account.key")
        flags = [
            *("--etcd-servers", etcd_url, "--etcd-compaction-interval=0"),
            *("--bind-address=127.0.0.1", f"--secure-port={port}"),
            # not a loopback address, as validation demands, and one that nobody can reach
            *("--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"),
            *("--tls-cert-file", str(self.folder / "server.pem"), "--tls-private-key-file", str(self.folder / "server.pem")),
            *("--cert-dir", str(self.folder), "--token-auth-file", str(self.folder / "tokens.csv")),
            *("--service-account-key-file", key, "--service-account-signing-key-file", key),
            *("--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=RBAC"),
            *("--service-cluster-ip-range=10.96.0.0/16", "--profiling=false"),
            f"--watch-cache={str(self.watch_cache).lower()}",
        ]
        if self.audit:
            policy = str(HERE / "audit-policy.yaml")
            flags += ["--audit-policy-file", policy, "--audit-log-path", str(self.folder / "audit.log")]
        return flags

    def _wait_workloads(self) -> None:
        api, probe = self.cluster.api, "ipe-controllers-probe"  # its default ServiceAccount shows that they act
        self.cluster.ensure(f"{CORE}/namespaces", {"metadata": {"name": probe}})

        def ready() -> bool:
            nodes = api.get(f"{CORE}/nodes")["items"]
            conditions = [c for node in nodes for c in node["status"].get("conditions", []) if c["type"] == "Ready"]
            healthy = sum(condition["status"] == "True" for condition in conditions)
            taints = [taint for node in nodes for taint in node["spec"].get("taints", [])]
            return healthy == len(NODES) and not taints and api.exists(f"{CORE}/namespaces/{probe}/serviceaccounts/default")

        deadline = time.monotonic() + 40
        for child in self._workloads:
            child.wait_ready(ready, max(1.0, deadline - time.monotonic()))


def _etcd_ready(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as response:
        return bool(json.load(response).get("health") == "true")
    return False


def _apiserver_ready(server: str, ca_pem: str) -> bool:
    context = ssl.create_default_context(cadata=ca_pem)
    with suppress(OSError), urllib.request.urlopen(f"{server}/readyz", timeout=2, context=context) as response:
        return bool(response.read() == b"ok")
    return False
