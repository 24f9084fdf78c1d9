"""Policies as documents: ``apiVersion``, ``kind``, ``metadata``, ``spec``, shaped like the custom resources they can become.

A handler that wants policies declares their shape and nothing else::

    class SleepSpec(PolicySpec):
        schedule: str

    class SleepPolicy(Policy[SleepSpec]):
        \"\"\"When workloads sleep.\"\"\"

The class name is the kind. Declaring it registers it, so that a file with ``kind: SleepPolicy`` can be read; every spec has a
``select`` and a ``precedence``.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field

from ipe_events.errors import DeclarationError
from ipe_events.policy.selection import Part, Selection

API_VERSION = "ipe.dev/v1alpha1"


class PolicySpec(Part):
    """Root of every policy's ``spec``.

    Attributes:
        select: what the policy applies to.
        precedence: among policies that select one object the highest counts first.
    """

    select: Selection = Selection()
    precedence: int = Field(default=0, ge=-1_000_000, le=1_000_000)


SpecT = TypeVar("SpecT", bound=PolicySpec)
PolicyT = TypeVar("PolicyT", bound="Policy[Any]")


class PolicyMetadata(Part):
    """How a policy is called.

    Attributes:
        name: unique among policies of its kind; a DNS name, as the custom resource needs it.
        labels: for people and tools.
        annotations: likewise.
    """

    name: str = Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    labels: dict[str, str] = Field(default={}, max_length=1_000)
    annotations: dict[str, str] = Field(default={}, max_length=1_000)


class Policy(Part, Generic[SpecT]):
    """Root of every kind of policy; subclass ``Policy[YourSpec]``.

    Attributes:
        api_version: of the document.
        kind: the class name.
        metadata: name, labels, annotations.
        spec: what the policy says.
    """

    kind_name: ClassVar[str] = ""

    api_version: Literal["ipe.dev/v1alpha1"]
    kind: str
    metadata: PolicyMetadata
    spec: SpecT

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: object) -> None:
        if cls.__pydantic_generic_metadata__["origin"] is not None:
            return  # Policy[SleepSpec] is no kind yet
        cls.kind_name = cls.__name__
        known = _KINDS.get(cls.kind_name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise DeclarationError(
                f"policy kind {cls.kind_name} is declared twice, in {known.__module__} and {cls.__module__}",
                fix="rename one class",
            )
        _KINDS[cls.kind_name] = cls

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name


_KINDS: dict[str, type[Policy[Any]]] = {}


def kinds() -> Mapping[str, type[Policy[Any]]]:
    """Every kind that is declared in this process: name → model."""
    return MappingProxyType(_KINDS)


class PolicySet(Generic[PolicyT]):
    """The policies of one kind, in the order in which they count.

    Args:
        policies: of one kind; of two with one name the later replaces the earlier.
    """

    def __init__(self, policies: Iterable[PolicyT] = ()) -> None:
        self._policies = {policy.name: policy for policy in policies}

    def __iter__(self) -> Iterator[PolicyT]:
        return iter(self._policies.values())

    def __len__(self) -> int:
        return len(self._policies)

    def get(self, name: str) -> PolicyT | None:
        """The policy of this name."""
        return self._policies.get(name)

    def with_(self, policy: PolicyT) -> "PolicySet[PolicyT]":
        """A set in which this policy is added or replaced."""
        return PolicySet([*self._policies.values(), policy])

    def without(self, name: str) -> "PolicySet[PolicyT]":
        """A set without the policy of this name, if there was one."""
        return PolicySet(policy for policy in self._policies.values() if policy.name != name)

    def select(self, cluster: str, namespace: str = "", labels: Mapping[str, str] | None = None) -> tuple[PolicyT, ...]:
        """The policies that apply to an object, the one that counts first.

        The order: higher ``precedence``; then the more precise selection (namespace by name before glob before ``*``, with label
        conditions before without, cluster likewise); then the name, so that it never depends on when something was applied.

        Args:
            cluster: the object's cluster.
            namespace: its namespace; empty for a cluster-scoped object.
            labels: its labels.
        """
        found = [policy for policy in self._policies.values() if policy.spec.select.matches(cluster, namespace, labels or {})]

        def rank(policy: PolicyT) -> tuple[int, int, bool, int, str]:
            by_namespace, by_labels, by_cluster = policy.spec.select.precision(cluster, namespace)
            return -policy.spec.precedence, -by_namespace, not by_labels, -by_cluster, policy.name

        return tuple(sorted(found, key=rank))
