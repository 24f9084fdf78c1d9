"""``Policies[T]``: the policy documents of one kind that are in force, kept up to date while the process runs.

Documents lie in the bucket ``ipe_policies``, put there by ``ipe apply``. A document that does not fit its model is left out, said
in the log once per revision, and the last good one stays in force: a typing mistake must not switch a policy off.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from ipe_events.declaration import Declared, declaration_error, injectable
from ipe_events.errors import SchemaError
from ipe_events.policy import BUCKET, Policy, PolicySet, decode_kv
from ipe_events.runtime.port import Port
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger

P = TypeVar("P", bound=Policy[Any])

log = get_logger(__name__)


@injectable
class Policies(Generic[P]):
    """The documents of one kind; injected as ``Policies[DriftPolicy]``."""

    def __init__(self, model: type[P]) -> None:
        self._model = model
        self._documents: dict[str, P] = {}
        self._set: PolicySet[P] = PolicySet()

    def all(self) -> list[P]:
        """Every document in force, by name."""
        return [self._documents[key] for key in sorted(self._documents)]

    def select(self, cluster: str, namespace: str = "", labels: Mapping[str, str] | None = None) -> tuple[P, ...]:
        """The documents that apply to an object, the one that counts first (see ``PolicySet.select``)."""
        return self._set.select(cluster, namespace, labels)

    def __iter__(self) -> Iterator[P]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self._documents)

    def put(self, key: str, body: bytes) -> bool:
        """Take a stored document in; False when it does not fit and the last good one stays."""
        try:
            policy = decode_kv(key, body, self._model)
        except SchemaError as error:
            log.error(  # noqa: TRY400 - the problem is told, a traceback adds nothing
                "policy document refused; the last good one stays in force", key=key, kind=self._model.__name__, error=str(error)
            )
            return False
        self._documents[key] = policy
        self._set = PolicySet(self._documents.values())
        return True

    def drop(self, key: str) -> None:
        """A document was deleted."""
        self._documents.pop(key, None)
        self._set = PolicySet(self._documents.values())


class PolicyStore:
    """Watches the bucket and feeds every ``Policies`` of the process.

    Args:
        port: the bus.
    """

    def __init__(self, port: Port) -> None:
        self._port = port
        self._kinds: dict[str, Policies[Any]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    def select(self, declared: Declared, model: type | None) -> Policies[Any]:
        """The documents of one kind, shared by all handlers of the process.

        Raises:
            DeclarationError: ``Policies`` without a model.
        """
        if model is None or not issubclass(model, Policy):
            raise declaration_error(declared.function, "Policies of what?", fix="Policies[DriftPolicy]")
        return self._kinds.setdefault(model.__name__, Policies(model))

    async def start(self) -> None:
        """Load what is there and watch; does nothing when no handler asks for policies."""
        if not self._kinds:
            return
        self._task = asyncio.create_task(self._watch(), name="policies")
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            await end(ready)
            self._task.result()

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            await end(self._task)

    async def _watch(self) -> None:
        bucket = await self._port.kv(BUCKET, create=True)
        async for entry in bucket.watch():
            if entry is None:
                self._ready.set()
            elif entry.deleted:
                for policies in self._kinds.values():
                    policies.drop(entry.key)
            else:
                self._take(entry.key, entry.value)

    def _take(self, key: str, body: bytes) -> None:
        """Hand a document to the policies of its kind, which its key names; other kinds are other handlers' affair."""
        policies = self._kinds.get(key.partition(".")[0])
        if policies is not None:
            policies.put(key, body)
