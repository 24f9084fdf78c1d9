"""The API server's verbs that write, over the store: what a create, an update, a patch or a delete makes of an object.

Here live the rules that clients depend on without thinking of them: uid and generation, what ``status`` and the main resource
may each change, optimistic concurrency, preconditions, finalizers, dry-run, managedFields, admission. HTTP requests and the
in-process helpers of ``FakeCluster`` both come through ``Operations``, so neither can do what the other cannot.
"""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipe_events.clock import Clock
from ipe_events.testing.fake import fields, rules, shapes, status
from ipe_events.testing.fake.admission import Quotas
from ipe_events.testing.fake.kinds import Kind, Registry
from ipe_events.testing.fake.patch import apply_patch
from ipe_events.testing.fake.store import Item, ObjectKey, Store

JsonObject = dict[str, Any]
Observer = Callable[[Kind, "JsonObject | None", "JsonObject | None"], None]
"""Called after a write with (kind, before, after)."""

_SERVER_OWNED = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName")
_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How to write.

    Attributes:
        manager: the field manager recorded in managedFields.
        trusted: an in-process helper's write: it may set ``status`` together with the rest and change immutable fields, as if
            the controllers of a real cluster had done it in the same moment.
    """

    manager: str = "unknown"
    dry_run: bool = False
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """How to delete: preconditions (empty: none) and dry-run."""

    uid: str = ""
    rv: str = ""
    dry_run: bool = False


class Operations:
    """Writes of one cluster.

    Args:
        store: where the objects live.
        registry: which kinds exist.
        clock: dates creation, deletion and managedFields.
        seed: of generated names and uids, so that a run can be repeated.
    """

    def __init__(self, store: Store, registry: Registry, clock: Clock, *, seed: int | str = 0) -> None:
        self.store = store
        self.registry = registry
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - names of simulated objects, repeatable by seed
        self.quotas = Quotas(self)
        self.observers: list[Observer] = []

    # --- create ---

    def create(self, kind: Kind, namespace: str, obj: JsonObject, options: WriteOptions) -> JsonObject:
        """Create ``obj`` and return it as stored.

        Raises:
            StatusError: 400, 403, 404, 409 or 422.
        """
        new = self._admissible(kind, namespace, obj)
        metadata = new["metadata"]
        key = self._key(kind, metadata)
        if kind.namespaced:
            self._check_namespace(kind, key)
        rules.check_metadata(kind, metadata)
        for field in (*_SERVER_OWNED[:5], "resourceVersion", "managedFields"):
            metadata.pop(field, None)
        metadata["uid"] = self._new_uid()
        metadata["creationTimestamp"] = self.timestamp()
        if kind.has_generation:
            metadata["generation"] = 1
        if kind.has_status and not options.trusted:
            new.pop("status", None)
        rules.set_defaults(kind, new)
        self.quotas.check(kind, key, new)
        if self.store.get(kind.group_resource, key) is not None:
            raise status.already_exists(kind, key[1])
        metadata["managedFields"] = self._managed([], kind, {}, new, options, "")
        if options.dry_run:
            return new
        return self.commit(kind, key, None, new)

    def _admissible(self, kind: Kind, namespace: str, obj: Any, *, patched: bool = False) -> JsonObject:
        """A private copy whose kind, namespace, metadata and types fit the request; ``patched``: the client sent a patch."""
        if not isinstance(obj, dict):
            raise status.bad_request(f"the object provided is unrecognized (must be of type {kind.kind}): no JSON object")
        new = rules.copy(obj)
        given = new.setdefault("apiVersion", kind.group_version), new.setdefault("kind", kind.kind)
        if given != (kind.group_version, kind.kind):
            raise status.bad_request(f"{given[1]} in version {given[0]!r} cannot be handled as a {kind.kind}: unknown conversion")
        shapes.fit(kind, new, patched=patched)
        metadata: JsonObject = new.setdefault("metadata", {})
        if kind.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                raise status.bad_request("the namespace of the provided object does not match the namespace sent on the request")
        else:
            metadata.pop("namespace", None)
        return new

    def _key(self, kind: Kind, metadata: JsonObject) -> ObjectKey:
        if metadata.get("resourceVersion"):
            raise status.StatusError(500, "", "resourceVersion should not be set on objects to be created")
        if not metadata.get("name"):
            prefix = metadata.get("generateName")
            if not prefix or not isinstance(prefix, str):
                cause = ("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")
                raise status.invalid(kind, "", cause)
            metadata["name"] = prefix + "".join(self._random.choices(_NAME_ALPHABET, k=5))
        return metadata.get("namespace", ""), metadata["name"]

    def _check_namespace(self, kind: Kind, key: ObjectKey) -> None:
        namespace, name = key
        namespaces = self.registry.at("", "v1", "namespaces")
        found = self.store.get(("", "namespaces"), ("", namespace))
        if namespaces is None or found is None:
            missing = namespaces or kind
            raise status.not_found(missing, namespace)
        if "deletionTimestamp" in found.obj["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            raise status.refused_by_admission(kind, name, why, [cause])

    # --- update ---

    def update(self, kind: Kind, key: ObjectKey, obj: JsonObject, options: WriteOptions, subresource: str = "") -> JsonObject:
        """Replace the object, or only its status, with what ``obj`` says; returns it as stored.

        Raises:
            StatusError: 400, 404, 409 or 422.
        """
        self.existing(kind, key)
        new = self._admissible(kind, key[0], obj)
        metadata = new["metadata"]
        if metadata.setdefault("name", key[1]) != key[1]:
            raise _other_name(metadata["name"], key[1])
        if not metadata.get("resourceVersion") and rules.needs_resource_version(kind):
            raise status.must_name_version(kind, key[1])
        return self.replace(kind, key, new, options, subresource)

    def patch(
        self, kind: Kind, key: ObjectKey, content_type: str, body: bytes, options: WriteOptions, subresource: str = ""
    ) -> JsonObject:
        """Apply a merge or JSON patch to the object, or to only its status; returns it as stored.

        Raises:
            StatusError: 400, 404, 409, 415 or 422.
        """
        old = self.existing(kind, key)
        patched = apply_patch(old.obj, content_type, body)
        new = self._admissible(kind, key[0], patched, patched=True)
        if new["metadata"].get("name") != key[1]:
            raise _other_name(new["metadata"].get("name"), key[1])
        if (uid := new["metadata"].get("uid")) and uid != old.obj["metadata"]["uid"]:
            cause = ("metadata.uid", "FieldValueInvalid", f'Invalid value: "{uid}": field is immutable')
            raise status.invalid(kind, key[1], cause)
        return self.replace(kind, key, new, options, subresource)

    def replace(self, kind: Kind, key: ObjectKey, new: JsonObject, options: WriteOptions, subresource: str = "") -> JsonObject:
        """Put ``new``, a private copy that names the right object, in the place of the stored one; returns it as stored.

        Raises:
            StatusError: 404, 409 or 422.
        """
        before, metadata = self.existing(kind, key).obj, new["metadata"]
        found = before["metadata"]["uid"]
        if (uid := metadata.get("uid")) and uid != found:
            raise status.conflict(kind, key[1], f"Precondition failed: UID in precondition: {uid}, UID in object meta: {found}")
        if (rv := metadata.get("resourceVersion")) and rv != before["metadata"]["resourceVersion"]:
            raise status.conflict(kind, key[1])
        if subresource == "status":
            annotations = new["metadata"].get("annotations")
            metadata = dict(before["metadata"])
            if not kind.custom and annotations is not None:  # the built-in kinds let controllers annotate with the status
                metadata["annotations"] = annotations
            given = {"status": new["status"]} if "status" in new else {}
            new = {k: v for k, v in before.items() if k != "status"} | {"metadata": metadata} | given
        else:
            self._keep_server_fields(kind, before, new, keep_status=not options.trusted)
            rules.check_metadata(kind, metadata)
            rules.set_defaults(kind, new)
            if not options.trusted:
                rules.check_update(kind, key[1], before, new)
        if kind.has_generation and rules.bumps_generation(kind, before, new):
            metadata["generation"] = before["metadata"].get("generation", 0) + 1
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
        metadata["managedFields"] = before["metadata"].get("managedFields", [])
        if new == before:
            return before
        metadata["managedFields"] = self._managed(metadata["managedFields"], kind, before, new, options, subresource)
        if options.dry_run:
            return new
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and before["metadata"].get("finalizers"):
            return self._remove(kind, key, new)
        return self.commit(kind, key, before, new)

    def _keep_server_fields(self, kind: Kind, before: JsonObject, new: JsonObject, *, keep_status: bool) -> None:
        metadata = new["metadata"]
        for field in _SERVER_OWNED:
            metadata.pop(field, None)
            if field in before["metadata"]:
                metadata[field] = before["metadata"][field]
        if kind.has_status and keep_status:
            new.pop("status", None)
            if "status" in before:
                new["status"] = before["status"]

    # --- delete ---

    def delete(self, kind: Kind, key: ObjectKey, options: DeleteOptions) -> tuple[JsonObject, bool]:
        """Delete, or mark as being deleted while finalizers hold it; returns (the object, whether it is gone).

        Raises:
            StatusError: 404 or 409.
        """
        old = self.existing(kind, key)
        metadata = old.obj["metadata"]
        if options.uid and options.uid != metadata["uid"]:
            raise status.precondition_failed(kind, key[1], "UID", options.uid, metadata["uid"])
        if options.rv and options.rv != metadata["resourceVersion"]:
            raise status.precondition_failed(kind, key[1], "ResourceVersion", options.rv, metadata["resourceVersion"])
        if options.dry_run:
            return old.obj, True
        if kind.group_resource == ("", "namespaces"):
            return self._delete_namespace(kind, key, old.obj), False
        if not metadata.get("finalizers"):
            return self._remove(kind, key), True
        if "deletionTimestamp" in metadata:
            return old.obj, False
        return self._mark_deleted(kind, key, old.obj), False

    def _mark_deleted(self, kind: Kind, key: ObjectKey, before: JsonObject, **more: Any) -> JsonObject:
        metadata = before["metadata"] | {"deletionTimestamp": self.timestamp(), "deletionGracePeriodSeconds": 0}
        if kind.has_generation:
            metadata["generation"] = metadata.get("generation", 0) + 1
        return self.commit(kind, key, before, before | {"metadata": metadata} | more)

    def _delete_namespace(self, kind: Kind, key: ObjectKey, before: JsonObject) -> JsonObject:
        if key[1] in rules.UNDELETABLE_NAMESPACES:
            raise status.refused_by_admission(kind, key[1], "this namespace may not be deleted")
        marked = before
        if "deletionTimestamp" not in before["metadata"]:
            phase = {"status": {**before.get("status", {}), "phase": "Terminating"}}
            marked = self._mark_deleted(kind, key, before, **phase)
        for content in self.registry:
            if content.namespaced:
                for inner, _ in self.store.items(content.group_resource, key[1]):
                    self.delete(content, inner, DeleteOptions())
        self._finish_namespace(key[1])
        return marked

    def _finish_namespace(self, name: str) -> None:
        """Let a namespace that is being deleted go once nothing is left in it."""
        namespaces = self.registry.at("", "v1", "namespaces")
        item = self.store.get(("", "namespaces"), ("", name))
        if namespaces is None or item is None or "deletionTimestamp" not in item.obj["metadata"]:
            return
        empty = not any(self.store.items(kind.group_resource, name) for kind in self.registry if kind.namespaced)
        if empty and not item.obj["metadata"].get("finalizers"):
            self._remove(namespaces, ("", name))

    def _remove(self, kind: Kind, key: ObjectKey, last: JsonObject | None = None) -> JsonObject:
        """The object goes; the delete event shows ``last``, or what is stored."""
        gone = self.store.remove(kind.group_resource, key, last).obj
        self.quotas.settle(kind, key, gone, None)
        for observer in self.observers:
            observer(kind, gone, None)
        if kind.namespaced:
            self._finish_namespace(key[0])
        return gone

    # --- shared ---

    def existing(self, kind: Kind, key: ObjectKey) -> Item:
        """The stored item.

        Raises:
            StatusError: 404.
        """
        item = self.store.get(kind.group_resource, key)
        if item is None:
            raise status.not_found(kind, key[1])
        return item

    def commit(self, kind: Kind, key: ObjectKey, before: JsonObject | None, new: JsonObject) -> JsonObject:
        """Store ``new`` as it is and tell quotas and observers; the last step of every write."""
        stored = self.store.put(kind.group_resource, key, new).obj
        self.quotas.settle(kind, key, before, stored)
        for observer in self.observers:
            observer(kind, before, stored)
        return stored

    def timestamp(self) -> str:
        """Now, as Kubernetes writes times: whole seconds."""
        return self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def _new_uid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _managed(
        self, entries: list[JsonObject], kind: Kind, old: JsonObject, new: JsonObject, options: WriteOptions, subresource: str
    ) -> list[JsonObject]:
        return fields.after_update(
            entries, old, new, manager=options.manager, api_version=kind.group_version, subresource=subresource,
            time=self.timestamp(), custom=kind.custom,
        )  # fmt: skip


def _other_name(given: object, expected: str) -> status.StatusError:
    return status.bad_request(f"the name of the object ({given}) does not match the name on the URL ({expected})")
