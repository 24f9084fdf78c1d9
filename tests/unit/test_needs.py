"""What handlers ask for against what agents say they collect."""

import pytest

from ipe_events.clock import SYSTEM
from ipe_events.events.needs import unmet
from ipe_events.events.registry import NO_SUCH_RESOURCE, AgentStatus

LACKING = f"refused: {NO_SUCH_RESOURCE}"


def agent(cluster: str, **states: str) -> AgentStatus:
    return AgentStatus(cluster=cluster, resources=states, time=SYSTEM.now())


@pytest.mark.parametrize(
    ("clusters", "agents", "problem", "everywhere"),
    [
        ((), [], "no agent has reported yet", True),
        (("lab", "pord-*"), [agent("prod-a")], "no agent serves clusters=lab, pord-*", True),
        ((), [agent("a"), agent("b", pods="refused: no right")], "nobody collects pods in a, b", True),
        ((), [agent("a", pods="syncing"), agent("b", pods="failing: x")], "nobody collects pods in b", False),
        ((), [agent(f"c{n}") for n in range(7)], "nobody collects pods in c0, c1, c2, c3, c4 and 2 more", True),
        ((), [agent("a", pods=LACKING), agent("b")], "no resource pods exists in a", True),
        ((), [agent("a", pods=LACKING), agent("b", pods="watching")], "no resource pods exists in a", False),
    ],
)
def test_what_is_missing_is_said_with_the_place(clusters, agents, problem, everywhere):
    (found,) = unmet(["pods"], clusters, agents)
    assert (found.problem, found.everywhere) == (problem, everywhere)


@pytest.mark.parametrize("agents", [[], [agent("a")]])
def test_who_asks_for_nothing_lacks_nothing(agents):
    assert unmet([], ["lab"], agents) == []


def test_what_is_collected_where_it_is_wanted_is_no_problem():
    assert unmet(["pods"], ["prod-*"], [agent("prod-a", pods="watching"), agent("lab")]) == []


def test_near_matches_are_for_what_no_cluster_has():
    def fix(*agents: AgentStatus) -> str:
        (found,) = unmet(["podz"], (), agents)
        return found.fix

    assert fix(agent("a", podz=LACKING, pods="watching", nodes="watching")) == "correct it: did you mean pods?"
    assert fix(agent("a", podz=LACKING, nodes="watching")) == "correct it, or install its definition there"
    assert "did you mean" not in fix(agent("a", pods="watching"))
    assert "install its definition there" in fix(agent("a", podz=LACKING, pods="watching"), agent("b", podz="watching"))
