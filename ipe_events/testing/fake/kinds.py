"""Which resources the fake serves, as data.

One row per resource: names, scope, verbs, and the three traits that change how a write is treated: whether ``status`` is a
subresource, whether there is a ``scale`` subresource, and whether ``metadata.generation`` counts changes of the spec. Custom
resources join the same table, by ``FakeCluster.add_resource`` or by creating a CustomResourceDefinition.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
CREATE_ONLY = ("create",)
READ_ONLY = ("get", "list")


@dataclass(frozen=True, slots=True)
class Kind:
    """One served resource.

    Attributes:
        scale_selector: path of the label selector that ``/scale`` reports, dotted; empty without one.
        creates_on_update: a PUT of a name that does not exist creates the object.
        custom: defined by a user: list items keep ``kind`` and ``apiVersion``, lists in fields are atomic.
        returns_deleted: an immediate delete answers with the object instead of a ``Status``.
    """

    group: str
    version: str
    resource: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    has_status: bool = False
    has_scale: bool = False
    has_generation: bool = False
    custom: bool = False
    creates_on_update: bool = False
    returns_deleted: bool = False
    scale_selector: str = ""

    @property
    def group_version(self) -> str:
        """``apps/v1``, or ``v1`` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> tuple[str, str]:
        """The key of the resource's table in the store."""
        return self.group, self.resource

    @property
    def qualified(self) -> str:
        """``deployments.apps``, or ``pods`` for the core group."""
        return f"{self.resource}.{self.group}" if self.group else self.resource

    @property
    def qualified_kind(self) -> str:
        """``Deployment.apps``, or ``Pod`` for the core group."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def singular(self) -> str:
        """``deployment``."""
        return self.kind.lower()


def _core(resource: str, kind: str, *short: str, **traits: bool) -> Kind:
    return Kind("", "v1", resource, kind, short_names=short, **traits)  # type: ignore[arg-type]  # only bool traits are passed


def _workload(resource: str, kind: str, *short: str, scale: bool = True) -> Kind:
    return Kind(
        "apps", "v1", resource, kind, short_names=short, categories=("all",), has_status=True, has_generation=True,
        has_scale=scale, scale_selector="spec.selector" if scale else "",
    )  # fmt: skip


def _rbac(resource: str, kind: str, *, namespaced: bool) -> Kind:
    return Kind("rbac.authorization.k8s.io", "v1", resource, kind, namespaced=namespaced, creates_on_update=True)


BUILT_IN: tuple[Kind, ...] = (
    _core("pods", "Pod", "po", has_status=True, has_generation=True, returns_deleted=True),
    _core("namespaces", "Namespace", "ns", namespaced=False, has_status=True, returns_deleted=True),
    _core("nodes", "Node", "no", namespaced=False, has_status=True),
    _core("services", "Service", "svc", has_status=True, returns_deleted=True),
    _core("configmaps", "ConfigMap", "cm"),
    _core("secrets", "Secret"),
    _core("serviceaccounts", "ServiceAccount", "sa", returns_deleted=True),
    _core("resourcequotas", "ResourceQuota", "quota", has_status=True, returns_deleted=True),
    _core("limitranges", "LimitRange", "limits", creates_on_update=True),
    _core("events", "Event", "ev", creates_on_update=True),
    _core("endpoints", "Endpoints", "ep", creates_on_update=True),
    _core("persistentvolumeclaims", "PersistentVolumeClaim", "pvc", has_status=True, returns_deleted=True),
    Kind("", "v1", "replicationcontrollers", "ReplicationController", short_names=("rc",), categories=("all",),
         has_status=True, has_scale=True, has_generation=True, scale_selector="spec.selector"),
    _workload("deployments", "Deployment", "deploy"),
    _workload("replicasets", "ReplicaSet", "rs"),
    _workload("statefulsets", "StatefulSet", "sts"),
    _workload("daemonsets", "DaemonSet", "ds", scale=False),
    Kind("batch", "v1", "jobs", "Job", categories=("all",), has_status=True, has_generation=True),
    Kind("batch", "v1", "cronjobs", "CronJob", short_names=("cj",), categories=("all",), has_status=True, has_generation=True),
    Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", short_names=("hpa",), categories=("all",),
         has_status=True),
    Kind("networking.k8s.io", "v1", "ingresses", "Ingress", short_names=("ing",), has_status=True, has_generation=True),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short_names=("netpol",), has_generation=True),
    _rbac("roles", "Role", namespaced=True),
    _rbac("rolebindings", "RoleBinding", namespaced=True),
    _rbac("clusterroles", "ClusterRole", namespaced=False),
    _rbac("clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", short_names=("pdb",),
         has_status=True, has_generation=True),
    Kind("coordination.k8s.io", "v1", "leases", "Lease", creates_on_update=True),
    Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False,
         short_names=("crd", "crds"), has_status=True, has_generation=True),
    Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False,
         verbs=CREATE_ONLY),
    Kind("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False, verbs=CREATE_ONLY),
)  # fmt: skip

METRICS: tuple[Kind, ...] = (
    Kind("metrics.k8s.io", "v1beta1", "nodes", "NodeMetrics", namespaced=False, verbs=READ_ONLY),
    Kind("metrics.k8s.io", "v1beta1", "pods", "PodMetrics", verbs=READ_ONLY),
)
"""Served only by a cluster that has a metrics server."""


class Registry:
    """The resources that are served now, looked up by path and by ``apiVersion`` and ``kind``."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._by_path: dict[tuple[str, str, str], Kind] = {}
        self._by_kind: dict[tuple[str, str], Kind] = {}
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Serve ``kind`` from now on; an equal path is replaced."""
        self._by_path[kind.group, kind.version, kind.resource] = kind
        self._by_kind[kind.group_version, kind.kind] = kind

    def remove(self, kind: Kind) -> None:
        """Stop serving ``kind``."""
        self._by_path.pop((kind.group, kind.version, kind.resource), None)
        self._by_kind.pop((kind.group_version, kind.kind), None)

    def at(self, group: str, version: str, resource: str) -> Kind | None:
        """The resource at a path, or None."""
        return self._by_path.get((group, version, resource))

    def of(self, api_version: str, kind: str) -> Kind | None:
        """The resource of an object's ``apiVersion`` and ``kind``, or None."""
        return self._by_kind.get((api_version, kind))

    def named(self, resource: str) -> Kind | None:
        """The resource called ``pods``, ``deployments.apps``, or by a unique plural without its group; None when unknown."""
        kinds = list(self._by_path.values())
        exact = [kind for kind in kinds if kind.qualified == resource]
        plural = [kind for kind in kinds if kind.resource == resource]
        found = exact or plural
        return found[0] if found else None

    def __iter__(self) -> Iterator[Kind]:
        return iter(list(self._by_path.values()))
