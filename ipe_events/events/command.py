"""Commands: what a handler wants done in a cluster.

A handler publishes a command on ``ipe.cmd.<cluster>.<handler>.<verb>``; the agent of that cluster reads it strictly, checks it
against the cluster's own grants and guardrails, and answers with one ``Outcome``. Target, action, precondition, reason, cause and
expiry travel with it, so that the agent needs to ask nobody and an auditor sees the whole intent.
"""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ipe_events.events.base import Name, Request, RequestPart
from ipe_events.events.refs import ObjectRef
from ipe_events.subjects import COMMAND, Topic

VERBS = ("patch", "scale", "suspend", "annotate", "create", "delete", "apply")
"""The verbs an agent can carry out; also the last token of a command's subject."""

Verb = Literal["patch", "scale", "suspend", "annotate", "create", "delete", "apply"]


Pointer = Annotated[str, Field(max_length=4_000, pattern=r"^(/([^/~]|~[01])*)*$")]
"""An RFC 6901 JSON pointer."""


class PatchOperation(RequestPart):
    """One operation of an RFC 6902 JSON Patch; ``test`` operations are the precondition.

    ``add``, ``replace`` and ``test`` carry a ``value`` (null is one), ``move`` and ``copy`` a ``from``, and none of them the
    other's; it is written in exactly that form.
    """

    op: Literal["add", "remove", "replace", "move", "copy", "test"]
    path: Pointer
    value: Any = None
    from_: Pointer | None = Field(default=None, alias="from")

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for field, name, wanted in (("value", "value", self._takes_value), ("from_", "from", self._takes_from)):
            if wanted and field not in self.model_fields_set:
                raise ValueError(f"operation {self.op!r} needs {name!r}")
            if not wanted and getattr(self, field) is not None:
                raise ValueError(f"operation {self.op!r} has no {name!r}")
        if self._takes_from and self.from_ is None:
            raise ValueError(f"operation {self.op!r} needs a pointer in 'from'")
        return self

    @property
    def _takes_value(self) -> bool:
        return self.op in ("add", "replace", "test")

    @property
    def _takes_from(self) -> bool:
        return self.op in ("move", "copy")

    @model_serializer(mode="wrap")
    def _rfc_form(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = set() if self._takes_value else {"value"}
        if not self._takes_from:
            absent |= {"from", "from_"}
        return {key: value for key, value in handler(self).items() if key not in absent}


class Patch(RequestPart):
    """Change fields by a JSON Patch, guarded by its own ``test`` operations."""

    verb: Literal["patch"] = "patch"
    operations: tuple[PatchOperation, ...] = Field(min_length=1, max_length=500)


class Scale(RequestPart):
    """Set the number of replicas through ``/scale``."""

    verb: Literal["scale"] = "scale"
    replicas: int = Field(ge=0, le=1_000_000)


class Suspend(RequestPart):
    """Set ``spec.suspend`` (CronJobs, Jobs) to the given value."""

    verb: Literal["suspend"] = "suspend"
    suspended: bool = True


class Annotate(RequestPart):
    """Set annotations; None removes one."""

    verb: Literal["annotate"] = "annotate"
    annotations: dict[str, str | None] = Field(min_length=1, max_length=500)


class Create(RequestPart):
    """Create the object; an object of that name makes the command fail."""

    verb: Literal["create"] = "create"
    manifest: dict[str, Any]


class Delete(RequestPart):
    """Delete the object; the precondition should carry its uid."""

    verb: Literal["delete"] = "delete"
    propagation: Literal["Background", "Foreground", "Orphan"] = "Background"


class Apply(RequestPart):
    """Server-side apply of the **full** set of fields that this handler owns in the object."""

    verb: Literal["apply"] = "apply"
    manifest: dict[str, Any]
    force: bool = False


Action = Annotated[Patch | Scale | Suspend | Annotate | Create | Delete | Apply, Field(discriminator="verb")]


class Precondition(RequestPart):
    """What must still hold when the agent writes.

    Attributes:
        uid: of the object; empty: any.
        values: JSON pointer → the value the author saw; None also stands for "absent".
        resource_version: the exact version the author saw; empty: any.
    """

    uid: str = ""
    values: dict[Pointer, Any] = Field(default={}, max_length=500)
    resource_version: str = ""


class Command(Request):
    """What a handler wants done.

    Attributes:
        id: unique and deterministic (``derived_id``): a redelivered input makes the same command.
        handler: its author; equals the subject's token.
        cluster: where; equals the subject's token.
        target: the object.
        action: what to do with it; ``action.verb`` equals the subject's token.
        precondition: what must still hold.
        reason: for people, one sentence.
        cause: id of the event that made the handler ask.
        hops: how many commands led to this one; the agent refuses long chains as loops.
        issued: when the author made it.
        expires: not carried out after this.
        lease: when the effect shall end by itself; absent: it stays.
        dry_run: only ask the API server what would happen.
        schema_version: of this model.
    """

    topic: ClassVar[Topic] = COMMAND
    type_name: ClassVar[str] = "command"

    id: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_-]+$")
    handler: str = Field(min_length=1, max_length=100)
    cluster: Name
    target: ObjectRef
    action: Action
    precondition: Precondition = Precondition()
    reason: str = Field(min_length=1, max_length=2_000)
    cause: str = Field(default="", max_length=1_000)
    hops: int = Field(default=1, ge=1, le=1_000)
    issued: AwareDatetime
    expires: AwareDatetime
    lease: AwareDatetime | None = None
    dry_run: bool = False
    schema_version: Literal[1] = 1

    def expired(self, now: datetime) -> bool:
        """Whether it is too late to carry this out."""
        return now >= self.expires
