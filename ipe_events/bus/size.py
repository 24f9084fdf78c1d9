"""How large a bus a fleet needs: subjects, memory, disk, and when to shard.

Arithmetic on figures measured on nats-server 2.15.1 (each constant says which); file storage, limits retention. A server keeps in
memory an index of its subjects and the message ids of the deduplication window, whatever its streams weigh on disk.
"""

import math
from dataclasses import dataclass

from ipe_events.errors import UsageError

BASE_BYTES = 45 << 20
"""A server with an empty stream: 45 MiB resident."""

SUBJECT_BYTES = 495
"""Memory per subject: 423 MiB resident with 800,000 of them, less the base."""

MESSAGE_ID_BYTES = 250
"""Memory per message id in the deduplication window: 200,000 ids took 47 MiB."""

ENVELOPE_BYTES = 780
"""Disk per change besides the body: headers (640–700), subject (about 60) and the store's record (22)."""

SUBJECTS_PER_STREAM = 800_000
"""Subjects with which one stream was tried (70,000 messages per second); beyond it, shard by cluster group."""

EVENTS_PER_STREAM = 40_000
"""Acknowledged changes of 6 KB per second that one stream takes with deduplication (46,000 measured, less a margin)."""

VERBS = 3
"""Verbs that a resource's subjects normally show (added, modified, deleted; ``left`` is rare)."""

INGEST_MICROSECONDS = 35
"""CPU of an agent per change."""

DISPATCH_MICROSECONDS = 40
"""CPU of a handler per change that reaches it."""


def binary(amount: float) -> str:
    """A number of bytes for people, in powers of 1024.

    >>> binary(2 << 30)
    '2.0 GiB'
    """
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if amount >= 1 << power:
            return f"{amount / (1 << power):,.1f} {unit}"
    return f"{amount:g} B"


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is to be carried.

    Attributes:
        clusters: how many.
        objects: per cluster.
        namespaces: per cluster.
        resources: kinds collected.
        events_per_second: of the whole fleet, on average.
        bytes_per_event: body of one change.
        handlers: how many read all changes.
        retention_hours: of the stream of changes.
        dedup_minutes: how long message ids are remembered.
        replicas: copies of each stream.
    """

    clusters: int = 10
    objects: int = 5_000
    namespaces: int = 50
    resources: int = 15
    events_per_second: float = 200.0
    bytes_per_event: int = 6_000
    handlers: int = 4
    retention_hours: float = 72.0
    dedup_minutes: float = 10.0
    replicas: int = 1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value <= 0:
                raise UsageError(f"{name} is {value}", fix="give a positive number")


@dataclass(frozen=True, slots=True)
class Size:
    """What it needs; bytes unless the name says otherwise.

    Attributes:
        subjects: of the stream of changes, all shards together.
        shards: streams that the changes should be spread over.
        stored_events: changes within the retention.
        disk_bytes: of the changes on each server that holds a copy.
        disk_bytes_total: over all copies.
        memory_bytes: of each server, page cache not counted.
        index_memory_bytes: of the agents' indexes, all clusters together.
        relist_events: changes at most in the deduplication window, were every agent to list everything again.
        agent_cores: CPU cores of all agents together.
        handler_cores: CPU cores of all handlers together.
        network_bytes_per_second: out of the servers, to handlers and replicas.
    """

    subjects: int
    shards: int
    stored_events: int
    disk_bytes: int
    disk_bytes_total: int
    memory_bytes: int
    index_memory_bytes: int
    relist_events: int
    agent_cores: float
    handler_cores: float
    network_bytes_per_second: int


def size(fleet: Fleet) -> Size:
    """The bus that this fleet needs.

    A namespace seldom holds every resource: subjects are bounded by objects, too.
    """
    places = min(fleet.namespaces * fleet.resources, fleet.objects)
    subjects = fleet.clusters * places * VERBS
    stored = math.ceil(fleet.events_per_second * fleet.retention_hours * 3600)
    per_event = fleet.bytes_per_event + ENVELOPE_BYTES
    relist = fleet.clusters * fleet.objects
    window = fleet.events_per_second * fleet.dedup_minutes * 60 + relist
    copies = fleet.handlers + fleet.replicas - 1
    return Size(
        subjects=subjects,
        shards=max(1, math.ceil(subjects / SUBJECTS_PER_STREAM), math.ceil(fleet.events_per_second / EVENTS_PER_STREAM)),
        stored_events=stored,
        disk_bytes=stored * per_event,
        disk_bytes_total=stored * per_event * fleet.replicas,
        memory_bytes=math.ceil(BASE_BYTES + subjects * SUBJECT_BYTES + window * MESSAGE_ID_BYTES),
        index_memory_bytes=fleet.clusters * fleet.objects * 512,
        relist_events=relist,
        agent_cores=round(fleet.events_per_second * INGEST_MICROSECONDS / 1e6, 3),
        handler_cores=round(fleet.events_per_second * fleet.handlers * DISPATCH_MICROSECONDS / 1e6, 3),
        network_bytes_per_second=math.ceil(fleet.events_per_second * per_event * copies),
    )
