"""Load that looks like a cluster's: pods of the size and shape that API servers really send, the same for the same seed.

A pod of ``LoadGenerator`` weighs about 8.9 KB as JSON, 3.1 KB of it managedFields, because that is what a Deployment's pod with a
sidecar weighs; benches on toy objects measure the wrong thing. ``stream`` renders watch lines ahead of time: a block of lines is
built once, and only the fixed-width resourceVersions inside it are overwritten, so that one process can send far more events than
any client can read. ``churn`` changes the pods of a ``FakeCluster`` at a steady rate and dates each change.
"""

import asyncio
import random
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import orjson

from ipe_events.testing.fake import FakeCluster
from ipe_events.testing.fake.fields import after_update

JsonObject = dict[str, Any]

FIRST_RV = 1_000_000_000
"""The resourceVersion before the first streamed event: ten digits, so that all have one width."""
SENT_ANNOTATION = "load.ipe.dev/sent"
"""On objects that ``churn`` changed: ``time.monotonic_ns()`` of the change, comparable across processes of one machine."""

_RV, _INDEX, _UID = "@" * 10, "@" * 8, "@" * 12
_SLOT = re.compile(rb"@{12}|@{10}|@{8}")
_VARIANTS = 64
_APPS = ("checkout", "cart", "catalog", "payments", "search", "ledger", "gateway", "profile")
_TEAMS = ("storefront", "money", "platform", "data")
_START = "2026-11-01T08:%02d:%02dZ"


