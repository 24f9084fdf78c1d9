"""``Commands``: what a handler wants done in a cluster.

A handler has seen an object and wants it changed *if it is still so*: the command carries the object's uid and the values seen at
the touched paths, as ``test`` operations and as a precondition, so that the agent writes over nobody's newer change. Ids are
deterministic: an event that is handled twice asks once.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ipe_events.declaration import injectable
from ipe_events.durations import seconds
from ipe_events.errors import UsageError
from ipe_events.events.change import Change
from ipe_events.events.command import (
    Action,
    Annotate,
    Apply,
    Command,
    Create,
    Delete,
    Patch,
    PatchOperation,
    Precondition,
    Scale,
    Suspend,
)
from ipe_events.events.refs import ObjectRef
from ipe_events.objects import paths
from ipe_events.runtime.outbox import Call

Target = Change | ObjectRef
Duration = str | float | timedelta

REMOVED: Any = None
"""As a value in ``patch``: the field is taken away."""


@injectable
class Commands:
    """Publishes commands in this handler's name; injected by type.

    Every method publishes one command and returns it. Common arguments: ``reason`` for people; ``expires``: not carried out later
    than this after now; ``lease``: after which the effect gives itself back; ``dry_run``: only ask what would happen (default:
    the handler's option); ``cluster``: where, needed only when neither target nor event says it.

    Raises (all methods):
        UsageError: an argument makes no sense.
        BusError: the command is not stored.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    async def patch(
        self,
        target: Target,
        changes: Mapping[str, Any],
        *,
        reason: str,
        expect: Mapping[str, Any] | None = None,
        expires: Duration = "10m",
        lease: Duration | None = None,
        dry_run: bool | None = None,
        cluster: str = "",
    ) -> Command:
        """Set fields: JSON pointer → new value; None removes a field.

        Args:
            target: the change that was seen (its values become the guard), or an object.
            changes: e.g. ``{"/spec/replicas": 50}``.
            reason: one sentence for people.
            expect: values that must hold besides, or instead of what the change shows.
            expires: see the class.
            lease: see the class.
            dry_run: see the class.
            cluster: see the class.
        """
        operations, values = guarded_patch(target.object if isinstance(target, Change) else None, changes, expect or {})
        return await self._send(
            target, Patch(operations=operations), reason, values, expires, lease, dry_run=dry_run, cluster=cluster
        )

    async def scale(
        self,
        target: Target,
        replicas: int,
        *,
        reason: str,
        expires: Duration = "10m",
        lease: Duration | None = None,
        dry_run: bool | None = None,
        cluster: str = "",
    ) -> Command:
        """Set the number of replicas, if it is still the number that was seen."""
        values = _seen(target, "/spec/replicas")
        return await self._send(
            target, Scale(replicas=replicas), reason, values, expires, lease, dry_run=dry_run, cluster=cluster
        )

    async def suspend(
        self,
        target: Target,
        suspended: bool = True,
        *,
        reason: str,
        expires: Duration = "10m",
        lease: Duration | None = None,
        dry_run: bool | None = None,
        cluster: str = "",
    ) -> Command:
        """Suspend (or resume) a CronJob or Job."""
        values = _seen(target, "/spec/suspend")
        return await self._send(
            target, Suspend(suspended=suspended), reason, values, expires, lease, dry_run=dry_run, cluster=cluster
        )

    async def annotate(
        self,
        target: Target,
        annotations: Mapping[str, str | None],
        *,
        reason: str,
        expires: Duration = "10m",
        lease: Duration | None = None,
        dry_run: bool | None = None,
        cluster: str = "",
    ) -> Command:
        """Set annotations; None removes one."""
        action = Annotate(annotations=dict(annotations))
        return await self._send(target, action, reason, {}, expires, lease, dry_run=dry_run, cluster=cluster)

    async def create(
        self,
        target: ObjectRef,
        manifest: Mapping[str, Any],
        *,
        reason: str,
        expires: Duration = "10m",
        lease: Duration | None = None,
        dry_run: bool | None = None,
        cluster: str = "",
    ) -> Command:
        """Create the object; fails when there is one of that name."""
        action = Create(manifest=dict(manifest))
        return await self._send(target, action, reason, {}, expires, lease, dry_run=dry_run, cluster=cluster)

    async def delete(
        self, target: Target, *, reason: str, expires: Duration = "10m", dry_run: bool | None = None, cluster: str = ""
    ) -> Command:
        """Delete the object; the uid that was seen guards against deleting its successor."""
        return await self._send(target, Delete(), reason, {}, expires, None, dry_run=dry_run, cluster=cluster)

    async def apply(
        self,
        target: Target,
        manifest: Mapping[str, Any],
        *,
        reason: str,
        force: bool = False,
        expires: Duration = "10m",
        lease: Duration | None = None,
        dry_run: bool | None = None,
        cluster: str = "",
    ) -> Command:
        """Server-side apply of the **full** set of fields that this handler owns: what it leaves out is removed."""
        action = Apply(manifest=dict(manifest), force=force)
        return await self._send(target, action, reason, {}, expires, lease, dry_run=dry_run, cluster=cluster)

    async def _send(
        self,
        target: Target,
        action: Action,
        reason: str,
        values: Mapping[str, Any],
        expires: Duration,
        lease: Duration | None,
        *,
        dry_run: bool | None,
        cluster: str,
    ) -> Command:
        call = self._call
        ref = target.ref if isinstance(target, Change) else target
        where = cluster or (target.cluster if isinstance(target, Change) else call.meta.cluster)
        if not where:
            raise UsageError(f"no cluster is known for {ref}", fix="pass cluster=")
        if not reason.strip():
            raise UsageError(f"a command on {ref} needs a reason", fix="one sentence for people")
        now = call.outbox.clock.now()
        command = Command(
            id=call.next_id(action.verb, where, str(ref)),
            handler=call.handler,
            cluster=where,
            target=ref,
            action=action,
            precondition=Precondition(uid=ref.uid, values=dict(values)),
            reason=reason,
            cause=call.meta.id,
            hops=call.meta.hops + 1,
            issued=now,
            expires=_moment(now, expires, "expires"),
            lease=None if lease is None else _moment(now, lease, "lease"),
            dry_run=call.dry_run if dry_run is None else dry_run,
        )
        await call.outbox.publish(call, command)
        return command


def guarded_patch(
    seen: Mapping[str, Any] | None, changes: Mapping[str, Any], expect: Mapping[str, Any]
) -> tuple[tuple[PatchOperation, ...], dict[str, Any]]:
    """Operations and precondition of a patch.

    Args:
        seen: the object as it was; None when only the target's name is known.
        changes: JSON pointer → new value, None to remove.
        expect: JSON pointer → value that must hold; None stands for "absent".

    Returns:
        The operations, each replacement preceded by a ``test`` of the value seen, and pointer → expected value.

    Raises:
        UsageError: no change, a malformed pointer, or a field to remove that is not there.
    """
    if not changes:
        raise UsageError("a patch without changes", fix='{"/spec/replicas": 50}')
    operations: list[PatchOperation] = []
    values = dict(expect)
    for path, value in expect.items():
        if value is not None:
            operations.append(PatchOperation(op="test", path=path, value=value))
    for path, value in changes.items():
        if seen is None:
            paths.parse(path)
            operations.append(PatchOperation(op="remove" if value is None else "add", path=path, value=value))
            continue
        if paths.has(seen, path):
            old = paths.get(seen, path)
            if path not in expect:
                operations.append(PatchOperation(op="test", path=path, value=old))
                values[path] = old
            operations.append(PatchOperation(op="remove" if value is None else "replace", path=path, value=value))
        elif value is None:
            raise UsageError(f"{path} is not in the object, so it cannot be removed")
        else:
            values.setdefault(path, None)
            operations.append(_add(seen, path, value))
    return tuple(operations), values


def _add(seen: Mapping[str, Any], path: str, value: Any) -> PatchOperation:
    """An ``add``, with the objects that lack above it."""
    parts = list(paths.parse(path))
    while len(parts) > 1 and not paths.has(seen, parts[:-1]):
        value = {parts.pop(): value}
    return PatchOperation(op="add", path=paths.pointer(parts), value=value)


def _seen(target: Target, path: str) -> dict[str, Any]:
    if not isinstance(target, Change):
        return {}
    return {path: paths.get(target.object, path, None)}


def _moment(now: datetime, duration: Duration, what: str) -> datetime:
    length = duration.total_seconds() if isinstance(duration, timedelta) else seconds(duration, what=what)
    return now + timedelta(seconds=length)
