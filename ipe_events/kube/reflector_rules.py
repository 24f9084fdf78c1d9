"""What a reflector does next: pure decisions, so that every rule is a line of a table in the tests.

A reflector syncs (the whole collection, by WatchList or by list) and then watches from where the sync ended. Whatever ends a
request is a ``Cause``; ``after`` turns position and cause into the next position, ``delay`` says how long to wait before it.
Nothing ends a reflector: the worst is a slow retry.

Where to ask: a first list is served from the server's cache (``0``); a relist must not go back in time, so it asks for at least
what was seen (``NotOlderThan``); when the server has not got that far, or the history is gone, a consistent read (``""``)
settles it.
"""

import random
from dataclasses import dataclass, replace
from enum import StrEnum

FIRST_DELAY = 0.8
LONGEST_DELAY = 30.0
HEALTHY_SECONDS = 120.0
REFUSED_DELAY = 300.0
"""Seconds until a resource that was refused (403) or is missing (404) is asked for again."""


class Phase(StrEnum):
    """What the next request is."""

    LIST = "list"
    WATCHLIST = "watchlist"
    WATCH = "watch"


class Rung(StrEnum):
    """How fresh a sync must be."""

    CACHE = "cache"
    LAST = "last"
    QUORUM = "quorum"


class Cause(StrEnum):
    """How a request ended."""

    SYNCED = "synced"
    """The collection is complete; ``version`` is its resourceVersion."""
    ENDED = "ended"
    """The server's own time-out; nothing is wrong."""
    SHORT = "short"
    """A watch that ended within a second and brought nothing."""
    RESET = "reset"
    """The connection broke."""
    SILENT = "silent"
    """No byte for longer than bookmarks take."""
    GONE = "gone"
    """The history needed is no longer there (410)."""
    THROTTLED = "throttled"
    """429."""
    UNREACHABLE = "unreachable"
    """No connection at all."""
    SERVER_ERROR = "server-error"
    """5xx."""
    AHEAD = "ahead"
    """The server has not reached the resourceVersion that was asked for."""
    REFUSED = "refused"
    """401, 403, 404: we may not, or there is no such resource."""
    UNSUPPORTED = "unsupported"
    """400, 422 …: the server does not take these options."""
    MALFORMED = "malformed"
    """What came is not what the API promises."""
    BACKWARDS = "backwards"
    """An event with a resourceVersion below what this watch brought already."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a reflector stands.

    Attributes:
        phase: the next request.
        version: the last resourceVersion up to which everything was seen; 0: none.
        rung: how fresh the next sync must be.
        watchlist: whether the server is worth asking for WatchLists.
        failures: in a row, for the back-off.
        synced: whether the collection was complete once.
        relists: collections that a watch asked for, since a watch last went well: one is normal, many are a server that cannot
            keep its word, which must not be asked for everything all the time.
    """

    phase: Phase
    version: int = 0
    rung: Rung = Rung.CACHE
    watchlist: bool = True
    failures: int = 0
    synced: bool = False
    relists: int = 0


def start(version: int = 0, *, seen: int = 0, watchlist: bool = True) -> Position:
    """The first position: watch on from ``version``, or sync; not older than ``seen``, a lower history has gone backwards."""
    if version:
        return Position(Phase.WATCH, version, Rung.LAST, watchlist, synced=True)
    if seen:
        return Position(Phase.LIST, seen, Rung.LAST, watchlist)
    return Position(Phase.WATCHLIST if watchlist else Phase.LIST, watchlist=watchlist)


def resync(position: Position, rung: Rung) -> Position:
    """Sync again, at least as fresh as ``rung``; lists take it from a server that has just lost its history."""
    return replace(position, phase=Phase.LIST, rung=rung, relists=position.relists + 1)


def after(position: Position, cause: Cause, *, version: int = 0) -> Position:
    """The next position.

    Args:
        position: where the request started.
        cause: how it ended.
        version: the last resourceVersion that it brought; 0: none.
    """
    at = replace(position, version=max(position.version, version)) if position.phase is Phase.WATCH else position
    worse = replace(at, failures=at.failures + 1)
    if cause is Cause.SYNCED:
        return replace(at, phase=Phase.WATCH, version=version, rung=Rung.LAST, failures=0, synced=True)
    if cause is Cause.ENDED:
        return replace(at, failures=0, relists=0)
    if cause is Cause.BACKWARDS:
        return resync(at, Rung.QUORUM)
    if at.phase is Phase.WATCHLIST:
        # whatever is wrong with a WatchList, a list may do; a server that cannot at all is not asked again
        given_up = cause in (Cause.UNSUPPORTED, Cause.MALFORMED)
        return replace(worse, phase=Phase.LIST, watchlist=at.watchlist and not given_up)
    if at.phase is Phase.LIST:
        if cause in (Cause.GONE, Cause.AHEAD):
            return resync(worse, Rung.QUORUM)
        return worse
    if cause is Cause.GONE:
        return resync(worse, Rung.LAST)
    if cause is Cause.AHEAD:
        return resync(worse, Rung.QUORUM)
    return worse


def delay(position: Position, cause: Cause, *, retry_after: float = 0.0, jitter: float | None = None) -> float:
    """Seconds to wait before ``position``, which ``cause`` led to.

    Args:
        position: the next one.
        cause: how the last request ended.
        retry_after: what a 429 asked for.
        jitter: 0 to 1, instead of a random number.
    """
    share = random.random() if jitter is None else jitter  # noqa: S311 - jitter
    if cause in (Cause.SYNCED, Cause.ENDED):
        return 0.0
    if cause is Cause.REFUSED:
        return REFUSED_DELAY * (1 + share / 2)
    # the first resync after an expired history, and the list after a failed WatchList, need no wait: nothing is overloaded
    resyncs = cause in (Cause.GONE, Cause.AHEAD, Cause.BACKWARDS)
    attempts = max(position.failures, position.relists) if resyncs else position.failures
    if (resyncs or cause is Cause.UNSUPPORTED) and attempts <= 1:
        return 0.0
    wait: float = min(FIRST_DELAY * 2.0 ** min(max(attempts - 1, 0), 16), LONGEST_DELAY) * (1 + share)
    return max(wait, retry_after * (1 + share / 2))