class LoadGenerator:
    """Objects by number: ``pod(7)`` is the same pod in every run with this seed.

    Args:
        seed: of everything that varies.
        namespaces: how many namespaces the objects spread over.
    """

    def __init__(self, seed: int = 0, *, namespaces: int = 20) -> None:
        self.seed = seed
        self._namespaces = namespaces
        self._template = lru_cache(maxsize=_VARIANTS)(self._render_template)

    def namespace(self, index: int) -> str:
        """The namespace of the pods and deployments ``index``."""
        variant = index % _VARIANTS % self._namespaces
        return f"team-{_TEAMS[variant % len(_TEAMS)]}-{variant:02d}"

    def namespace_names(self) -> list[str]:
        """All namespaces."""
        return sorted({self.namespace(index) for index in range(_VARIANTS)})

    def pod(self, index: int, rv: int = FIRST_RV) -> JsonObject:
        """Pod ``index`` as an API server shows it, managedFields and status included."""
        pod: JsonObject = orjson.loads(self.pod_json(index, rv))
        return pod

    def pod_json(self, index: int, rv: int = FIRST_RV) -> bytes:
        """The JSON of ``pod(index, rv)``."""
        slots = {len(_RV): b"%010d" % rv, len(_INDEX): b"%08d" % index, len(_UID): b"%012d" % index}
        pieces, widths = self._template(index % _VARIANTS)
        rendered = [pieces[0]]
        for width, piece in zip(widths, pieces[1:], strict=True):
            rendered += (slots[width], piece)
        return b"".join(rendered)

    def deployment(self, index: int) -> JsonObject:
        """Deployment ``index``, as a user would apply it."""
        rng = random.Random(f"{self.seed}/deployment/{index}")  # noqa: S311 - simulated objects, repeatable by seed
        name = f"{_APPS[index % len(_APPS)]}-{index:03d}"
        labels = {"app.kubernetes.io/name": name, "team": rng.choice(_TEAMS)}
        pod_spec = {"containers": [_container("app", rng, environment=4)]}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.namespace(index), "labels": labels},
            "spec": {
                "replicas": rng.randint(1, 5),
                "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
                "template": {"metadata": {"labels": labels}, "spec": pod_spec},
            },
        }

    def node(self, index: int) -> JsonObject:
        """Node ``index``."""
        name = f"node-{index:03d}"
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": f"z{index % 3}"}
        capacity = {"cpu": "16", "memory": "65536Mi", "pods": "110"}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": labels,
            },
            "spec": {},
            "status": {"capacity": capacity, "allocatable": capacity, "conditions": [{"type": "Ready", "status": "True"}]},
        }

    def stream(self, events: int, *, after: int = 0, pods: int = 256, verb: str = "MODIFIED") -> Iterator[memoryview]:
        """Watch lines of events ``after + 1`` … ``events``, in blocks of ``pods`` lines; event n has the rv ``FIRST_RV + n``.

        A block is valid until the next one is asked for: they share one buffer.
        """
        lines = [b'{"type":"%b","object":%b}\n' % (verb.encode(), self.pod_json(index, FIRST_RV)) for index in range(pods)]
        block = bytearray(b"".join(lines))
        marker = b'"resourceVersion":"'
        ends, slots, position = [0], [], 0
        for line in lines:
            slots.append(position + line.index(marker) + len(marker))
            position += len(line)
            ends.append(position)
        view = memoryview(block)
        number = after
        while number < events:
            first = number % pods  # event n is of pod (n - 1) % pods, wherever the stream starts
            last = min(pods, first + events - number)
            for slot in slots[first:last]:
                number += 1
                block[slot : slot + 10] = b"%d" % (FIRST_RV + number)
            yield view[ends[first] : ends[last]]

    def populate(self, cluster: FakeCluster, *, pods: int, deployments: int = 0, nodes: int = 3) -> None:
        """Fill a fake cluster with namespaces, nodes, deployments and pods."""
        for name in self.namespace_names():
            cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for index in range(nodes):
            cluster.create(self.node(index), manager="kubelet")
        for index in range(deployments):
            cluster.create(self.deployment(index), manager="kubectl")
        for index in range(pods):
            cluster.seed(self.pod(index))

    # --- how a pod is made ---

    def _render_template(self, variant: int) -> tuple[list[bytes], list[int]]:
        """The JSON of a pod, cut at the slots for number, uid and resourceVersion, and the slots' widths."""
        raw = orjson.dumps(self._pod(variant))
        return _SLOT.split(raw), [len(slot) for slot in _SLOT.findall(raw)]

    def _pod(self, variant: int) -> JsonObject:
        rng = random.Random(f"{self.seed}/pod/{variant}")  # noqa: S311 - simulated objects, repeatable by seed
        app = _APPS[variant % len(_APPS)]
        replica_set = f"{app}-{rng.getrandbits(40):010x}"
        labels = {
            "app.kubernetes.io/name": app, "app.kubernetes.io/instance": f"{app}-prod", "app.kubernetes.io/managed-by": "Helm",
            "pod-template-hash": replica_set.rpartition("-")[2], "team": rng.choice(_TEAMS),
        }  # fmt: skip
        annotations = {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "9090",
            "checksum/config": f"{rng.getrandbits(256):064x}",
            "kubectl.kubernetes.io/restartedAt": _START % (1, 2),
        }
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "uid": _uuid(rng), "controller": True}
        metadata: JsonObject = {
            "name": f"{replica_set}-{_INDEX}",
            "generateName": f"{replica_set}-",
            "namespace": self.namespace(variant),
            "uid": f"{self.seed & 0xFFFFFFFF:08x}-1de0-4000-8000-{_UID}",
            "resourceVersion": _RV,
            "generation": 1,
            "creationTimestamp": _START % (2, 0),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner | {"blockOwnerDeletion": True}],
        }
        pod: JsonObject = {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": _pod_spec(app, rng)}
        managed = _managed([], {}, pod, "kube-controller-manager", "")
        running = pod | {"status": _pod_status(pod["spec"], rng)}
        metadata["managedFields"] = _managed(managed, pod, running, "kubelet", "status")
        return running


def _managed(entries: list[JsonObject], old: JsonObject, new: JsonObject, manager: str, subresource: str) -> list[JsonObject]:
    return after_update(
        entries, old, new, manager=manager, api_version="v1", subresource=subresource, time=_START % (2, 5), custom=False
    )


def _uuid(rng: random.Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"


def _container(name: str, rng: random.Random, *, environment: int) -> JsonObject:
    variables: list[JsonObject] = [
        {"name": f"{name.upper()}_SETTING_{n}", "value": f"{rng.getrandbits(48):012x}"} for n in range(environment)
    ]
    variables.append({"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}})
    probe: JsonObject = {
        "httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"},
        "periodSeconds": 10,
        "timeoutSeconds": 1,
    }
    return {
        "name": name,
        "image": f"registry.example.com/{name}/{name}:{rng.randint(1, 9)}.{rng.randint(0, 40)}.{rng.randint(0, 9)}",
        "imagePullPolicy": "IfNotPresent",
        "args": ["--log-format=json", "--listen=:8080"],
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": variables,
        "resources": {
            "requests": {"cpu": f"{rng.choice((50, 100, 250))}m", "memory": f"{rng.choice((64, 128, 256))}Mi"},
            "limits": {"memory": "512Mi"},
        },
        "readinessProbe": probe | {"failureThreshold": 3, "successThreshold": 1},
        "securityContext": {"runAsNonRoot": True},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "config", "mountPath": f"/etc/{name}", "readOnly": True},
            {"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True},
        ],
    }


def _sidecar(rng: random.Random) -> JsonObject:
    log_paths = "/var/log/containers/*.log,/var/log/app/*.log,/var/log/audit/*.log"
    exclude = ",".join(f"{rng.getrandbits(160):040x}" for _ in range(40))
    return {
        "name": "log-shipper",
        "image": f"registry.example.com/log-shipper/log-shipper:{rng.randint(1, 4)}.{rng.randint(0, 30)}.0",
        "args": [f"--include={log_paths}", f"--exclude-hashes={exclude}"],
        "resources": {"limits": {"memory": "64Mi"}},
    }


def _pod_spec(app: str, rng: random.Random) -> JsonObject:
    return {
        "containers": [_container(app, rng, environment=4), _sidecar(rng)],
        "volumes": [
            {"name": "config", "configMap": {"name": f"{app}-config", "defaultMode": 420}},
            {"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [{"downwardAPI": {"items": []}}]}},
        ],
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": app,
        "nodeName": f"node-{rng.randint(0, 2):03d}",
        "terminationGracePeriodSeconds": 30,
        "schedulerName": "default-scheduler",
        "tolerations": [
            {"key": f"node.kubernetes.io/{reason}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            for reason in ("not-ready", "unreachable")
        ],
    }


def _pod_status(spec: JsonObject, rng: random.Random) -> JsonObject:
    conditions = ("Ready", "ContainersReady", "PodScheduled")
    address = f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"
    statuses = [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": f"registry.example.com/{container['name']}@sha256:{rng.getrandbits(256):064x}",
            "containerID": f"containerd://{rng.getrandbits(256):064x}",
            "lastState": {},
            "ready": True,
            "restartCount": 0,
            "started": True,
            "state": {"running": {"startedAt": _START % (2, 4)}},
        }
        for container in spec["containers"]
    ]
    return {
        "phase": "Running",
        "qosClass": "Burstable",
        "hostIP": "192.0.2.10",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": _START % (2, 1),
        "conditions": [
            {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": _START % (2, 3)} for kind in conditions
        ],
        "containerStatuses": statuses,
    }


async def churn(cluster: FakeCluster, generator: LoadGenerator, *, pods: int, rate: float, events: int) -> None:
    """Change ``pods`` seeded pods in turn, ``rate`` events a second, ``events`` in all; each is dated (``SENT_ANNOTATION``)."""
    loop = asyncio.get_running_loop()
    names = [(metadata["namespace"], metadata["name"]) for metadata in (generator.pod(i)["metadata"] for i in range(pods))]
    start = loop.time()
    for number in range(events):
        # also when late: what was changed must get a chance to leave before the next change
        await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
        namespace, name = names[number % pods]
        sent = {"metadata": {"annotations": {SENT_ANNOTATION: str(time.monotonic_ns())}}}
        cluster.patch("pods", name, sent, namespace=namespace, manager="load")
