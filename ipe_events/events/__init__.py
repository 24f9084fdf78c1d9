"""Payload models: everything that travels on the bus as JSON, and ``Change``, which travels as the object's own bytes."""

from ipe_events.events.act import Act
from ipe_events.events.base import Payload
from ipe_events.events.change import Change
from ipe_events.events.cluster import ClusterEvent, Connected, Disconnected, Epoch, Gap, Heartbeat, Stale
from ipe_events.events.command import Command, Precondition
from ipe_events.events.finding import Finding, Severity
from ipe_events.events.message import Event, Message, Meta
from ipe_events.events.outcome import Outcome, Status
from ipe_events.events.refs import ObjectRef, ResourceRef
from ipe_events.events.registry import AgentStatus, HandlerDeclaration

__all__ = [
    "Act",
    "AgentStatus",
    "Change",
    "ClusterEvent",
    "Command",
    "Connected",
    "Disconnected",
    "Epoch",
    "Event",
    "Finding",
    "Gap",
    "HandlerDeclaration",
    "Heartbeat",
    "Message",
    "Meta",
    "ObjectRef",
    "Outcome",
    "Payload",
    "Precondition",
    "ResourceRef",
    "Severity",
    "Stale",
    "Status",
]
