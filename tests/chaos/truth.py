"""What happened, what the record says of it, and what is wrong with the record: pure comparison of sets of ids.

The truth is a cluster's own history: every state of every object, kept here although the cluster may forget it. A record is
right when it holds each of these once, and otherwise a published gap covers what is missing; when it ends with the cluster's
present state; and when it says ``deleted`` of what is gone, once, and of nothing else.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ipe_events.events.cluster import Gap
from ipe_events.events.ids import ChangeId, parse_change_id
from ipe_events.testing.fake.cluster import FakeCluster
from ipe_events.testing.fake.store import Change

_VERBS = {"ADDED": "added", "MODIFIED": "modified", "DELETED": "deleted"}


class State(NamedTuple):
    """One state of one object: what a change's id says besides cluster and resource."""

    uid: str
    version: int
    verb: str


@dataclass
class Truth:
    """The history of one resource.

    Attributes:
        states: in the order in which they came to be.
    """

    states: list[State] = field(default_factory=list)

    @classmethod
    def of(cls, cluster: FakeCluster, group: str = "", resource: str = "configmaps") -> "Truth":
        """The history of a simulated cluster from now on."""
        items = cluster.store.items((group, resource))
        truth = cls([State(item.obj["metadata"]["uid"], item.rv, "added") for _, item in items])

        def follow(change: Change) -> None:
            truth.states.append(State(change.item.obj["metadata"]["uid"], change.rv, _VERBS[change.verb]))

        cluster.store.subscribe((group, resource), follow)
        return truth

    def present(self) -> dict[str, int]:
        """uid → resourceVersion of what exists."""
        alive: dict[str, int] = {}
        for state in self.states:
            if state.verb == "deleted":
                del alive[state.uid]
            else:
                alive[state.uid] = state.version
        return alive


class Stretch(NamedTuple):
    """A gap in numbers: after ``since``, up to and with ``until``."""

    since: int
    until: float

    def covers(self, version: int) -> bool:
        """Whether what happened at this resourceVersion may be missing."""
        return self.since < version <= self.until


def stretches(gaps: Iterable[Gap], resource: str = "configmaps", epoch: int = 1) -> list[Stretch]:
    """The gaps of one resource's collection."""
    return [
        Stretch(int(gap.since or 0), float(gap.until) if gap.until else float("inf"))
        for gap in gaps
        if gap.resource in ("", resource) and gap.epoch == epoch and not gap.handler and not gap.subject_object
    ]


def parse(ids: Sequence[str], resource: str = "configmaps", epoch: int = 1) -> list[State]:
    """The states that the record holds of one resource, in the order of the stream."""
    changes = [parse_change_id(text) for text in ids]
    return [_state(change) for change in changes if change.resource == resource and change.epoch == epoch]


def _state(change: ChangeId) -> State:
    return State(change.uid, int(change.resource_version), change.verb)


def complaints(truth: Truth, ids: Sequence[str], gaps: Collection[Stretch]) -> list[str]:
    """Everything that is wrong with a record; empty when it is right."""
    found = parse(ids)
    wrong = [f"{text} is in the stream {count} times" for text, count in Counter(ids).items() if count > 1]
    wrong += _missing(truth, found, gaps)
    wrong += _foreign(truth, found, gaps)
    by_uid: dict[str, list[State]] = defaultdict(list)
    for state in found:
        by_uid[state.uid].append(state)
    alive = truth.present()
    for uid, states in by_uid.items():
        wrong += _story(uid, states, alive.get(uid))
    wrong += [f"{uid} exists and the record has nothing of it" for uid in alive if uid not in by_uid]
    return wrong


def _missing(truth: Truth, found: Collection[State], gaps: Collection[Stretch]) -> list[str]:
    lost = set(truth.states) - set(found)
    return [f"{state} is missing and no gap covers it" for state in sorted(lost) if not _covered(state.version, gaps)]


def _foreign(truth: Truth, found: Collection[State], gaps: Collection[Stretch]) -> list[str]:
    """What the record holds and the cluster never said: only a relist may find it, within a gap."""
    known = set(truth.states)
    versions = {(state.uid, state.version) for state in truth.states if state.verb != "deleted"}
    deaths = {state.uid: state.version for state in truth.states if state.verb == "deleted"}
    wrong = []
    for state in found:
        if state in known:
            continue
        if state.verb == "deleted":
            death = deaths.get(state.uid)
            if death is None or death > state.version:
                wrong.append(f"{state} is a false delete")
            elif not any(gap.covers(death) and state.version <= gap.until for gap in gaps):
                wrong.append(f"{state} is a synthetic delete (the true one was at {death}) outside of any gap")
        elif (state.uid, state.version) not in versions:
            wrong.append(f"{state} never existed")
        elif not _covered(state.version, gaps):
            wrong.append(f"{state} has the wrong verb, and no gap excuses it")
    return wrong


def _covered(version: int, gaps: Collection[Stretch]) -> bool:
    return any(gap.covers(version) for gap in gaps)


def _story(uid: str, states: Sequence[State], present: int | None) -> list[str]:
    """What is wrong with the order and the end of one object's story."""
    wrong = []
    versions = [state.version for state in states]
    if versions != sorted(versions):
        wrong.append(f"{uid} goes back in time: {versions}")
    if any(state.verb == "deleted" for state in states[:-1]):
        wrong.append(f"{uid} lives after its delete: {states}")
    last = states[-1]
    if present is None and last.verb != "deleted":
        wrong.append(f"{uid} is gone and the record ends with {last}")
    if present is not None and (last.version, last.verb == "deleted") != (present, False):
        wrong.append(f"{uid} exists at {present} and the record ends with {last}")
    return wrong
