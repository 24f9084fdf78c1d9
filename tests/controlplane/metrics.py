"""Plays metrics-server for a cluster whose pods kwok plays: nothing really runs, so usage is what the test says.

A pod's annotations `metrics.test/cpu` and `metrics.test/memory` are the usage of each of its containers. The API server reaches
this as it reaches any aggregated API: an APIService, a Service, TLS. The Service is of type ExternalName, because endpoints may
not be loopback addresses. It runs as a thread of whoever owns the control plane and ends with it.
"""

import base64
import json
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme

from ipe_events.clock import SYSTEM, rfc3339
from tests.controlplane.api import Api, Refused
from tests.controlplane.cluster import CORE, RealCluster

GROUP_VERSION = "metrics.k8s.io/v1beta1"
BASE = f"/apis/{GROUP_VERSION}"
SERVICE = "metrics-for-tests"
NAMESPACE = "kube-system"
CPU, MEMORY = "metrics.test/cpu", "metrics.test/memory"
IDLE = {CPU: "1m", MEMORY: "1Mi"}


class MetricsServer:
    """Serves metrics.k8s.io for one cluster on a loopback port of its own."""

    def __init__(self, cluster: RealCluster, authority: trustme.CA, folder: Path) -> None:
        self._cluster = cluster
        certificate = folder / "metrics.pem"
        authority.issue_cert(f"{SERVICE}.{NAMESPACE}.svc").private_key_and_cert_chain_pem.write_to_path(certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster.api))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = Thread(target=self._server.serve_forever, name="metrics-for-tests", daemon=True)

    def start(self) -> None:
        """Serve, and register with the API server; returns when it answers for us."""
        self._thread.start()
        api, port = self._cluster.api, self._server.server_address[1]
        service = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
        services = f"{CORE}/namespaces/{NAMESPACE}/services"
        self._cluster.ensure(services, {"metadata": {"name": SERVICE}, "spec": service})
        group, _, version = GROUP_VERSION.partition("/")
        spec = {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": base64.b64encode(self._cluster.ca_pem.encode()).decode(),
            "service": {"name": SERVICE, "namespace": NAMESPACE, "port": port},
        }
        path = "/apis/apiregistration.k8s.io/v1/apiservices"
        self._cluster.ensure(path, {"metadata": {"name": f"{version}.{group}"}, "spec": spec})
        api.wait(self._answers, "metrics.k8s.io is served")

    def stop(self) -> None:
        """Stop serving; the API server then answers 503 for the group."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answers(self) -> bool:
        try:
            return bool(self._cluster.api.get(f"{BASE}/nodes")["items"])
        except Refused as error:
            if error.status in (404, 503):
                return False
            raise


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(address.query).items()}
            answer = _answer(api, address.path, query.get("labelSelector", ""))
            body = json.dumps(answer or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_line: Any) -> None:
            """Requests are no news."""

    return Handler


def _answer(api: Api, path: str, selector: str) -> dict[str, Any] | None:
    """The document at a path of the group; None when there is none."""
    if path == BASE:
        return _resources()
    match path.removeprefix(BASE).strip("/").split("/"):
        case ["nodes"]:
            return _list("NodeMetricsList", [_node(each) for each in api.get(f"{CORE}/nodes", labelSelector=selector)["items"]])
        case ["pods"]:
            return _list("PodMetricsList", _pods(api, f"{CORE}/pods", selector))
        case ["namespaces", namespace, "pods"]:
            return _list("PodMetricsList", _pods(api, f"{CORE}/namespaces/{namespace}/pods", selector))
        case ["namespaces", namespace, "pods", name]:
            found = _pods(api, f"{CORE}/namespaces/{namespace}/pods", selector)
            return next((each for each in found if each["metadata"]["name"] == name), None)
    return None


def _resources() -> dict[str, Any]:
    resources = [
        {"name": "nodes", "singularName": "", "namespaced": False, "kind": "NodeMetrics", "verbs": ["get", "list"]},
        {"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]},
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION, "resources": resources}


def _list(kind: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": GROUP_VERSION, "metadata": {}, "items": items}


def _pods(api: Api, path: str, selector: str) -> list[dict[str, Any]]:
    pods = api.get(path, labelSelector=selector, fieldSelector="status.phase=Running")["items"]
    return [_pod(pod) for pod in pods]


def _pod(pod: dict[str, Any]) -> dict[str, Any]:
    said = IDLE | pod["metadata"].get("annotations", {})
    usage = {"cpu": said[CPU], "memory": said[MEMORY]}
    containers = [{"name": container["name"], "usage": usage} for container in pod["spec"]["containers"]]
    return {**_head("PodMetrics", pod), "containers": containers}


def _node(node: dict[str, Any]) -> dict[str, Any]:
    said = IDLE | node["metadata"].get("annotations", {})
    return {**_head("NodeMetrics", node), "usage": {"cpu": said[CPU], "memory": said[MEMORY]}}


def _head(kind: str, of: dict[str, Any]) -> dict[str, Any]:
    kept = {key: of["metadata"][key] for key in ("name", "namespace", "labels", "creationTimestamp") if key in of["metadata"]}
    return {"kind": kind, "apiVersion": GROUP_VERSION, "metadata": kept, "timestamp": rfc3339(SYSTEM.now()), "window": "15s"}
