"""A small client of the Kubernetes API for tests: blocking, one connection per call, plain dicts.

Tests must not look at a cluster through the code that they test, so this is deliberately not `ipe_events.kube`.
"""

import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

Object = dict[str, Any]
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


class Refused(Exception):
    """The API server answered with an error: `status` is the HTTP code, `reason` and `message` are its own."""

    def __init__(self, method: str, path: str, status: int, body: bytes) -> None:
        try:
            answer = json.loads(body)
        except ValueError:
            answer = {}
        self.status = status
        self.reason = str(answer.get("reason", ""))
        self.message = str(answer.get("message", body.decode(errors="replace")))
        super().__init__(f"{method} {path}: {status} {self.reason}: {self.message}")


class Api:
    """One identity's view of one API server."""

    def __init__(self, server: str, ca_pem: str, token: str | None) -> None:
        self.server = server
        self.ca_pem = ca_pem
        self._token = token
        self._address = urllib.parse.urlsplit(server)
        self._tls = ssl.create_default_context(cadata=ca_pem)

    def as_token(self, token: str | None) -> "Api":
        """The same server for the holder of another bearer token (None: anonymous)."""
        return Api(self.server, self.ca_pem, token)

    def get(self, path: str, **query: Any) -> Object:
        """GET one object, list or discovery document."""
        return self.call("GET", path, query=query)

    def exists(self, path: str) -> bool:
        """Whether a GET finds something."""
        try:
            self.get(path)
        except Refused as error:
            if error.status == 404:
                return False
            raise
        return True

    def create(self, path: str, body: Object, **query: Any) -> Object:
        """POST `body` to a collection."""
        return self.call("POST", path, body, query=query)

    def replace(self, path: str, body: Object) -> Object:
        """PUT a whole object."""
        return self.call("PUT", path, body)

    def patch(self, path: str, body: Any, kind: str = MERGE, **query: Any) -> Object:
        """PATCH, a JSON merge patch unless `kind` says otherwise."""
        return self.call("PATCH", path, body, query=query, content_type=kind)

    def delete(self, path: str, **options: Any) -> Object:
        """DELETE; `options` are those of DeleteOptions (`propagationPolicy`, ...)."""
        return self.call("DELETE", path, options or None)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One request; the decoded answer, or `Refused`."""
        with self._send(method, path, body, query or {}, content_type, timeout=30) as response:
            raw = response.read()
        try:
            answer = json.loads(raw)
        except ValueError:  # /readyz and friends answer in plain text
            answer = {"text": raw.decode()}
        return answer if isinstance(answer, dict) else {"items": answer}

    def watch(self, path: str, *, seconds: int = 10, **query: Any) -> Generator[Object, None, None]:
        """The events of one watch until the server ends it after `seconds`."""
        query = {"watch": "true", "timeoutSeconds": seconds, **query}
        with self._send("GET", path, None, query, "application/json", timeout=seconds + 5) as response:
            for line in response:
                yield json.loads(line)

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        """The first true value of `condition()`, asked until the deadline; names `what` when it never came."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            time.sleep(0.05)
        return value

    @contextmanager
    def _send(
        self, method: str, path: str, body: Any, query: dict[str, Any], content_type: str, timeout: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPSConnection(
            self._address.hostname or "", self._address.port, timeout=timeout, context=self._tls
        )
        headers = {"Accept": "application/json", "Content-Type": content_type}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            with connection.getresponse() as response:
                if response.status >= 400:
                    raise Refused(method, target, response.status, response.read())
                yield response
        finally:
            connection.close()
