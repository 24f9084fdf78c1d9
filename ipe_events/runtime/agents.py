"""``Agents`` and ``Snapshots``: what a handler can ask the clusters' agents.

Questions go over the bus to ``ipe.svc.agent.<cluster>.<handler>.<verb>``; what the cluster's grant allows this handler to see is
decided there. Answers are redacted like the stream.
"""

from collections.abc import AsyncIterator
from typing import Any

import orjson

from ipe_events.declaration import injectable
from ipe_events.errors import SchemaError, ServiceError
from ipe_events.events.codec import decode, encode, parse
from ipe_events.events.command import Command
from ipe_events.events.outcome import Outcome
from ipe_events.events.refs import ObjectRef, ResourceRef
from ipe_events.events.registry import AgentStatus, read_status
from ipe_events.runtime.port import Port
from ipe_events.subjects import AGENT_SERVICE

AGENTS_BUCKET = "ipe_agents"
_NOT_FOUND = 404


Objects = list[dict[str, Any]]
Statuses = list[AgentStatus]


@injectable
class Agents:
    """Asks agents about their clusters; injected by type.

    Raises (all methods):
        ServiceError: the agent's refusal with its code; 503 when no agent serves the cluster.
        BusTimeout, BusUnavailable: no answer in time.
    """

    def __init__(self, port: Port, handler: str) -> None:
        self._port = port
        self._handler = handler

    async def get(self, cluster: str, ref: ObjectRef, *, timeout: float = 10.0) -> dict[str, Any] | None:
        """One object as it is now; None when there is none."""
        question = {"resource": _resource(ref), "namespace": ref.namespace, "name": ref.name}
        try:
            return _object(await self._ask(cluster, "get", question, timeout), "get")
        except ServiceError as error:
            if error.code == _NOT_FOUND:
                return None
            raise

    async def list(
        self, cluster: str, resource: str, *, namespace: str = "", selector: str = "", timeout: float = 30.0
    ) -> AsyncIterator[dict[str, Any]]:
        """Objects of a resource (``deployments.apps``) as they are now, page by page; ``timeout`` is the longest silence."""
        question = {"resource": str(ResourceRef.parse(resource)), "namespace": namespace, "selector": selector}
        subject = AGENT_SERVICE.format(cluster=cluster, caller=self._handler, verb="list")
        async for reply in self._port.request_many(subject, orjson.dumps(question), timeout=timeout):
            page = _object(reply.body, "list")
            for item in page.get("items", []):
                yield item

    async def dryrun(self, command: Command, *, timeout: float = 10.0) -> Outcome:
        """What would become of a command, as the API server sees it."""
        subject = AGENT_SERVICE.format(cluster=command.cluster, caller=self._handler, verb="dryrun")
        reply = await self._port.request(subject, encode(command), timeout=timeout)
        return decode(Outcome, reply.body)

    async def metrics(self, cluster: str, resource: str = "pods", *, namespace: str = "", timeout: float = 10.0) -> Objects:
        """Usage of pods or nodes as ``metrics.k8s.io`` tells it."""
        answer = _object(await self._ask(cluster, "metrics", {"resource": resource, "namespace": namespace}, timeout), "metrics")
        items: Objects = answer.get("items", [])
        return items

    async def whoami(self, cluster: str, *, timeout: float = 5.0) -> dict[str, Any]:
        """What the cluster lets this handler do."""
        return _object(await self._ask(cluster, "whoami", {}, timeout), "whoami")

    async def known(self) -> Statuses:
        """Every agent that ever reported, with its last state; what cannot be read is said in the log and left out."""
        bucket = await self._port.kv(AGENTS_BUCKET, create=True)
        statuses: Statuses = []
        for key in await bucket.keys():
            entry = await bucket.get(key)
            if entry is None:
                continue
            try:
                statuses.append(read_status(key, entry.value))
            except SchemaError as error:
                from ipe_events.telemetry.log import get_logger  # keeps the import of the vocabulary cheap

                get_logger(__name__).warning("an agent's status cannot be read", key=key, error=str(error))
        return statuses

    async def _ask(self, cluster: str, verb: str, question: dict[str, Any], timeout: float) -> bytes:
        subject = AGENT_SERVICE.format(cluster=cluster, caller=self._handler, verb=verb)
        return (await self._port.request(subject, orjson.dumps(question), timeout=timeout)).body


@injectable
class Snapshots:
    """Objects of a resource as one agent lists them; with ``start="snapshot"`` the SDK does this by itself."""

    def __init__(self, port: Port, handler: str) -> None:
        self._agents = Agents(port, handler)

    async def take(self, cluster: str, resource: str, *, namespace: str = "") -> Objects:
        """Everything at once; for large resources iterate over ``Agents.list``.

        Raises:
            ServiceError, BusTimeout, BusUnavailable: see ``Agents``.
        """
        return [item async for item in self._agents.list(cluster, resource, namespace=namespace)]


def _resource(ref: ObjectRef) -> str:
    return str(ResourceRef(group=ref.group, resource=ref.resource))


def _object(body: bytes, verb: str) -> dict[str, Any]:
    try:
        parsed = parse(body)
    except SchemaError as error:
        raise SchemaError(f"the agent's answer to {verb} is unreadable: {error}") from error
    if not isinstance(parsed, dict):
        raise SchemaError(f"the agent's answer to {verb} is not a JSON object")
    return parsed
