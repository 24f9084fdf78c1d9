"""What a contract test holds: one API server, real or simulated, reached by plain HTTP."""

import asyncio
import json
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

JsonObject = dict[str, Any]
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
CORE = "/api/v1"
APPS = "/apis/apps/v1"
PARTIAL = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
PARTIAL_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
USER_AGENT = "contract/1.0 (tests)"
Compact = Callable[[], Awaitable[None]]
MakeUser = Callable[[str, str, list[JsonObject]], Awaitable[str]]


@dataclass
class Answer:
    """One response."""

    status: int
    text: str
    headers: dict[str, str] = field(repr=False)

    @property
    def json(self) -> JsonObject:
        """The body."""
        decoded: JsonObject = json.loads(self.text)
        return decoded

    def refused(self, status: int, reason: str = "", message: str = "") -> JsonObject:
        """The details of a refusal after checking the shape of its Status."""
        body = self.json
        assert self.status == status, self.text
        assert (body["kind"], body["apiVersion"], body["status"], body["code"]) == ("Status", "v1", "Failure", status)
        assert body.get("reason", "") == reason, self.text
        if message:
            assert body["message"] == message
        details: JsonObject = body.get("details", {})
        return details


@dataclass
class ApiServer:
    """One API server as one identity sees it."""

    base: str
    token: str | None
    tls: ssl.SSLContext | None
    session: aiohttp.ClientSession
    make_user: MakeUser
    simulated: bool

    async def call(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", accept: str = "application/json",
        token: str | None = None, **query: Any,
    ) -> Answer:  # fmt: skip
        """One request; ``query`` are its parameters."""
        headers = {"Accept": accept, "User-Agent": USER_AGENT}
        if token or self.token:
            headers["Authorization"] = f"Bearer {token or self.token}"
        data = None
        if body is not None:
            headers["Content-Type"] = kind
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.request(
            method, self.base + path, data=data, headers=headers, params=query, ssl=self.tls or True
        ) as response:
            return Answer(response.status, await response.text(), dict(response.headers))

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> JsonObject:
        """The body of a request that must succeed."""
        answer = await self.call(method, path, body, **options)
        assert 200 <= answer.status < 300, answer.text
        return answer.json

    async def config_map(self, namespace: str, name: str, labels: dict[str, str] | None = None, **data: str) -> JsonObject:
        """A new ConfigMap."""
        metadata: JsonObject = {"name": name} | ({"labels": labels} if labels else {})
        return await self.ok("POST", f"{CORE}/namespaces/{namespace}/configmaps", {"metadata": metadata, "data": data})

    async def namespace(self) -> str:
        """A fresh namespace."""
        name = f"contract-{uuid.uuid4().hex[:10]}"
        await self.ok("POST", f"{CORE}/namespaces", {"metadata": {"name": name}})
        return name

    @asynccontextmanager
    async def watch(self, path: str, *, accept: str = "application/json", **query: Any) -> AsyncIterator["Watch"]:
        """An open watch."""
        headers = {"Accept": accept, "User-Agent": USER_AGENT}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        query = {"watch": "1", "timeoutSeconds": "30"} | {name: str(value) for name, value in query.items()}
        async with self.session.get(self.base + path, headers=headers, params=query, ssl=self.tls or True) as response:
            try:
                yield Watch(response)
            finally:
                # a watch has no end of its own: drop the connection, without TLS's farewell
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()
                await asyncio.sleep(0)


@dataclass
class Watch:
    """The events of one watch."""

    response: aiohttp.ClientResponse

    async def next(self, timeout: float = 10.0) -> tuple[str, JsonObject]:
        """(type, object) of the next event."""
        async with asyncio.timeout(timeout):
            line = await self.response.content.readline()
        assert line, "the watch has ended"
        event = json.loads(line)
        return event["type"], event["object"]

    async def names(self, count: int) -> list[tuple[str, str]]:
        """(type, name) of the next ``count`` events."""
        return [(kind, obj["metadata"]["name"]) for kind, obj in [await self.next() for _ in range(count)]]

    async def rest(self, timeout: float = 15.0) -> list[tuple[str, JsonObject]]:
        """The events until the server ends the watch."""
        async with asyncio.timeout(timeout):
            text = await self.response.text()
        return [(event["type"], event["object"]) for event in map(json.loads, text.splitlines())]


def fields_of(obj: JsonObject, manager: str, subresource: str = "") -> JsonObject | None:
    """The fieldsV1 that ``manager`` owns in ``obj`` by Update."""
    for entry in obj["metadata"].get("managedFields", []):
        if (entry["manager"], entry["operation"], entry.get("subresource", "")) == (manager, "Update", subresource):
            owned: JsonObject = entry["fieldsV1"]
            return owned
    return None
