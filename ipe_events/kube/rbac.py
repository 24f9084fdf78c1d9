"""The rights that an agent needs in its cluster, derived from what it is asked to do, and no others.

An agent holds the only Kubernetes credentials of the whole system, so its roles are generated instead of written: one rule per
thing that is collected, answered or granted, never a wildcard, never a verb on Secrets unless somebody asked for Secrets. Reading
and writing are separate roles, so that taking the second binding away turns the agent into an observer. A grant that names its
namespaces becomes a Role in each of them; RBAC knows no globs, so any other grant needs a ClusterRole and the agent's own checks
narrow it. Everything here is pure: names in, manifests out; nobody asks an API server.

What every authenticated identity may do anyway (discovery, ``SelfSubjectReview``, ``SelfSubjectAccessReview``) needs no rule.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ipe_events.errors import UsageError
from ipe_events.events.command import VERBS
from ipe_events.events.refs import ResourceRef

RBAC_GROUP = "rbac.authorization.k8s.io"
PART_OF = {"app.kubernetes.io/part-of": "ipe-events"}

SERVICES: Mapping[str, tuple[str, ...]] = {
    "snapshot": ("list",),
    "get": ("get",),
    "list": ("list",),
    "dryrun": ("get",),
    "metrics": (),
    "whoami": (),
}
"""Per service of an agent the verbs it needs on what is collected; ``metrics`` reads metrics.k8s.io instead. The API server
authorizes a dry run like the write itself: beyond reading, ``dryrun`` works where a grant allows that write."""

COLLECT = ("list", "watch")

COMMANDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "patch": {"": ("get", "patch")},
    "annotate": {"": ("get", "patch")},
    "suspend": {"": ("get", "patch")},
    "scale": {"": ("get",), "/scale": ("patch",)},
    "create": {"": ("get", "create")},
    "delete": {"": ("get", "delete")},
    "apply": {"": ("get", "patch", "create")},
}
"""Per command verb the Kubernetes verbs on the resource (``""``) and its subresources; reading back what was written needs
``get``, and an apply that makes the object needs ``create``."""

Document = dict[str, Any]
Needs = dict[tuple[str, str], set[str]]
"""(group, resource with subresource) → verbs."""


@dataclass(frozen=True, slots=True)
class Write:
    """What grants let handlers do with one resource.

    Attributes:
        resource: the resource.
        verbs: of commands.
        namespaces: literal names; empty: everywhere, cluster-scoped objects included.
    """

    resource: ResourceRef
    verbs: tuple[str, ...]
    namespaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentRights:
    """What one agent is asked to do in its cluster.

    Attributes:
        collect: resources it lists and watches.
        read: resources that handlers may ask it for beyond what is collected.
        writes: what grants in the modes ``propose`` and ``enforce`` allow; ``observe`` needs no rights.
        services: those it offers, of ``SERVICES``.
        secrets: Secrets are meant when they are named.
        name: of the roles, as a prefix.
        namespace: where the agent runs and keeps its Lease.
        service_account: the identity that gets the rights.
        lease: name of the Lease that elects the writer.
        freeze: name of the ConfigMap that stops all acts while the bus is away.
    """

    collect: tuple[ResourceRef, ...]
    read: tuple[ResourceRef, ...] = ()
    writes: tuple[Write, ...] = ()
    services: frozenset[str] = frozenset(SERVICES)
    secrets: bool = False
    name: str = "ipe-agent"
    namespace: str = "ipe-system"
    service_account: str = "ipe-agent"
    lease: str = "ipe-agent"
    freeze: str = "ipe-freeze"


def manifests(rights: AgentRights) -> list[Document]:
    """The roles and their bindings, in an order that can be applied.

    Raises:
        UsageError: a resource is a wildcard, a subresource or (unless ``secrets``) Secrets, or a service or verb does not exist.
    """
    _check(rights)
    roles = [_role(f"{rights.name}-read", "", read_rules(rights))]
    everywhere, local = _write_needs(rights.writes)
    if everywhere:
        roles.append(_role(f"{rights.name}-write", "", _rules(everywhere)))
    roles += [_role(f"{rights.name}-write", namespace, _rules(needs)) for namespace, needs in sorted(local.items())]
    roles.append(_role(f"{rights.name}-own", rights.namespace, own_rules(rights)))
    return [document for role in roles for document in (role, _binding(role, rights))]


def read_rules(rights: AgentRights) -> list[Document]:
    """What the agent reads in the whole cluster: what is collected and answered, and who the cluster is."""
    served = {verb for service in rights.services for verb in SERVICES[service]}
    needs: Needs = {}
    for resource in rights.collect:
        _need(needs, resource.group, resource.resource, {*COLLECT, *served})
    for resource in rights.read:
        _need(needs, resource.group, resource.resource, served)
    if "metrics" in rights.services:
        for name in ("pods", "nodes"):
            _need(needs, "metrics.k8s.io", name, {"get", "list"})
    rules = _rules(needs)
    if "get" not in needs.get(("", "namespaces"), ()):
        # the cluster's identity is the uid of this one namespace
        rules.append(_rule("", ("namespaces",), ("get",), names=("kube-system",)))
    return rules


def own_rules(rights: AgentRights) -> list[Document]:
    """What the agent does in its own namespace: hold the writer's Lease and notice a local freeze."""
    lease = ("coordination.k8s.io", ("leases",))
    return [
        _rule(*lease, ("create",)),  # creating cannot be limited to a name
        _rule(*lease, ("get", "update"), names=(rights.lease,)),
        _rule("", ("configmaps",), ("get",), names=(rights.freeze,)),
    ]


