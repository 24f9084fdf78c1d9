"""What a policy applies to: globs of clusters and namespaces, and labels, as Kubernetes' own selectors read them."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Glob = Annotated[str, Field(min_length=1, max_length=254)]
Text = Annotated[str, Field(max_length=1_000)]


class Part(BaseModel):
    """A part of a policy: camelCase keys as Kubernetes writes them, unknown keys refused, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, allow_inf_nan=False
    )


class Requirement(Part):
    """One condition on a label.

    Attributes:
        key: of the label.
        operator: how its value relates to the values.
        values: for ``In`` and ``NotIn``; empty for the others. A label that is absent is ``NotIn`` everything.
    """

    key: Text = Field(min_length=1)
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[Text, ...] = Field(default=(), max_length=1_000)

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if bool(self.values) is not (self.operator in ("In", "NotIn")):
            raise ValueError(f"operator {self.operator} {'takes no values' if self.values else 'needs values'}")
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet the condition."""
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        return (labels.get(self.key) in self.values) is (self.operator == "In")


class LabelSelector(Part):
    """Conditions on labels; all must hold, none matches everything.

    Attributes:
        match_labels: label → the value it must have.
        match_expressions: further conditions.
    """

    match_labels: dict[Text, Text] = Field(default={}, max_length=1_000)
    match_expressions: tuple[Requirement, ...] = Field(default=(), max_length=1_000)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet all conditions."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )


class Selection(Part):
    """Which objects a policy applies to.

    Attributes:
        clusters: globs of cluster names; ``!`` before one excludes. Only exclusions: everything else.
        namespaces: likewise; a cluster-scoped object has the empty namespace, which ``*`` matches.
        labels: conditions on the object's labels.
    """

    clusters: tuple[Glob, ...] = Field(default=("*",), min_length=1, max_length=1_000)
    namespaces: tuple[Glob, ...] = Field(default=("*",), min_length=1, max_length=1_000)
    labels: LabelSelector = LabelSelector()

    @model_validator(mode="after")
    def _globs_name_something(self) -> Self:
        if "!" in (*self.clusters, *self.namespaces):
            raise ValueError("`!` excludes nothing: write the name or glob after it")
        return self

    def matches(self, cluster: str, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels, in this place, is selected."""
        return _any_matches(self.clusters, cluster) and _any_matches(self.namespaces, namespace) and self.labels.matches(labels)

    def precision(self, cluster: str, namespace: str) -> tuple[int, bool, int]:
        """How narrowly a place is chosen, for the order among policies that match it: namespace, then labels, then cluster."""
        labels = bool(self.labels.match_labels or self.labels.match_expressions)
        return _precision(self.namespaces, namespace), labels, _precision(self.clusters, cluster)


def _any_matches(globs: Iterable[str], name: str) -> bool:
    wanted = [glob for glob in globs if not glob.startswith("!")]
    excluded = any(fnmatchcase(name, glob[1:]) for glob in globs if glob.startswith("!"))
    return not excluded and (not wanted or any(fnmatchcase(name, glob) for glob in wanted))


def _precision(globs: Iterable[str], name: str) -> int:
    """2: named exactly; 1: by a glob that says something; 0: by ``*`` or by exclusions alone."""
    matching = [glob for glob in globs if not glob.startswith("!") and fnmatchcase(name, glob)]
    return 2 if name in matching else 1 if any(glob != "*" for glob in matching) else 0
