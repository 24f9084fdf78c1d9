"""FakeCluster: a Kubernetes API in your process, over real HTTP, for tests, demos and benches.

It serves what this project uses of the API and behaves there as the real server does: ``tests/contract`` runs the same tests
against both. What it cannot do truthfully (server-side apply, strategic merge patches, schemas) it refuses, saying so. Nothing
reconciles unless asked for: with ``controllers=True`` Deployments grow ReplicaSets and running Pods.

    async with FakeCluster(name="prod-eu") as cluster:
        cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
        session = await connect(cluster.url)
"""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import yaml
from aiohttp import web

from ipe_events.clock import SYSTEM, Clock
from ipe_events.errors import UsageError
from ipe_events.testing.fake.auth import Rule, Tokens, User
from ipe_events.testing.fake.controllers import Controllers
from ipe_events.testing.fake.http import Api, Settings
from ipe_events.testing.fake.kinds import BUILT_IN, METRICS, Kind, Registry
from ipe_events.testing.fake.metrics import Metrics
from ipe_events.testing.fake.operations import DeleteOptions, Operations, WriteOptions
from ipe_events.testing.fake.patch import JSON_PATCH, MERGE_PATCH
from ipe_events.testing.fake.rules import copy
from ipe_events.testing.fake.selectors import label_selector
from ipe_events.testing.fake.status import already_exists
from ipe_events.testing.fake.store import ObjectKey, Snapshot, Store
from ipe_events.testing.faults import Faults

JsonObject = dict[str, Any]
START_NAMESPACES = ("default", "kube-system")


