"""What an API server offers: its resources, their kinds, verbs and paths.

One request per root (``/api``, ``/apis``) tells everything on servers that speak aggregated discovery; older ones are asked group
by group. A group whose own server is down is left out and named in ``errors``: it must not hide the rest.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import msgspec

from ipe_events.errors import KubeError, KubeNotFound, UsageError
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.session import KubeSession

_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ApiResource:
    """One resource in the version that we use.

    Attributes:
        group: empty for the core group.
        version: e.g. ``v1``.
        resource: plural, lower-case name.
        kind: e.g. ``Deployment``.
        namespaced: whether its objects live in namespaces.
        verbs: what the server can do with it (not: what we may).
        subresources: name → verbs, e.g. ``scale``.
    """

    group: str
    version: str
    resource: str
    kind: str
    namespaced: bool
    verbs: frozenset[str] = frozenset()
    subresources: dict[str, frozenset[str]] = field(default_factory=dict, hash=False)

    @property
    def api_version(self) -> str:
        """As objects carry it: ``apps/v1``, ``v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def ref(self) -> ResourceRef:
        """The resource without its version."""
        return ResourceRef(group=self.group, resource=self.resource)

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of a collection, an object or its subresource, quoted.

        Raises:
            UsageError: a segment cannot be one, or a cluster-scoped resource is given a namespace.
        """
        if namespace and not self.namespaced:
            raise UsageError(f"{self.ref} is cluster-scoped, not in a namespace ({namespace!r})", fix="leave the namespace out")
        root = f"/apis/{_segment(self.group)}" if self.group else "/api"
        parts = [root, _segment(self.version)]
        if namespace:
            parts += ["namespaces", _segment(namespace)]
        parts.append(_segment(self.resource))
        if name:
            parts.append(_segment(name))
        if subresource:
            parts.append(_segment(subresource))
        return "/".join(parts)


def _segment(text: str) -> str:
    if text in (".", "..") or "/" in text or "%" in text:
        raise UsageError(f"{text!r} cannot be a name in Kubernetes")
    return quote(text, safe="")


# --- what the server answers ---------------------------------------------------------------------------------------------


class _Kind(msgspec.Struct):
    kind: str = ""


class _SubDiscovery(msgspec.Struct):
    subresource: str
    verbs: list[str] = []


class _ResourceDiscovery(msgspec.Struct):
    resource: str
    responseKind: _Kind | None = None  # noqa: N815 - the API's own names here and below
    scope: str = "Namespaced"
    verbs: list[str] = []
    subresources: list[_SubDiscovery] = []


class _VersionDiscovery(msgspec.Struct):
    version: str
    resources: list[_ResourceDiscovery] = []
    freshness: str = "Current"


class _Meta(msgspec.Struct, frozen=True):
    name: str = ""


class _GroupDiscovery(msgspec.Struct):
    metadata: _Meta = _Meta()
    versions: list[_VersionDiscovery] = []


class _GroupVersion(msgspec.Struct):
    version: str


class _Group(msgspec.Struct):
    name: str = ""
    versions: list[_GroupVersion] = []
    preferredVersion: _GroupVersion | None = None  # noqa: N815


class _Root(msgspec.Struct):
    """Either form of ``/api`` and ``/apis``."""

    kind: str = ""
    items: list[_GroupDiscovery] = []
    groups: list[_Group] = []
    versions: list[str] = []


class _ListedResource(msgspec.Struct):
    name: str
    kind: str = ""
    namespaced: bool = False
    verbs: list[str] = []


class _ResourceList(msgspec.Struct):
    resources: list[_ListedResource] = []


def parse_aggregated(root: Iterable[_GroupDiscovery]) -> Iterator[ApiResource]:
    """Resources of an aggregated answer, preferred versions first."""
    for group in root:
        for version in group.versions:
            for found in version.resources:
                yield ApiResource(
                    group=group.metadata.name,
                    version=version.version,
                    resource=found.resource,
                    kind=found.responseKind.kind if found.responseKind else "",
                    namespaced=found.scope == "Namespaced",
                    verbs=frozenset(found.verbs),
                    subresources={sub.subresource: frozenset(sub.verbs) for sub in found.subresources},
                )


def parse_resource_list(group: str, version: str, listed: Iterable[_ListedResource]) -> Iterator[ApiResource]:
    """Resources of one ``APIResourceList``; subresources (``deployments/scale``) join their parent."""
    rows = list(listed)
    subresources: dict[str, dict[str, frozenset[str]]] = {}
    for row in rows:
        parent, slash, sub = row.name.partition("/")
        if slash:
            subresources.setdefault(parent, {})[sub] = frozenset(row.verbs)
    for row in rows:
        if "/" not in row.name:
            subs = subresources.get(row.name, {})
            yield ApiResource(group, version, row.name, row.kind, row.namespaced, frozenset(row.verbs), subs)


class Discovery:
    """The resources of one cluster, as last loaded.

    Attributes:
        errors: group (or group/version) → why it is missing.
        version: of the API server, e.g. ``v1.37.2``; empty before the first load.
    """

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}
        self.version = ""
        self._resources: dict[tuple[str, str], ApiResource] = {}

    async def load(self, session: KubeSession) -> None:
        """Ask the server; on failure what was known before stays.

        Raises:
            KubeError: the server cannot be asked at all.
        """
        errors: dict[str, str] = {}
        version = await session.json("GET", "/version")
        core, groups = await asyncio.gather(_load_root(session, "/api", errors), _load_root(session, "/apis", errors))
        resources: dict[tuple[str, str], ApiResource] = {}
        for resource in (*core, *groups):
            resources.setdefault((resource.group, resource.resource), resource)
        self.version = str(version.get("gitVersion", "")) if isinstance(version, dict) else ""
        self._resources, self.errors = resources, errors

    def __iter__(self) -> Iterator[ApiResource]:
        return iter(self._resources.values())

    def __len__(self) -> int:
        return len(self._resources)

    def find(self, ref: ResourceRef) -> ApiResource | None:
        """The resource, or None when the cluster does not have it."""
        return self._resources.get((ref.group, ref.resource))

    def resource(self, ref: ResourceRef) -> ApiResource:
        """The resource.

        Raises:
            KubeNotFound: the cluster does not have it.
        """
        found = self.find(ref)
        if found is None:
            why = self.errors.get(ref.group)
            raise KubeNotFound(
                f"the cluster has no resource {ref}" + (f" (its group does not answer: {why})" if why else ""),
                status=404,
                fix="see `kubectl api-resources`",
            )
        return found

    def of_kind(self, api_version: str, kind: str) -> ApiResource:
        """The resource whose objects carry this ``apiVersion`` (its group counts) and ``kind``.

        Raises:
            KubeNotFound: the cluster does not have it.
        """
        group = api_version.partition("/")[0] if "/" in api_version else ""
        for resource in self._resources.values():
            if resource.kind == kind and resource.group == group:
                return resource
        raise KubeNotFound(f"the cluster has no kind {kind} in {api_version}", status=404, fix="see `kubectl api-resources`")


async def _load_root(session: KubeSession, path: str, errors: dict[str, str]) -> list[ApiResource]:
    answer = await session.request("GET", path, headers={"Accept": _AGGREGATED})
    root = _decode(answer.body, _Root, f"{session.name}: GET {path}")
    if root.kind == "APIGroupDiscoveryList":
        for group in root.items:
            for version in group.versions:
                if version.freshness == "Stale":
                    errors.setdefault(group.metadata.name, f"{version.version}: its server does not answer")
        return list(parse_aggregated(root.items))
    versions = [("", version) for version in root.versions]
    for offer in root.groups:
        preferred = offer.preferredVersion
        ordered = [preferred, *offer.versions] if preferred else offer.versions
        versions += [(offer.name, version) for version in dict.fromkeys(each.version for each in ordered)]
    found = await asyncio.gather(*(_load_version(session, group, version, errors) for group, version in versions))
    return [resource for part in found for resource in part]


async def _load_version(session: KubeSession, group: str, version: str, errors: dict[str, str]) -> list[ApiResource]:
    path = f"/apis/{_segment(group)}/{_segment(version)}" if group else f"/api/{_segment(version)}"
    try:
        answer = await session.request("GET", path)
        listed = _decode(answer.body, _ResourceList, f"{session.name}: GET {path}")
    except KubeError as error:
        errors.setdefault(group, f"{version}: {error.message}")
        return []
    return list(parse_resource_list(group, version, listed.resources))


def _decode(body: bytes, shape: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KubeError(f"discovery answered something else: {error}", where=where) from error
