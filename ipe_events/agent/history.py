"""What the agent remembers of its own writes: enough to see loops and to count against limits.

``Chains`` keeps (uid, resourceVersion) of recent writes with the length of the chain that led to them: a command whose cause is
the change that such a write made belongs to the chain, whether or not its author passed the number on. ``Usage`` windows count
accepted writes per handler. Both are bounded; limits survive a restart because the outcomes of the last hour are read back from
the bus.
"""

from collections import OrderedDict
from collections.abc import Iterator

from ipe_events.agent.guardrails import Usage
from ipe_events.errors import SchemaError
from ipe_events.events.command import Command
from ipe_events.events.ids import parse_change_id
from ipe_events.events.refs import ObjectRef

MINUTE, HOUR = 60.0, 3_600.0
_MAX_CHAINS = 20_000
_MAX_WRITES = 100_000


class Chains:
    """(uid, resourceVersion) → how many commands led to that version of the object."""

    def __init__(self) -> None:
        self._hops: OrderedDict[tuple[str, str], int] = OrderedDict()

    def wrote(self, uid: str, resource_version: str, hops: int) -> None:
        """Remember a write."""
        if uid and resource_version:
            self._hops[uid, resource_version] = hops
            if len(self._hops) > _MAX_CHAINS:
                self._hops.popitem(last=False)

    def hops(self, command: Command) -> int:
        """The length of the command's chain: what it says, or more when its cause is a change that we made."""
        try:
            cause = parse_change_id(command.cause)
        except SchemaError:
            return command.hops
        known = self._hops.get((cause.uid, cause.resource_version))
        return command.hops if known is None else max(command.hops, known + 1)


class Writes:
    """Accepted writes of the last hour, per handler; each command counts once, however often it is delivered or recalled."""

    def __init__(self) -> None:
        self._writes: dict[str, OrderedDict[str, tuple[float, ObjectRef]]] = {}

    def add(self, handler: str, command: str, target: ObjectRef, at: float) -> None:
        """Count the write of one command at monotonic second ``at``."""
        writes = self._writes.setdefault(handler, OrderedDict())
        if command not in writes:
            writes[command] = (at, target.model_copy(update={"uid": "", "version": ""}))
            if len(writes) > _MAX_WRITES:
                writes.popitem(last=False)

    def usage(self, handler: str, target: ObjectRef, now: float, population: int | None) -> Usage:
        """What the handler has used at monotonic second ``now``, in view of its next target."""
        writes = self._writes.get(handler, OrderedDict())
        for command in [command for command, (at, _) in writes.items() if at <= now - HOUR]:
            del writes[command]
        if not writes:
            self._writes.pop(handler, None)
            return Usage(population=population)
        others = {each.name for each in self._neighbours(handler, target) if each.name != target.name}
        return Usage(
            minute=sum(1 for at, _ in writes.values() if at > now - MINUTE),
            hour=len(writes),
            touched=len(others),
            population=population,
        )

    def _neighbours(self, handler: str, target: ObjectRef) -> Iterator[ObjectRef]:
        place = (target.group, target.resource, target.namespace)
        written = self._writes[handler].values()
        return (each for _, each in written if (each.group, each.resource, each.namespace) == place)
