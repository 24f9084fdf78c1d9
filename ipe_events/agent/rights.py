"""What an agent's configuration means in Kubernetes rights: the bridge from grants to roles.

RBAC knows neither "what handlers will ask for" nor globs, and rights are never wildcards. So a pattern that names no resource is
an error that says where to name them, and a grant whose namespaces are globs gets its verbs everywhere while the agent's own
checks keep it to those namespaces. Only the modes ``propose`` and ``enforce`` need rights to write.
"""

from collections.abc import Iterable

from ipe_events.agent.config import AgentConfig
from ipe_events.agent.grants import Grant, Mode, resource_matches
from ipe_events.errors import UsageError
from ipe_events.events.refs import ObjectRef, ResourceRef
from ipe_events.kube.rbac import AgentRights, Write

SECRETS = ResourceRef(resource="secrets")


def rights_of(config: AgentConfig) -> AgentRights:
    """The rights that this configuration needs, for ``kube.rbac.manifests``.

    Raises:
        UsageError: a pattern names no single resource; says where.
    """
    collect = _named((*config.collect.resources, *config.collect.always), "collect.resources")
    collect = [each for each in collect if not _denied(each, config.collect.deny)]
    if not config.collect.secrets:
        collect = [each for each in collect if each != SECRETS]
    may_write = config.act.writes is not False
    writes = [write for grant in config.grants for write in _writes(grant) if may_write]
    reads = [ref for grant in config.grants for ref in _named(grant.read, f"{grant.source}: read")]
    return AgentRights(
        collect=tuple(collect),
        read=tuple(reads),
        writes=tuple(writes),
        secrets=config.collect.secrets or SECRETS in reads or any(write.resource == SECRETS for write in writes),
        namespace=config.lease.namespace,
        lease=config.lease.name,
    )


def _writes(grant: Grant) -> list[Write]:
    if grant.mode is Mode.OBSERVE or not grant.verbs:
        return []
    literal = all(name and not set(name) & set("*?[") for name in grant.namespaces)
    namespaces = grant.namespaces if literal else ()
    return [Write(ref, grant.verbs, namespaces) for ref in _named(grant.resources, f"{grant.source}: resources")]


def _named(patterns: Iterable[str], place: str) -> list[ResourceRef]:
    wild = [pattern for pattern in patterns if "*" in pattern]
    if wild:
        raise UsageError(
            f"{wild[0]!r} names no single resource, and rights are never wildcards",
            where=place,
            fix="list the resources, e.g. `deployments.apps`",
        )
    return [ResourceRef.parse(pattern) for pattern in patterns]


def _denied(ref: ResourceRef, patterns: Iterable[str]) -> bool:
    target = ObjectRef(group=ref.group, resource=ref.resource, name="-")
    return any(resource_matches(pattern, target) for pattern in patterns)
