"""What a test holds of a running cluster: addresses, credentials and the few helpers that every test needs.

A `RealCluster` owns no process. It is plain data (the keeper sends it over a socket as JSON), so any worker of
a test run can use a control plane that another process started.
"""

import base64
import json
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.controlplane.api import Api, Object, Refused
from tests.controlplane.process import tail_of

CORE = "/api/v1"
APPS = "/apis/apps/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
READ: tuple[Object, ...] = ({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},)


@dataclass(frozen=True)
class RealCluster:
    """One real API server: where it is, how to be its administrator, where its logs are."""

    name: str
    server: str
    ca_pem: str = field(repr=False)
    token: str = field(repr=False)
    etcd: str
    folder: str
    kubectl: str

    @classmethod
    def from_json(cls, text: str) -> "RealCluster":
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """All fields, for the keeper's answer."""
        return json.dumps(asdict(self))

    @cached_property
    def api(self) -> Api:
        """The administrator's client."""
        return Api(self.server, self.ca_pem, self.token)

    @property
    def ca_file(self) -> Path:
        """The CA certificate as a file."""
        return Path(self.folder) / "ca.pem"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; its one context is named like the cluster."""
        return Path(self.folder) / "kubeconfig.yaml"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log (JSON lines); there is one only where the control plane was told to audit."""
        return Path(self.folder) / "audit.log"

    def create_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """A namespace that is ready for pods: with its default ServiceAccount, whether or not controllers run."""
        self.api.create(f"{CORE}/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})
        self.ensure(f"{CORE}/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})

    def ensure(self, path: str, body: Object) -> None:
        """Create an object unless it exists."""
        try:
            self.api.create(path, body)
        except Refused as error:
            if error.status != 409:
                raise

    def service_account(self, namespace: str, name: str, rules: Sequence[Object] = READ, *, everywhere: bool = False) -> str:
        """Make a ServiceAccount that may do exactly `rules`, in its namespace or `everywhere`; its token."""
        self.ensure(f"{CORE}/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
        kind, scope, unique = "Role", f"{RBAC}/namespaces/{namespace}/", name
        if everywhere:
            kind, scope, unique = "ClusterRole", f"{RBAC}/", f"{namespace}-{name}"
        self.api.create(f"{scope}{kind.lower()}s", {"metadata": {"name": unique}, "rules": list(rules)})
        binding = {
            "metadata": {"name": unique},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": unique},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}],
        }
        self.api.create(f"{scope}{kind.lower()}bindings", binding)
        return self.token_of(namespace, name)

    def token_of(self, namespace: str, service_account: str, seconds: int = 3600) -> str:
        """A bearer token of an existing ServiceAccount, by TokenRequest (at least 600 seconds)."""
        path = f"{CORE}/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": seconds}}
        token: str = self.api.create(path, body)["status"]["token"]
        return token

    def compact(self) -> int:
        """Make etcd forget all history up to now; the revision below which reads get 410 Gone.

        An API server answers from its watch cache what etcd has forgotten, so only one without a watch cache
        shows it at once. For everybody who shares the cluster the history is gone, too.
        """
        # a watch from the compacted revision itself still works, so a revision of our own comes after the last change
        mark = base64.b64encode(b"ipe-events/compacted").decode()
        revision = int(self._etcd("kv/put", {"key": mark, "value": mark})["header"]["revision"])
        self._etcd("kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def run_kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints as administrator; its own words when it fails."""
        command = [self.kubectl, "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=50, check=False)
        if done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def log_tails(self, lines: int = 20) -> dict[str, str]:
        """The end of each program's log, by program."""
        return {log.stem: tail_of(log, lines) for log in sorted(Path(self.folder).glob("*.log")) if log != self.audit_log}

    def _etcd(self, method: str, body: Object) -> Object:
        request = urllib.request.Request(f"{self.etcd}/v3/{method}", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            answer: Object = json.load(response)
        return answer


def write_kubeconfig(path: Path, *clusters: RealCluster, token: str | None = None) -> Path:
    """A kubeconfig with one context per cluster, the first one current; `token` instead of the administrators'."""
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": clusters[0].name,
        "clusters": [],
        "contexts": [],
        "users": [],
    }
    for cluster in clusters:
        authority = base64.b64encode(cluster.ca_pem.encode()).decode()
        entry = {"server": cluster.server, "certificate-authority-data": authority}
        document["clusters"].append({"name": cluster.name, "cluster": entry})
        document["users"].append({"name": cluster.name, "user": {"token": token or cluster.token}})
        document["contexts"].append({"name": cluster.name, "context": {"cluster": cluster.name, "user": cluster.name}})
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