class FakeCluster:
    """One simulated cluster: start it as an async context manager, talk to it over ``url`` or through the helpers.

    The helpers (``create``, ``apply``, ``patch``, ``delete``, ``get``, ``list``) take and return plain dicts and go through the
    same store and admission as HTTP; unlike a client they may write ``status`` together with the rest.

    Args:
        name: the cluster's name, used in the kubeconfig.
        version: the Kubernetes version that it reports.
        token: a bearer token with all rights; without any token everybody is let in.
        controllers: let Deployments make ReplicaSets and Pods.
        metrics: serve ``metrics.k8s.io``.
        history: changes kept per resource before older ones are compacted.
        bookmark_interval: seconds between bookmarks of a quiet watch.
        watch_buffer: changes that may wait for a slow watcher before it is closed.
        fresh_timeout: seconds before "Too large resource version".
        clock: dates what is written.
        seed: of generated uids and names; the same seed and the same calls give the same cluster.
        port: to listen on; 0 takes a free one.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        version: str = "v1.37.2",
        token: str | None = None,
        controllers: bool = False,
        metrics: bool = True,
        history: int = 10_000,
        bookmark_interval: float = 60.0,
        watch_buffer: int = 16_384,
        fresh_timeout: float = 3.0,
        clock: Clock = SYSTEM,
        seed: int | str | None = None,
        port: int = 0,
    ) -> None:
        self.name = name
        self.faults = Faults()
        self.store = Store(history=history)
        self._registry = Registry([*BUILT_IN, *(METRICS if metrics else ())])
        self._operations = Operations(self.store, self._registry, clock, seed=name if seed is None else seed)
        self._tokens = Tokens()
        self._metrics = Metrics()
        settings = Settings(version, bookmark_interval, watch_buffer, fresh_timeout)
        self._api = Api(self._operations, self._tokens, self.faults, self._metrics, settings)
        self._runner: web.AppRunner | None = None
        self._controllers = Controllers(self._operations) if controllers else None
        self._reconciling: asyncio.Task[None] | None = None
        self._port = port
        self.token = token
        if token is not None:
            self.add_token(token, "kubernetes-admin", groups=("system:masters", "system:authenticated"))
        self.store.on_restore(self._api.disconnect)
        self._operations.observers += [self._serve_custom_resources, self._forget_metrics]
        for namespace in START_NAMESPACES:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    # --- life ---

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on loopback; after ``stop`` on the same port again, with the same objects."""
        if self._runner is not None:
            raise UsageError(f"the fake cluster {self.name!r} runs already", fix="call stop() first")
        runner = web.AppRunner(self._api.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._runner = runner
        self._port = int(runner.addresses[0][1])
        if self._controllers is not None:
            self._reconciling = asyncio.create_task(self._controllers.run(), name=f"controllers of {self.name}")

    async def stop(self) -> None:
        """Stop listening and drop all connections; the objects stay, as etcd's do when an API server dies."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            self._api.disconnect()
            await runner.cleanup()
        if self._reconciling is not None:
            task, self._reconciling = self._reconciling, None
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()  # a controller that failed says so here

    @property
    def url(self) -> str:
        """``http://127.0.0.1:<port>``."""
        if not self._port:
            raise UsageError("the fake cluster does not listen yet", fix="use it as 'async with FakeCluster() as cluster'")
        return f"http://127.0.0.1:{self._port}"

    @property
    def uid(self) -> str:
        """The cluster's identity: the uid of ``kube-system``."""
        return str(self.get("namespaces", "kube-system")["metadata"]["uid"])

    @property
    def resource_version(self) -> int:
        """The newest resourceVersion."""
        return self.store.rv

    def kubeconfig(self, path: str | Path, *, token: str | None = None) -> Path:
        """Write a kubeconfig whose one context is named like the cluster; returns its path."""
        token = token or self.token
        user = {"token": token} if token else {}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": self.name,
            "clusters": [{"name": self.name, "cluster": {"server": self.url}}],
            "users": [{"name": self.name, "user": user}],
            "contexts": [{"name": self.name, "context": {"cluster": self.name, "user": self.name}}],
        }
        path = Path(path)
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    # --- identities ---

    def add_token(
        self, token: str, user: str, *, groups: tuple[str, ...] = ("system:authenticated",), rules: list[Rule] | None = None
    ) -> None:
        """Accept ``token`` as ``user``, who may do what ``rules`` allow (None: everything)."""
        self._tokens.users[token] = User(user, groups, rules)

    def revoke_token(self, token: str) -> None:
        """From now on ``token`` is 401."""
        del self._tokens.users[token]

    # --- objects ---

    def create(self, obj: JsonObject, *, manager: str = "fake") -> JsonObject:
        """Create an object (namespace ``default`` unless it says another) and return it as stored.

        Raises:
            StatusError: as over HTTP.
        """
        kind = self._kind_of(obj)
        return self._operations.create(kind, self._namespace(kind, obj), obj, WriteOptions(manager, trusted=True))

    def apply(self, obj: JsonObject, *, manager: str = "fake") -> JsonObject:
        """Create the object, or merge it into the one that exists.

        Raises:
            StatusError: as over HTTP.
        """
        kind = self._kind_of(obj)
        key = self._namespace(kind, obj), str(obj["metadata"]["name"])
        if self.store.get(kind.group_resource, key) is None:
            return self.create(obj, manager=manager)
        body = orjson.dumps(obj)
        return self._operations.patch(kind, key, MERGE_PATCH, body, WriteOptions(manager, trusted=True))

    def seed(self, obj: JsonObject) -> JsonObject:
        """Place an object as it is, as if the cluster had it already: no defaults, no admission, uid and managedFields kept.

        Raises:
            StatusError: 409, the name is taken.
        """
        kind = self._kind_of(obj)
        key = self._namespace(kind, obj), str(obj["metadata"]["name"])
        if self.store.get(kind.group_resource, key) is not None:
            raise already_exists(kind, key[1])
        return self._operations.commit(kind, key, None, copy(obj))

    def patch(
        self, resource: str, name: str, patch: JsonObject | list[JsonObject], *, namespace: str = "default",
        manager: str = "fake",
    ) -> JsonObject:  # fmt: skip
        """Patch an object: a dict is a merge patch, a list a JSON patch.

        Raises:
            StatusError: as over HTTP.
        """
        kind, key = self._named(resource, name, namespace)
        content_type = MERGE_PATCH if isinstance(patch, dict) else JSON_PATCH
        return self._operations.patch(kind, key, content_type, orjson.dumps(patch), WriteOptions(manager, trusted=True))

    def delete(self, resource: str, name: str, *, namespace: str = "default") -> None:
        """Delete an object (it stays, marked, while finalizers hold it).

        Raises:
            StatusError: as over HTTP.
        """
        kind, key = self._named(resource, name, namespace)
        self._operations.delete(kind, key, DeleteOptions())

    def get(self, resource: str, name: str, *, namespace: str = "default") -> JsonObject:
        """An object as stored, as a copy.

        Raises:
            StatusError: 404.
        """
        kind, key = self._named(resource, name, namespace)
        found: JsonObject = orjson.loads(self._operations.existing(kind, key).raw)
        return found

    def list(self, resource: str, *, namespace: str = "", label_selector: str = "") -> list[JsonObject]:
        """The objects of one namespace or of all, as copies."""
        kind = self._resource(resource)
        selects = _label_selector(label_selector)
        items = self.store.items(kind.group_resource, namespace)
        return [orjson.loads(item.raw) for _, item in items if selects is None or selects(item.obj)]

    # --- what a cluster has besides objects ---

    def add_resource(
        self, group: str, version: str, resource: str, kind: str, *, namespaced: bool = True, status: bool = True
    ) -> None:
        """Serve a custom resource (creating a CustomResourceDefinition does the same)."""
        self._registry.add(
            Kind(group, version, resource, kind, namespaced=namespaced, has_status=status, has_generation=True, custom=True)
        )

    def set_pod_metrics(self, name: str, containers: dict[str, dict[str, str]], *, namespace: str = "default") -> None:
        """What ``metrics.k8s.io`` says of a pod: container → ``{"cpu": "10m", "memory": "20Mi"}``."""
        pod = self.store.get(("", "pods"), (namespace, name))
        labels = dict(pod.obj["metadata"].get("labels") or {}) if pod else {}
        self._metrics.set_pod(namespace, name, containers, labels, self._operations.timestamp())

    def set_node_metrics(self, name: str, usage: dict[str, str]) -> None:
        """What ``metrics.k8s.io`` says of a node."""
        self._metrics.set_node(name, usage, {}, self._operations.timestamp())

    # --- history ---

    def compact(self) -> int:
        """Forget all history: watching or listing from an older resourceVersion is 410."""
        return self.store.compact()

    def snapshot(self) -> Snapshot:
        """A backup of etcd."""
        return self.store.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a backup: objects and resourceVersions go back, watches are cut."""
        self.store.restore(snapshot)

    # --- helpers ---

    def _kind_of(self, obj: JsonObject) -> Kind:
        api_version, kind = str(obj.get("apiVersion")), str(obj.get("kind"))
        found = self._registry.of(api_version, kind)
        if found is None:
            raise UsageError(f"no resource for {api_version} {kind}", where=self.name, fix="add_resource() or create its CRD")
        return found

    def _resource(self, resource: str) -> Kind:
        found = self._registry.named(resource)
        if found is None:
            raise UsageError(f"no resource {resource!r}", where=self.name, fix="write the plural, such as 'deployments.apps'")
        return found

    def _named(self, resource: str, name: str, namespace: str) -> tuple[Kind, ObjectKey]:
        kind = self._resource(resource)
        return kind, (namespace if kind.namespaced else "", name)

    def _namespace(self, kind: Kind, obj: JsonObject) -> str:
        return str(obj.get("metadata", {}).get("namespace", "default")) if kind.namespaced else ""

    def _forget_metrics(self, kind: Kind, before: JsonObject | None, after: JsonObject | None) -> None:
        if after is None and before is not None and kind.group_resource in (("", "pods"), ("", "nodes")):
            self._metrics.forget(kind.resource, (before["metadata"].get("namespace", ""), before["metadata"]["name"]))

    def _serve_custom_resources(self, kind: Kind, before: JsonObject | None, after: JsonObject | None) -> None:
        if kind.group_resource != ("apiextensions.k8s.io", "customresourcedefinitions"):
            return
        for custom in _custom_kinds(before or {}):
            self._registry.remove(custom)
        for custom in _custom_kinds(after or {}):
            self._registry.add(custom)


_label_selector = label_selector


def _custom_kinds(definition: JsonObject) -> list[Kind]:
    spec = definition.get("spec", {})
    return [_custom_kind(spec, version) for version in spec.get("versions", []) if version.get("served", True)]


def _custom_kind(spec: JsonObject, version: JsonObject) -> Kind:
    names, subresources = spec["names"], version.get("subresources") or {}
    return Kind(
        spec["group"],
        version["name"],
        names["plural"],
        names["kind"],
        namespaced=spec.get("scope", "Namespaced") == "Namespaced",
        short_names=tuple(names.get("shortNames") or ()),
        has_status="status" in subresources,
        has_scale="scale" in subresources,
        has_generation=True,
        custom=True,
    )
