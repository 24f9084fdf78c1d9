"""``Change``: one Kubernetes object added, modified, deleted or left, decoded only as far as a handler looks.

A change travels as the object's own bytes; subject and headers say what it is. Most handlers look at labels and a few fields of
most changes and throw them away, so nothing is parsed in advance: the subject's tokens, the id's parts, ``metadata`` (a typed
partial decode, a few microseconds for a pod) and the whole ``object`` are each made when first touched and kept.
"""

import re
from datetime import datetime
from typing import Any

import msgspec
import orjson

from ipe_events.errors import SchemaError
from ipe_events.events.headers import header
from ipe_events.events.ids import ChangeId, parse_change_id
from ipe_events.events.message import Message, group_of
from ipe_events.events.refs import ObjectRef, ResourceRef
from ipe_events.subjects import unescape


class OwnerReference(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """Who owns an object."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    controller: bool | None = None


class Metadata(msgspec.Struct, rename="camel", frozen=True):
    """The part of ``metadata`` that handlers ask for most; ``Change.object`` has the rest."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None
    finalizers: list[str] | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None


class _Head(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    metadata: Metadata = Metadata()


_decode = msgspec.json.Decoder(_Head).decode
_decode_metadata = msgspec.json.Decoder(Metadata).decode
_OPENING = re.compile(rb'\{(?:"kind":"([^"\\]*)",)?"apiVersion":"([^"\\]*)",(?:"kind":"([^"\\]*)",)?"metadata":')


_SHORT = 2_048
"""Bytes in which the metadata of an object without managedFields usually ends."""


def _head_of(body: bytes) -> _Head:
    """The head of an object's JSON.

    API servers write kind, apiVersion and metadata first, the long ``managedFields`` last within the metadata, and (mostly) the
    spec next. Where the bytes look like that, only the metadata before either is decoded, a tenth of a pod. An unescaped
    ``,"managedFields":[`` or ``},"spec":`` cannot stand inside a string, and what is cut out must be one whole JSON object: the
    shortcut reads what the long way would, or is not taken.
    """
    opening = _OPENING.match(body)
    if opening:
        start = opening.end()
        end = body.find(b'},"spec":', start, start + _SHORT)
        if end < 0:
            end = body.find(b',"managedFields":[', start)
        if end > 0:
            try:
                metadata = _decode_metadata(body[start:end] + b"}")
            except msgspec.DecodeError:
                pass  # what was found lies deeper; the long way decides what the body is
            else:
                kind = opening[1] or opening[3] or b""
                return _Head(api_version=opening[2].decode(), kind=kind.decode(), metadata=metadata)
    return _decode(body)


class Change(Message):
    """One object's change. Everything is lazy; equality and hash follow the id."""

    __slots__ = ("_head", "_id", "_object", "_tokens")

    def __init__(self, subject: str, header_bytes: bytes, body: bytes) -> None:
        self.subject = subject
        self.header_bytes = header_bytes
        self.body = body

    # --- from the subject ------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> tuple[str, str, str, str, str, int]:
        """Cluster, group, resource, namespace, verb and partition.

        Raises:
            SchemaError: the subject is neither a change's nor a snapshot item's.
        """
        try:
            return self._tokens
        except AttributeError:
            pass
        parts = self.subject.split(".")
        if len(parts) == 8 and parts[1] == "k8s" and parts[7].isdecimal():
            cluster, group, resource, namespace, verb = parts[2:7]
            found = (
                unescape(cluster), group_of(group), unescape(resource), unescape(namespace), unescape(verb), int(parts[7]),
            )  # fmt: skip
        elif len(parts) == 7 and parts[1] == "snap":
            found = (unescape(parts[4]), group_of(parts[5]), unescape(parts[6]), self.metadata.namespace, "added", 0)
        else:
            raise SchemaError(f"subject {self.subject!r} is not a change's")
        self._tokens: tuple[str, str, str, str, str, int] = found
        return found

    @property
    def cluster(self) -> str:
        """The operator's name of the cluster."""
        return self.tokens[0]

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        return self.tokens[1]

    @property
    def resource(self) -> str:
        """Plural name, e.g. ``deployments``."""
        return self.tokens[2]

    @property
    def namespace(self) -> str:
        """Empty for cluster-scoped objects."""
        return self.tokens[3]

    @property
    def verb(self) -> str:
        """``added``, ``modified``, ``deleted`` or ``left`` (no longer matches the selection)."""
        return self.tokens[4]

    @property
    def partition(self) -> int:
        """0–31; an object never changes its partition."""
        return self.tokens[5]

    # --- from the headers ------------------------------------------------------------------------------------------------

    @property
    def change_id(self) -> ChangeId:
        """The parts of the id.

        Raises:
            SchemaError: the id is missing or malformed.
        """
        try:
            return self._id
        except AttributeError:
            pass
        found = parse_change_id(header(self.header_bytes, b"ce-id"))
        self._id: ChangeId = found
        return found

    @property
    def cluster_uid(self) -> str:
        """Uid of the cluster's ``kube-system`` namespace."""
        return self.change_id.cluster_uid

    @property
    def epoch(self) -> int:
        """The cluster's history without rewind."""
        return self.change_id.epoch

    @property
    def uid(self) -> str:
        """The object's uid."""
        return self.change_id.uid

    @property
    def resource_version(self) -> str:
        """Of the object; of the list that no longer held it when a delete is synthetic."""
        return self.change_id.resource_version

    @property
    def kind(self) -> str:
        """E.g. ``Deployment``."""
        return header(self.header_bytes, b"ce-kind") or self._decoded.kind

    @property
    def name(self) -> str:
        """The object's name."""
        return header(self.header_bytes, b"ce-name") or self._decoded.metadata.name

    @property
    def sequence(self) -> int:
        """Number of this change per cluster and resource; 0 when the writer gave none."""
        text = header(self.header_bytes, b"ce-sequence")
        return int(text) if text.isdecimal() else 0

    @property
    def synthetic(self) -> bool:
        """Whether a relist found it rather than the watch."""
        return header(self.header_bytes, b"ce-synthetic") == "true"

    # --- from the body ---------------------------------------------------------------------------------------------------

    @property
    def _decoded(self) -> _Head:
        try:
            return self._head
        except AttributeError:
            pass
        try:
            # a synthetic delete may carry nothing but what its headers say
            head = _head_of(self.body) if self.body else _Head()
        except msgspec.DecodeError as error:
            raise SchemaError(f"the body is not a Kubernetes object: {error}", where=self.subject) from error
        self._head: _Head = head
        return head

    @property
    def version(self) -> str:
        """API version without the group, e.g. ``v1``; empty when the body is."""
        return self._decoded.api_version.rpartition("/")[2]

    @property
    def metadata(self) -> Metadata:
        """Name, labels, annotations, owners, timestamps: a partial decode, far cheaper than ``object``.

        Raises:
            SchemaError: the body is not a Kubernetes object.
        """
        return self._decoded.metadata

    @property
    def labels(self) -> dict[str, str]:
        """``metadata.labels``, empty when there are none."""
        return self._decoded.metadata.labels or {}

    @property
    def annotations(self) -> dict[str, str]:
        """``metadata.annotations``, empty when there are none."""
        return self._decoded.metadata.annotations or {}

    @property
    def object(self) -> dict[str, Any]:
        """The whole object, parsed once; treat it as read-only.

        Raises:
            SchemaError: the body is not a JSON object.
        """
        try:
            return self._object
        except AttributeError:
            pass
        try:
            parsed = orjson.loads(self.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise SchemaError(f"the body is not JSON: {error}", where=self.subject) from error
        if not isinstance(parsed, dict):
            raise SchemaError("the body is not a JSON object", where=self.subject)
        self._object: dict[str, Any] = parsed
        return parsed

    # --- as a whole ------------------------------------------------------------------------------------------------------

    @property
    def ref(self) -> ObjectRef:
        """The object as commands and findings name it."""
        return ObjectRef(
            group=self.group, version=self.version, resource=self.resource,
            namespace=self.namespace, name=self.name, uid=self.uid,
        )  # fmt: skip

    def __str__(self) -> str:
        what = ResourceRef.model_construct(group=self.group, resource=self.resource)
        place = f"{self.namespace}/" if self.namespace else ""
        return f"cluster://{self.cluster}/{what}/{place}{self.name}"

    def __repr__(self) -> str:
        try:
            return f"<Change {self.verb} {self} rv={self.resource_version}>"
        except SchemaError:
            return f"<Change of unreadable form on {self.subject}>"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Change) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)
