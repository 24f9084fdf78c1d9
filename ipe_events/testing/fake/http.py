"""The HTTP face: one aiohttp handler that authenticates, authorises, meets the armed faults and calls the right verb.

There is one route: the path is parsed as the API server parses it (``request.py``), so custom resources need no new routes.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from ipe_events.testing.fake import discovery, listing, reviews, scale, status, watch
from ipe_events.testing.fake import request as requests
from ipe_events.testing.fake.auth import Access, Tokens, User, authorize
from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.metrics import Metrics
from ipe_events.testing.fake.operations import DeleteOptions, Operations
from ipe_events.testing.fake.request import RequestInfo
from ipe_events.testing.faults import AsEvent, Damage, Fault, Faults

JsonObject = dict[str, Any]
Damages = list[tuple[Fault, Damage]]

MAX_BODY = 3 << 20
"""The real server's limit of a request body, in bytes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the server behaves.

    Attributes:
        version: as ``/version`` reports it.
        bookmark_interval: seconds between bookmarks of a quiet watch.
        watch_buffer: changes that may wait for one watcher.
        fresh_timeout: seconds to wait for a resourceVersion from the future before "Too large resource version".
    """

    version: str = "v1.37.2"
    bookmark_interval: float = 60.0
    watch_buffer: int = 16_384
    fresh_timeout: float = 3.0


@dataclass(slots=True)
class Api:
    """The HTTP handler of one cluster."""

    operations: Operations
    tokens: Tokens
    faults: Faults
    metrics: Metrics
    settings: Settings
    watchers: set[watch.Watcher] = field(default_factory=set)

    def application(self) -> web.Application:
        """An application with the one route."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        try:
            user = self.tokens.user(request.headers.get("Authorization", ""))
            info = requests.parse(request)
            damages = await self.faults.intercept(info)
            if not info.resource:
                return await self._send(request, _json(*self._nonresource(request, user)), damages)
            return await self._resource(request, info, user, damages)
        except status.StatusError as error:
            return web.Response(
                status=error.code, body=orjson.dumps(error.body()), content_type="application/json", headers=error.headers
            )
        except web.HTTPRequestEntityTooLarge:
            too_big = status.StatusError(413, "RequestEntityTooLarge", f"limit is {MAX_BODY}")
            return web.Response(status=413, body=orjson.dumps(too_big.body()), content_type="application/json")
        except AsEvent as refusal:
            return web.Response(body=watch.error_line(refusal.error), content_type="application/json")

    # --- paths that are no resources ---

    def _nonresource(self, request: web.Request, user: User) -> tuple[int, Any]:
        registry = self.operations.registry
        parts = [part for part in request.path.split("/") if part]
        as_v2 = "as=APIGroupDiscoveryList" in request.headers.get("Accept", "").replace(" ", "")
        found: Any = None
        match parts:
            case ["healthz" | "livez" | "readyz"]:
                found = "ok"
            case ["version"]:
                found = version_document(self.settings.version)
            case ["api"]:
                found = discovery.aggregated(registry, core=True) if as_v2 else discovery.api_versions()
            case ["apis"]:
                found = discovery.aggregated(registry, core=False) if as_v2 else discovery.api_group_list(registry)
            case ["api", version]:
                found = discovery.api_resource_list(registry, "", version)
            case ["apis", group]:
                found = discovery.api_group(registry, group)
            case ["apis", group, version]:
                found = discovery.api_resource_list(registry, group, version)
        if found is not None:
            return 200, found
        if len(parts) == 3 and parts[0] == "apis" and parts[1] in discovery.groups(registry):
            raise status.no_such_resource()
        return 404, "404 page not found\n"

    # --- resources ---

    async def _resource(self, request: web.Request, info: RequestInfo, user: User, damages: Damages) -> web.StreamResponse:
        authorize(user, Access(info.verb, info.group, info.resource, info.subresource, info.namespace, info.name))
        kind = self.operations.registry.at(info.group, info.version, info.resource)
        if kind is None:
            if info.group not in discovery.groups(self.operations.registry):
                return await self._send(request, _json(404, "404 page not found\n"), damages)
            raise status.no_such_resource()
        served = {"status": kind.has_status, "scale": kind.has_scale}.get(info.subresource, not info.subresource)
        if not served:
            raise status.no_such_resource()
        everywhere = kind.namespaced and not info.namespace
        if info.verb not in kind.verbs or (everywhere and info.verb not in ("list", "watch")) or not _fits(info):
            raise status.method_not_allowed()
        partial = requests.wants_partial(request.headers.get("Accept", ""))
        if info.verb == "watch":
            return await self._watch(request, info, kind, damages, partial=partial)
        verbs: dict[str, Callable[..., Awaitable[web.Response]]] = {
            "get": self._get, "list": self._list, "create": self._create, "update": self._update, "patch": self._patch,
            "delete": self._delete, "deletecollection": self._delete_collection,
        }  # fmt: skip
        if kind.verbs == ("create",):
            return await self._send(request, _json(201, reviews.answer(kind, await _body(request), user)), damages)
        response = await verbs[info.verb](request, info, kind, partial)
        return await self._send(request, response, damages)

    async def _get(self, request: web.Request, info: RequestInfo, kind: Kind, partial: bool) -> web.Response:
        if kind.group == "metrics.k8s.io":
            return _json(200, self.metrics.get(kind, info.key))
        if rv := request.query.get("resourceVersion"):
            await self._wait_fresh(listing.parse_rv(rv))
        item = self.operations.existing(kind, info.key)
        if info.subresource == "scale":
            return _json(200, scale.of(kind, item.obj))
        return _json(200, item.partial if partial else item.raw)

    async def _list(self, request: web.Request, info: RequestInfo, kind: Kind, partial: bool) -> web.Response:
        options = requests.list_options(request, info, kind)
        if kind.group == "metrics.k8s.io":
            return _json(200, self.metrics.list(kind, options.namespace, options.selects))
        listing.check(options)
        if options.rv and not options.continue_:
            await self._wait_fresh(listing.parse_rv(options.rv))
        return _json(200, listing.page(self.operations.store, kind, options).body(kind, partial=partial))

    async def _create(self, request: web.Request, info: RequestInfo, kind: Kind, partial: bool) -> web.Response:
        namespace = info.namespace if kind.namespaced else ""
        created = self.operations.create(kind, namespace, await _body(request), requests.write_options(request))
        return _json(201, _partial(created) if partial else created)

    async def _update(self, request: web.Request, info: RequestInfo, kind: Kind, partial: bool) -> web.Response:
        options = requests.write_options(request)
        body = await _body(request)
        if info.subresource == "scale":
            return _json(200, scale.update(self.operations, kind, info.key, body, options))
        exists = self.operations.store.get(kind.group_resource, info.key) is not None
        if kind.creates_on_update and not info.subresource and not exists:
            return _json(201, self.operations.create(kind, info.key[0], _named(body, info.name), options))
        updated = self.operations.update(kind, info.key, body, options, info.subresource)
        return _json(200, _partial(updated) if partial else updated)

    async def _patch(self, request: web.Request, info: RequestInfo, kind: Kind, partial: bool) -> web.Response:
        options = requests.write_options(request)
        body = await request.read()
        content_type = request.content_type
        if info.subresource == "scale":
            return _json(200, scale.patch(self.operations, kind, info.key, content_type, body, options))
        patched = self.operations.patch(kind, info.key, content_type, body, options, info.subresource)
        return _json(200, _partial(patched) if partial else patched)

    async def _delete(self, request: web.Request, info: RequestInfo, kind: Kind, partial: bool) -> web.Response:
        obj, gone = self.operations.delete(kind, info.key, await _delete_options(request))
        if gone and not kind.returns_deleted:
            details = {"name": info.name} | ({"group": kind.group} if kind.group else {})
            details |= {"kind": kind.resource, "uid": obj["metadata"]["uid"]}
            success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
            return _json(200, success)
        return _json(200, _partial(obj) if partial else obj)

    async def _delete_collection(
        self,
        request: web.Request,
        info: RequestInfo,
        kind: Kind,
        partial: bool,
    ) -> web.Response:
        options = requests.list_options(request, info, kind)
        how = await _delete_options(request)
        found = listing.page(self.operations.store, kind, options)
        for item in found.items:
            metadata = item.obj["metadata"]
            self.operations.delete(kind, (metadata.get("namespace", ""), metadata["name"]), how)
        return _json(200, found.body(kind, partial=partial))

    async def _wait_fresh(self, rv: int) -> None:
        """Wait a little for a resourceVersion from the future, as a lagging watch cache does.

        Raises:
            StatusError: 504, it did not come.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.fresh_timeout
        while self.operations.store.rv < rv:
            if loop.time() >= end:
                raise status.too_large(rv, self.operations.store.rv)
            await asyncio.sleep(0.02)

    # --- watch ---

    async def _watch(
        self, request: web.Request, info: RequestInfo, kind: Kind, damages: Damages, *, partial: bool
    ) -> web.StreamResponse:
        if "watch" not in kind.verbs:
            raise status.method_not_allowed()
        options = requests.watch_options(request, info, kind, partial=partial)
        watch.check(options)
        if options.send_initial and options.rv:
            try:
                await self._wait_fresh(listing.parse_rv(options.rv))
            except status.StatusError as error:  # an accepted watch fails by an event
                raise AsEvent(error) from error
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"})
        watcher = watch.Watcher(
            self.operations.store, kind, options, bookmark_interval=self.settings.bookmark_interval,
            buffer=self.settings.watch_buffer,
        )  # fmt: skip
        self.watchers.add(watcher)
        try:
            await response.prepare(request)
            async for batch in watcher.stream():
                if not await _write(request, response, batch, damages):
                    return response
            if watcher.overflowed:
                _end(request, "close")
        except ConnectionError:
            return response
        finally:
            watcher.close()
            self.watchers.discard(watcher)
        return response

    def disconnect(self) -> None:
        """End all watches."""
        for watcher in list(self.watchers):
            watcher.close()

    async def _send(self, request: web.Request, response: web.Response, damages: Damages) -> web.StreamResponse:
        if not damages:
            return response
        body = response.body if isinstance(response.body, bytes) else b""
        damaged = web.StreamResponse(status=response.status, headers={"Content-Type": response.content_type})
        damaged.content_length = len(body)
        await damaged.prepare(request)
        await _write(request, damaged, body, damages)
        return damaged


async def _write(request: web.Request, response: web.StreamResponse, data: bytes, damages: Damages) -> bool:
    """Send ``data`` as far as the faults let it; False when a fault has ended the connection."""
    for fault, damage in damages:
        data, end = damage.cut(data)
        if end:
            if data:
                await response.write(data)
            fault.fire()
            if end == "stall":
                await asyncio.Event().wait()  # until the client goes and aiohttp cancels this handler
            _end(request, end)
            return False
    await response.write(data)
    return True


def _end(request: web.Request, how: str) -> None:
    transport = request.transport
    if transport is None:
        return
    if how == "reset":
        # Linger 0 makes the kernel send RST instead of FIN.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


def _json(code: int, body: Any) -> web.Response:
    if isinstance(body, str):
        return web.Response(status=code, text=body)
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return web.Response(status=code, body=raw, content_type="application/json")


def _partial(obj: JsonObject) -> JsonObject:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _fits(info: RequestInfo) -> bool:
    """Whether the verb goes with a path that names an object, or a collection."""
    return bool(info.name) is (info.verb in ("get", "update", "patch", "delete")) or info.verb == "watch"


async def _body(request: web.Request) -> Any:
    if request.content_type not in ("application/json", "application/octet-stream", "text/plain"):
        raise status.unsupported_media_type(f"415: Unsupported Media Type: {request.content_type}")
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise status.bad_request(f"couldn't get version/kind; json parse error: {error}") from error


def _named(body: Any, name: str) -> Any:
    """The body of a PUT that creates, with the name of the URL."""
    if isinstance(body, dict) and isinstance(body.get("metadata", {}), dict):
        metadata = body.get("metadata", {})
        if metadata.get("name", name) != name:
            raise status.bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")
        return body | {"metadata": metadata | {"name": name}}
    return body


async def _delete_options(request: web.Request) -> DeleteOptions:
    """From the body, if there is one, else from the query: a body hides what the query says."""
    if not await request.read():
        return DeleteOptions(dry_run=requests.dry_run(request.query.getall("dryRun", []), "DeleteOptions"))
    options = await _body(request)
    options = {} if options is None else options
    if isinstance(options, dict):
        conditions, dry_runs = options.get("preconditions") or {}, options.get("dryRun") or []
        if isinstance(conditions, dict) and isinstance(dry_runs, list):
            dry = requests.dry_run(dry_runs, "DeleteOptions")
            return DeleteOptions(str(conditions.get("uid", "")), str(conditions.get("resourceVersion", "")), dry)
    raise status.bad_request("the object provided is unrecognized (must be of type DeleteOptions)")


def version_document(version: str) -> JsonObject:
    """``/version``."""
    major, minor, *_ = version.removeprefix("v").split(".")
    return {"major": major, "minor": minor, "gitVersion": version, "platform": "linux/amd64"}
