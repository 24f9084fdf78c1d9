"""Whether handlers get what they ask for: their needs against what the agents say they collect.

A handler that asks for a mistyped resource, or for clusters that nobody serves, is simply never called. So its process says at
the start what it will not get, and ``ipe doctor`` says it of all handlers; both decide and word it here. A near match is given
only for what no cluster has and some API is known to lack: a resource that is merely not collected yet is no typing error.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ipe_events.events.registry import AgentStatus

_SHOWN = 5
"""Names of clusters in one sentence."""


@dataclass(frozen=True, slots=True)
class Unmet:
    """Something that a handler asks for and does not get.

    Attributes:
        problem: what is missing and where, for people.
        fix: what to do about it.
        everywhere: whether no cluster that the handler wants gives it.
        unknown: whether a cluster's API has no such resource.
    """

    problem: str
    fix: str
    everywhere: bool = True
    unknown: bool = False


def served(clusters: Sequence[str], agents: Sequence[AgentStatus]) -> list[AgentStatus]:
    """The agents of the clusters that a handler wants by name or glob; no names want all."""
    return [agent for agent in agents if not clusters or any(fnmatchcase(agent.cluster, glob) for glob in clusters)]


def unmet(resources: Sequence[str], clusters: Sequence[str], agents: Sequence[AgentStatus]) -> list[Unmet]:
    """What a handler lacks.

    Args:
        resources: what it needs collected, as ``deployments.apps``.
        clusters: names or globs of the clusters that it wants; empty: all.
        agents: the last word of every agent.
    """
    if not resources:
        return []
    if not agents:
        return [Unmet("no agent has reported yet", "start one with `ipe agent run`")]
    asked = served(clusters, agents)
    if not asked:
        fix = "start an agent there with `ipe agent run`, or correct `clusters=` of the handler"
        return [Unmet(f"no agent serves clusters={_some(clusters)}", fix)]
    return [found for resource in resources if (found := _unmet(resource, asked)) is not None]


def _unmet(resource: str, asked: Sequence[AgentStatus]) -> Unmet | None:
    without = [agent for agent in asked if not agent.collects(resource)]
    if not without:
        return None
    everywhere = len(without) == len(asked)
    lacking = [agent.cluster for agent in without if agent.lacks(resource)]
    if lacking and not everywhere:
        fix = "install its definition there, or leave these clusters out of the handler's `clusters=`"
        return Unmet(f"no resource {resource} exists in {_some(lacking)}", fix, everywhere=False, unknown=True)
    if lacking:
        known = {name for agent in asked for name in agent.resources if not agent.lacks(name)}
        near = difflib.get_close_matches(resource, sorted(known), n=1)
        fix = f"correct it: did you mean {near[0]}?" if near else "correct it, or install its definition there"
        return Unmet(f"no resource {resource} exists in {_some(lacking)}", fix, unknown=True)
    where = _some([agent.cluster for agent in without])
    return Unmet(f"nobody collects {resource} in {where}", "allow it in an agent's `collect.resources`", everywhere)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
