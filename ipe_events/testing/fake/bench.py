"""An API server that does nothing but pods, as fast as a client can read: the generator's side of the ingest benches.

A generator that shares a loop with what it feeds measures itself. So this one runs in its own process, on blocking sockets, and
its lines are rendered ahead (``LoadGenerator.stream``): per event it overwrites ten bytes, everything else is the kernel copying.
The list endpoint serves as many pods as asked for, in pages; the watch from resourceVersion n goes on after event n, so a client
that reconnects gets what it missed and nothing twice. After the last event a watch stays open, with bookmarks, until its end.
"""

import itertools
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from ipe_events.testing.fake import discovery
from ipe_events.testing.fake.http import version_document
from ipe_events.testing.fake.kinds import BUILT_IN, Registry
from ipe_events.testing.load import FIRST_RV, LoadGenerator

JsonObject = dict[str, Any]
PODS = "/api/v1/pods"
CLUSTER_UID = "bench000-0000-4000-8000-000000000000"
BOOKMARK_SECONDS = 30.0
SEND_BUFFER = 4 << 20


class BenchServer(ThreadingHTTPServer):
    """Serves discovery, a list of ``objects`` pods, and a watch of ``events`` changes of them.

    Args:
        events: MODIFIED events that a watch from the beginning gets.
        objects: pods that the list holds; their resourceVersions lie before the first event.
        seed: of the pods.
        port: to listen on; 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, events: int, *, objects: int = 0, seed: int = 0, port: int = 0, version: str = "v1.37.2") -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.generator = LoadGenerator(seed)
        self.events = events
        self.objects = objects
        self.registry = Registry(BUILT_IN)
        self.version = version

    @property
    def url(self) -> str:
        """``http://127.0.0.1:<port>``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def document(self, path: str, accept: str) -> JsonObject | None:
        """Everything a client asks for before it lists: version, discovery, the cluster's identity."""
        as_v2 = "as=APIGroupDiscoveryList" in accept.replace(" ", "")
        match [part for part in path.split("/") if part]:
            case ["version"]:
                return version_document(self.version)
            case ["api"]:
                return discovery.aggregated(self.registry, core=True) if as_v2 else discovery.api_versions()
            case ["apis"]:
                return discovery.aggregated(self.registry, core=False) if as_v2 else discovery.api_group_list(self.registry)
            case ["api", version]:
                return discovery.api_resource_list(self.registry, "", version)
            case ["apis", group, version]:
                return discovery.api_resource_list(self.registry, group, version)
            case ["api", "v1", "namespaces", "kube-system"]:
                metadata = {"name": "kube-system", "uid": CLUSTER_UID, "resourceVersion": "1"}
                return {"kind": "Namespace", "apiVersion": "v1", "metadata": metadata}
        return None

    def page(self, limit: int, start: int) -> list[bytes]:
        """The body of a page of pods, in pieces."""
        stop = min(self.objects, start + limit) if limit else self.objects
        metadata: JsonObject = {"resourceVersion": str(FIRST_RV)}
        if stop < self.objects:
            metadata |= {"continue": str(stop), "remainingItemCount": self.objects - stop}
        head = orjson.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": metadata})[:-1] + b',"items":['
        drop = len(b'"kind":"Pod","apiVersion":"v1",')
        pods = (b"{" + self.generator.pod_json(index, index + 1)[1 + drop :] for index in range(start, stop))
        first = [next(pods)] if start < stop else []
        return [head, *first, *itertools.chain.from_iterable((b",", pod) for pod in pods), b"]}"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BenchServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class gives it
        """Requests are not logged."""

    def do_GET(self) -> None:
        """Answer discovery, lists and watches."""
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.path != PODS:
            found = self.server.document(parts.path, self.headers.get("Accept", ""))
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            self._send([orjson.dumps(found or missing)], 200 if found else 404)
        elif query.get("watch", "0") in ("0", "false"):
            self._send(self.server.page(int(query.get("limit", "0")), int(query.get("continue", "0"))))
        else:
            self._watch(query)

    def _send(self, pieces: list[bytes], code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(sum(map(len, pieces))))
        self.end_headers()
        self.wfile.write(b"".join(pieces))

    def _watch(self, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        end = time.monotonic() + float(query.get("timeoutSeconds", "3600"))
        after = max(0, int(query.get("resourceVersion") or "0") - FIRST_RV)
        try:
            if query.get("sendInitialEvents") in ("1", "true"):
                self._initial_events()
            for block in self.server.generator.stream(self.server.events, after=after):
                self._chunk(block)
            while (left := end - time.monotonic()) > 0:
                self._bookmark({})
                time.sleep(min(left, BOOKMARK_SECONDS))
            self.connection.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has had enough

    def _initial_events(self) -> None:
        for index in range(self.server.objects):
            self._chunk(b'{"type":"ADDED","object":' + self.server.generator.pod_json(index, index + 1) + b"}\n")
        self._bookmark({"annotations": {"k8s.io/initial-events-end": "true"}}, rv=FIRST_RV)

    def _bookmark(self, more: JsonObject, *, rv: int | None = None) -> None:
        metadata = {"resourceVersion": str(FIRST_RV + self.server.events if rv is None else rv)} | more
        bookmark = {"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}}
        self._chunk(orjson.dumps(bookmark) + b"\n")

    def _chunk(self, data: bytes | memoryview) -> None:
        self.connection.sendall(b"%x\r\n" % len(data))
        self.connection.sendall(data)
        self.connection.sendall(b"\r\n")