def render(documents: Iterable[Document], header: str = "") -> str:
    """Manifests as one YAML text; ``header`` becomes its first comment."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + "---\n".join(yaml.safe_dump(document, sort_keys=False, width=120) for document in documents)


def _write_needs(writes: Iterable[Write]) -> tuple[Needs, dict[str, Needs]]:
    """What is needed everywhere, and what in single namespaces."""
    everywhere: Needs = {}
    local: dict[str, Needs] = {}
    for write in writes:
        scopes = [local.setdefault(namespace, {}) for namespace in write.namespaces] or [everywhere]
        for needs in scopes:
            for command in write.verbs:
                for subresource, verbs in COMMANDS[command].items():
                    _need(needs, write.resource.group, write.resource.resource + subresource, verbs)
    return everywhere, local


def _need(needs: Needs, group: str, resource: str, verbs: Iterable[str]) -> None:
    needs.setdefault((group, resource), set()).update(verbs)


def _rules(needs: Needs) -> list[Document]:
    """One rule per group and set of verbs, in a fixed order: the same needs make the same text."""
    resources: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (group, resource), verbs in sorted(needs.items()):
        if verbs:
            resources.setdefault((group, tuple(sorted(verbs))), []).append(resource)
    return [_rule(group, names, verbs) for (group, verbs), names in sorted(resources.items())]


def _rule(group: str, resources: Sequence[str], verbs: Sequence[str], names: Sequence[str] = ()) -> Document:
    rule: Document = {"apiGroups": [group], "resources": list(resources)}
    if names:
        rule["resourceNames"] = list(names)
    return {**rule, "verbs": list(verbs)}


def _role(name: str, namespace: str, rules: list[Document]) -> Document:
    """A Role, or a ClusterRole when there is no namespace."""
    metadata: Document = {"name": name, **({"namespace": namespace} if namespace else {}), "labels": dict(PART_OF)}
    kind = "Role" if namespace else "ClusterRole"
    return {"apiVersion": f"{RBAC_GROUP}/v1", "kind": kind, "metadata": metadata, "rules": rules}


def _binding(role: Document, rights: AgentRights) -> Document:
    subject = {"kind": "ServiceAccount", "name": rights.service_account, "namespace": rights.namespace}
    return {
        "apiVersion": f"{RBAC_GROUP}/v1",
        "kind": f"{role['kind']}Binding",
        "metadata": {**role["metadata"], "labels": dict(PART_OF)},
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": role["kind"], "name": role["metadata"]["name"]},
        "subjects": [subject],
    }


def _check(rights: AgentRights) -> None:
    named = [*rights.collect, *rights.read, *(write.resource for write in rights.writes)]
    for resource in named:
        _check_resource(resource, secrets=rights.secrets)
    for service in sorted(rights.services - SERVICES.keys()):
        raise UsageError(f"an agent has no service {service!r}", fix=f"choose among {', '.join(SERVICES)}")
    for write in rights.writes:
        for verb in write.verbs:
            if verb not in COMMANDS:
                raise UsageError(
                    f"commands have no verb {verb!r}", where=str(write.resource), fix=f"choose among {', '.join(VERBS)}"
                )


def _check_resource(resource: ResourceRef, *, secrets: bool) -> None:
    if "*" in resource.resource or "*" in resource.group:
        raise UsageError(
            f"{str(resource)!r} is a wildcard, and rights are never wildcards", fix="name each resource, e.g. `deployments.apps`"
        )
    if "/" in resource.resource:
        raise UsageError(f"{str(resource)!r} is a subresource", fix="name the resource; command verbs imply its subresources")
    if (resource.group, resource.resource) == ("", "secrets") and not secrets:
        raise UsageError("Secrets are left out unless they are asked for by name", fix="ask for Secrets explicitly")
