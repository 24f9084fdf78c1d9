"""How payloads name Kubernetes objects and resources."""

import re
from typing import Self

from pydantic import Field, field_validator

from ipe_events.errors import UsageError
from ipe_events.events.base import RequestPart

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class ResourceRef(RequestPart):
    """A resource of the API: ``deployments.apps``, ``pods``.

    Attributes:
        group: API group; empty for the core group.
        resource: plural, lower-case name.
    """

    group: str = ""
    resource: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """``deployments.apps`` or ``pods``, as ``kubectl`` writes it.

        Raises:
            UsageError: the text does not name a resource.
        """
        resource, _, group = text.partition(".")
        if not _DNS_LABEL.fullmatch(resource) or (group and not _DNS_NAME.fullmatch(group)) or text.endswith("."):
            raise UsageError(f"{text!r} does not name a resource", fix="write it as `deployments.apps` or `pods`")
        return cls(group=group, resource=resource)

    def __str__(self) -> str:
        return f"{self.resource}.{self.group}" if self.group else self.resource


class ObjectRef(RequestPart):
    """One object of a cluster. Every part is fit to be one segment of an API path, whoever wrote it.

    Attributes:
        group: API group; empty for the core group.
        version: API version that the author saw, e.g. ``v1``; empty: the agent's preferred one.
        resource: plural, lower-case name.
        namespace: empty for cluster-scoped objects.
        name: the object's name.
        uid: the object's uid; empty when the author has none (e.g. an object to be created).
    """

    group: str = Field(default="", max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")
    version: str = Field(default="", max_length=63, pattern=r"^[a-z0-9]*$")
    resource: str = Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    namespace: str = Field(default="", max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    name: str = Field(max_length=1_000, pattern=r"^[^/%\x00-\x1f\x7f]+$")
    uid: str = Field(default="", max_length=253)

    @field_validator("name")
    @classmethod
    def _one_path_segment(cls, name: str) -> str:
        if name in (".", ".."):
            raise ValueError("`.` and `..` are no names of objects")
        return name

    def __str__(self) -> str:
        kind = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.namespace}/{kind}/{self.name}" if self.namespace else f"{kind}/{self.name}"
