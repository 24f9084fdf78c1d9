"""What handlers need collected: their declarations in KV, watched, and turned into a set of resources per cluster."""

import asyncio
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from ipe_events.bus.connection import Bus
from ipe_events.errors import BusError, SchemaError, UsageError
from ipe_events.events.refs import ResourceRef
from ipe_events.events.registry import HandlerDeclaration, read_declaration
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

BUCKET = "ipe_handlers"
_RETRY_SECONDS = 2.0

Told = Callable[[frozenset[ResourceRef]], None]


class Wants:
    """Keeps the declarations and tells each cluster what is wanted from it.

    Attributes:
        known: set once all declarations that existed at the start have been read.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._declarations: dict[str, HandlerDeclaration] = {}
        self._clusters: dict[str, tuple[Told, frozenset[ResourceRef] | None]] = {}
        self.known = asyncio.Event()

    def follow(self, cluster: str, told: Told) -> None:
        """Tell ``told`` whenever the set of resources wanted from ``cluster`` changes."""
        self._clusters[cluster] = (told, None)
        if self.known.is_set():
            self._tell(cluster)

    async def run(self) -> None:
        """Watch the declarations until cancelled."""
        while True:
            try:
                await self._watch()
            except BusError as error:
                log.warning("handlers' declarations cannot be read", error=str(error), retry_seconds=_RETRY_SECONDS)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _watch(self) -> None:
        async for entry in (await self._bus.kv(BUCKET, create=True)).watch():
            if entry is None:
                self.known.set()
            elif entry.deleted:
                self._declarations.pop(entry.key, None)
            else:
                try:
                    self._declarations[entry.key] = read_declaration(entry.key, entry.value)
                except SchemaError as error:
                    log.warning("a handler's declaration cannot be read", key=entry.key, error=str(error))
                    continue
            if self.known.is_set():
                for cluster in self._clusters:
                    self._tell(cluster)

    def _tell(self, cluster: str) -> None:
        told, before = self._clusters[cluster]
        now = wanted(cluster, self._declarations.values())
        if now != before:
            self._clusters[cluster] = (told, now)
            told(now)


def wanted(cluster: str, declarations: Iterable[HandlerDeclaration]) -> frozenset[ResourceRef]:
    """The resources that these handlers need from one cluster; what names no resource is said and left out."""
    found: set[ResourceRef] = set()
    for declaration in declarations:
        if declaration.clusters and not any(fnmatchcase(cluster, glob) for glob in declaration.clusters):
            continue
        for text in declaration.resources:
            try:
                found.add(ResourceRef.parse(text))
            except UsageError as error:
                log.warning("a handler wants something that is no resource", handler=declaration.handler, error=str(error))
    return frozenset(found)
