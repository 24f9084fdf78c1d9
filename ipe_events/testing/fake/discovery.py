"""Discovery documents, made from the registry: the aggregated form (v2) and the classic lists."""

from typing import Any

from ipe_events.testing.fake.kinds import Kind, Registry

JsonObject = dict[str, Any]

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def groups(registry: Registry) -> dict[str, dict[str, list[Kind]]]:
    """Group → version → kinds, in the order in which they were registered."""
    found: dict[str, dict[str, list[Kind]]] = {}
    for kind in registry:
        found.setdefault(kind.group, {}).setdefault(kind.version, []).append(kind)
    return found


def aggregated(registry: Registry, *, core: bool) -> JsonObject:
    """``/api`` (core) or ``/apis`` as an APIGroupDiscoveryList."""
    items = []
    for group, versions in groups(registry).items():
        if (group == "") is core:
            listed = [
                {"version": version, "resources": [_aggregated_resource(kind) for kind in kinds], "freshness": "Current"}
                for version, kinds in versions.items()
            ]
            items.append({"metadata": {"name": group} if group else {}, "versions": listed})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _aggregated_resource(kind: Kind) -> JsonObject:
    resource: JsonObject = {
        "resource": kind.resource,
        "responseKind": _response_kind(kind),
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        resource["shortNames"] = list(kind.short_names)
    if kind.categories:
        resource["categories"] = list(kind.categories)
    if subresources := [_aggregated_subresource(kind, name) for name in _subresources(kind)]:
        resource["subresources"] = subresources
    return resource


def _response_kind(kind: Kind) -> JsonObject:
    """Built-in kinds leave group and version empty: they are those of the list that the resource stands in."""
    group, version = (kind.group, kind.version) if kind.custom else ("", "")
    return {"group": group, "version": version, "kind": kind.kind}


def _aggregated_subresource(kind: Kind, name: str) -> JsonObject:
    response = _response_kind(kind)
    if name == "scale":
        response = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
    return {"subresource": name, "responseKind": response, "verbs": ["get", "patch", "update"]}


def _subresources(kind: Kind) -> list[str]:
    return [name for name, there in (("scale", kind.has_scale), ("status", kind.has_status)) if there]


def api_versions() -> JsonObject:
    """``/api`` in the classic form."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def api_group_list(registry: Registry) -> JsonObject:
    """``/apis`` in the classic form."""
    listed = [_group(group, list(versions)) for group, versions in groups(registry).items() if group]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}


def api_group(registry: Registry, group: str) -> JsonObject | None:
    """``/apis/<group>``, or None."""
    versions = groups(registry).get(group)
    return {"kind": "APIGroup", "apiVersion": "v1"} | _group(group, list(versions)) if versions else None


def _group(group: str, versions: list[str]) -> JsonObject:
    listed = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": listed, "preferredVersion": listed[0]}


def api_resource_list(registry: Registry, group: str, version: str) -> JsonObject | None:
    """``/api/v1`` or ``/apis/<group>/<version>`` in the classic form, or None."""
    kinds = groups(registry).get(group, {}).get(version)
    if kinds is None:
        return None
    resources = [entry for kind in kinds for entry in _classic(kind)]
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _classic(kind: Kind) -> list[JsonObject]:
    entry: JsonObject = {"name": kind.resource, "singularName": kind.singular, "namespaced": kind.namespaced}
    entry |= {"kind": kind.kind, "verbs": list(kind.verbs)}
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    entries = [entry]
    for name in _subresources(kind):
        sub: JsonObject = {"name": f"{kind.resource}/{name}", "singularName": "", "namespaced": kind.namespaced}
        if name == "scale":
            sub |= {"group": "autoscaling", "version": "v1"}
        sub |= {"kind": "Scale" if name == "scale" else kind.kind, "verbs": ["get", "patch", "update"]}
        entries.append(sub)
    return entries
