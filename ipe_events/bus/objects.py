"""A store for values larger than a message: the agents' index snapshots.

The format is that of NATS' object stores (chunks and a record with the digest), by nats-py's own implementation; only names,
bytes and errors are ours.
"""

from typing import TYPE_CHECKING, Self

from nats import errors as nats_errors
from nats.js import errors as js_errors
from nats.js.api import ObjectStoreConfig
from nats.js.object_store import ObjectStore as NatsObjectStore

from ipe_events.bus.kv import check_key
from ipe_events.errors import BusError, BusNotFound, BusTimeout, BusUnavailable, IpeError
from ipe_events.tasks import keeping_cancellation

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus


class ObjectStore:
    """An object store; made by ``Bus.object_store``."""

    def __init__(self, bus: "Bus", bucket: str, store: NatsObjectStore) -> None:
        self._bus = bus
        self.bucket = bucket
        self._store = store

    @classmethod
    async def open(cls, bus: "Bus", bucket: str, *, create: bool) -> Self:
        """Finds the store, or makes it when asked to.

        Raises:
            BusNotFound: it is missing and ``create`` is false.
        """
        context = bus.client.jetstream(**({"domain": bus.settings.js_domain} if bus.settings.js_domain else {}))
        try:
            with keeping_cancellation():
                try:
                    store = await context.object_store(bucket)
                except js_errors.NotFoundError:
                    if not create:
                        raise BusNotFound(f"object store {bucket} is missing", fix="create it with `ipe bus apply`") from None
                    store = await context.create_object_store(config=ObjectStoreConfig(bucket=bucket))
        except (nats_errors.Error, TimeoutError, OSError) as error:
            raise translate(error, bucket) from error
        return cls(bus, bucket, store)

    async def put(self, name: str, data: bytes) -> None:
        """Stores (or replaces) a value.

        Raises:
            BusError: it could not be stored.
        """
        try:
            with keeping_cancellation():
                await self._store.put(check_key(name), data)
        except (nats_errors.Error, TimeoutError, OSError) as error:
            raise translate(error, f"{self.bucket}/{name}") from error

    async def get(self, name: str) -> bytes | None:
        """The value, its digest checked, or None.

        Raises:
            BusError: it could not be read, or does not match its digest.
        """
        try:
            with keeping_cancellation():
                return (await self._store.get(check_key(name))).data or b""
        except (js_errors.ObjectNotFoundError, js_errors.ObjectDeletedError):
            return None
        except (nats_errors.Error, TimeoutError, OSError) as error:
            raise translate(error, f"{self.bucket}/{name}") from error

    async def delete(self, name: str) -> None:
        """Removes a value; does nothing when there is none.

        Raises:
            BusError: it could not be removed.
        """
        try:
            with keeping_cancellation():
                await self._store.delete(check_key(name))
        except (js_errors.ObjectNotFoundError, js_errors.ObjectDeletedError):
            return
        except (nats_errors.Error, TimeoutError, OSError) as error:
            raise translate(error, f"{self.bucket}/{name}") from error


def translate(error: Exception, where: str) -> IpeError:
    """Our error for one of nats-py's."""
    text = str(error).removeprefix("nats: ") or type(error).__name__
    if isinstance(error, TimeoutError):
        return BusTimeout(text, where=where)
    if isinstance(error, js_errors.NotFoundError):
        return BusNotFound(text, where=where)
    if isinstance(
        error, js_errors.ServiceUnavailableError | nats_errors.NoRespondersError | nats_errors.ConnectionClosedError | OSError
    ):
        return BusUnavailable(text, where=where)
    return BusError(text, where=where)
