"""What an agent remembers of its writes: each command counts once against a handler's limits."""

from ipe_events.agent.history import HOUR, Writes
from ipe_events.events.refs import ObjectRef


def target(name: str) -> ObjectRef:
    return ObjectRef(group="apps", resource="deployments", namespace="shop", name=name)


def test_a_command_counts_once_however_often_it_is_recalled():
    """Holder, standby, holder: the outcomes of the last hour are read back each time."""
    writes = Writes()
    for _ in range(3):
        for number in range(10):
            writes.add("guard", f"cmd-{number}", target(f"web-{number}"), at=100.0)
    usage = writes.usage("guard", target("web-0"), now=110.0, population=None)
    assert (usage.minute, usage.hour, usage.touched) == (10, 10, 9)


def test_old_writes_are_forgotten_in_whatever_order_they_were_recalled():
    writes = Writes()
    writes.add("guard", "new", target("a"), at=HOUR)
    writes.add("guard", "old", target("b"), at=1.0)
    assert writes.usage("guard", target("c"), now=HOUR + 10.0, population=5).hour == 1
    assert writes.usage("guard", target("c"), now=3 * HOUR, population=5).hour == 0
    assert writes.usage("other", target("c"), now=3 * HOUR, population=5).population == 5
