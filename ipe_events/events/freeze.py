"""Freezes: an operator's word that nothing new is to be done. One document, key ``state`` of bucket ``ipe_freeze``."""

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import AwareDatetime

from ipe_events.events.base import Model

FREEZE_KEY = "state"
"""The one key of the bucket: an agent reads it before each write, so it must be one read."""


class Freeze(Model):
    """One standing freeze.

    Attributes:
        clusters: glob of cluster names.
        handlers: glob of handler names.
        everything: also stops what gives back (wake, lease return).
        user: who froze.
        reason: why, in their words.
        time: since when.
    """

    clusters: str = "*"
    handlers: str = "*"
    everything: bool = False
    user: str = ""
    reason: str = ""
    time: AwareDatetime


class FreezeState(Model):
    """All standing freezes.

    Attributes:
        freezes: those that were not thawed.
        version: of this document.
    """

    freezes: tuple[Freeze, ...] = ()
    version: Literal[1] = 1

    def stops(self, cluster: str, handler: str) -> Freeze | None:
        """The first freeze that stops this handler in this cluster."""
        for freeze in self.freezes:
            if fnmatchcase(cluster, freeze.clusters) and fnmatchcase(handler, freeze.handlers):
                return freeze
        return None
