"""Claims: the reason why no command runs twice.

Before it writes, the agent creates one key for the command in KV bucket ``ipe_claims``; only one create can succeed, whatever
is delivered again, replayed, or forgotten by a restarted broker (its deduplication does not survive that). The record then
receives the outcome, so that whoever finds the key later answers the same. A record without an outcome belongs to an agent that
died in between: the cluster is read back, and nothing is repeated.

Refusals are recorded the same way: a command that was refused once is not judged again on its next delivery.
"""

import hashlib
from typing import Literal

from pydantic import AwareDatetime

from ipe_events.bus.connection import Bus
from ipe_events.bus.kv import KeyValue
from ipe_events.errors import BusConflict, BusTimeout, BusUnavailable, SchemaError
from ipe_events.events.base import Model
from ipe_events.events.codec import decode, encode
from ipe_events.events.outcome import Outcome
from ipe_events.subjects import escape

BUCKET = "ipe_claims"
_ATTEMPTS = 3


class Claim(Model):
    """What is known of one command.

    Attributes:
        command: its id.
        digest: SHA-256 of its body; an id used for another body is a fault.
        agent: who claimed it.
        token: random, of this attempt; tells our own record from another agent's.
        time: when it was claimed.
        seen_uid: uid of the target when it was claimed; empty when there was none.
        outcome: how it ended; absent while it is carried out, or when its agent died.
        published: whether the outcome is on the bus.
        version: of this document.
    """

    command: str
    digest: str
    agent: str
    token: str
    time: AwareDatetime
    seen_uid: str = ""
    outcome: Outcome | None = None
    published: bool = False
    version: Literal[1] = 1


class Claimed(Exception):
    """The command has a record already.

    Args:
        claim: the record.
        revision: of the record, for ``update``.
    """

    def __init__(self, claim: Claim, revision: int) -> None:
        super().__init__(claim.command)
        self.claim = claim
        self.revision = revision


def digest(body: bytes) -> str:
    """SHA-256 of a command's body, hexadecimal."""
    return hashlib.sha256(body).hexdigest()


class Claims:
    """The records of one cluster; made by ``Claims.open``."""

    def __init__(self, kv: KeyValue, cluster: str) -> None:
        self._kv = kv
        self._cluster = cluster

    @classmethod
    async def open(cls, bus: Bus, cluster: str) -> "Claims":
        """The cluster's part of the bucket.

        Raises:
            BusNotFound: the bucket is missing.
        """
        return cls(await bus.kv(BUCKET), cluster)

    def key(self, handler: str, command: str) -> str:
        """``<cluster>.<handler>.<command id>``, each escaped: handlers cannot occupy each other's ids."""
        return ".".join(map(escape, (self._cluster, handler, command)))

    async def take(self, handler: str, claim: Claim) -> int:
        """Create the record; returns its revision.

        An unanswered create is looked up before it is repeated, so that our own first attempt does not count as another's.

        Raises:
            Claimed: there is one already.
            BusUnavailable, BusTimeout: it is not known whether there is one.
        """
        key = self.key(handler, claim.command)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._kv.create(key, encode(claim))
            except (BusUnavailable, BusTimeout, BusConflict):
                found = await self.find(handler, claim.command)
                if found is not None and found.claim.token == claim.token:
                    return found.revision
                if found is not None:
                    raise found from None
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")  # the loop returns or raises

    async def find(self, handler: str, command: str) -> Claimed | None:
        """The record and its revision; None when there is none.

        Raises:
            SchemaError: the record is not readable (written by a newer version, say).
        """
        entry = await self._kv.get(self.key(handler, command))
        if entry is None:
            return None
        try:
            return Claimed(decode(Claim, entry.value), entry.revision)
        except SchemaError as error:
            raise SchemaError(f"a claim cannot be read: {error}", where=f"{BUCKET}/{entry.key}") from error

    async def update(self, handler: str, claim: Claim, revision: int) -> int:
        """Write the record again; returns its new revision.

        Raises:
            BusConflict: somebody else has written it meanwhile.
        """
        return await self._kv.update(self.key(handler, claim.command), encode(claim), revision)

    async def drop(self, handler: str, claim: Claim, revision: int) -> None:
        """Remove a record whose command was certainly not carried out, so that another agent may.

        Raises:
            BusConflict: somebody else has written it meanwhile.
        """
        await self._kv.delete(self.key(handler, claim.command), revision=revision)
