"""Who asks, and what they may do: bearer tokens, and rules that are RBAC without the objects.

A cluster without any token lets everybody in (benches, quick tests). With tokens, an unknown one is 401, and a token with rules
may do only what a rule allows: 403 in the RBAC authorizer's words, and ``SelfSubjectAccessReview`` answers from the same rules.
"""

from dataclasses import dataclass, field

from ipe_events.testing.fake import status


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed; ``*`` stands for all. ``resources`` holds ``pods`` or ``deployments/scale``.

    Attributes:
        namespaces: where; ``("*",)`` also allows cluster-wide requests, a name only that namespace.
        names: object names; empty allows all.
    """

    verbs: tuple[str, ...]
    resources: tuple[str, ...]
    groups: tuple[str, ...] = ("",)
    namespaces: tuple[str, ...] = ("*",)
    names: tuple[str, ...] = ()

    def allows(self, request: "Access") -> bool:
        """Whether this rule covers the request."""
        resource = f"{request.resource}/{request.subresource}" if request.subresource else request.resource
        return (
            _has(self.verbs, request.verb)
            and _has(self.groups, request.group)
            and _has(self.resources, resource)
            and _has(self.namespaces, request.namespace)
            and (not self.names or request.name in self.names)
        )


def _has(allowed: tuple[str, ...], value: str) -> bool:
    return "*" in allowed or value in allowed


@dataclass(frozen=True, slots=True)
class Access:
    """What a request wants; an empty namespace means the cluster scope."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""


@dataclass(slots=True)
class User:
    """Whom a token stands for. ``rules`` None allows everything."""

    name: str
    groups: tuple[str, ...] = ("system:authenticated",)
    rules: list[Rule] | None = None
    uid: str = ""

    def may(self, access: Access) -> bool:
        """Whether the rules allow it. Discovery, version and reviews of oneself are for everybody."""
        if self.rules is None or access.group in ("authorization.k8s.io", "authentication.k8s.io"):
            return True
        return any(rule.allows(access) for rule in self.rules)


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


@dataclass(slots=True)
class Tokens:
    """The tokens of one cluster."""

    users: dict[str, User] = field(default_factory=dict)

    def user(self, authorization: str) -> User:
        """Whom an ``Authorization`` header stands for.

        Raises:
            StatusError: 401.
        """
        if not self.users:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        user = self.users.get(token.strip())
        if scheme.lower() != "bearer" or user is None:
            raise status.unauthorized()
        return user


def authorize(user: User, access: Access) -> None:
    """Let the request pass.

    Raises:
        StatusError: 403.
    """
    if not user.may(access):
        raise status.forbidden(
            user.name, access.verb, access.group, access.resource,
            name=access.name, namespace=access.namespace, subresource=access.subresource,
        )  # fmt: skip
