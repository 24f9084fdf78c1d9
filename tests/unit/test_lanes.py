"""Lanes and batches under failure: no piece of work is lost, and no worker dies of one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from ipe_events.declaration import Batch
from ipe_events.runtime.batches import Batches
from ipe_events.runtime.lanes import LANE_LIMIT, Lanes
from ipe_events.runtime.work import Work
from tests.helpers import eventually

Piece = Work | Sequence[Work]
Do = Callable[[Piece], Awaitable[float | None]]


def piece(seq: int, deliveries: int = 1) -> Work:
    delivery: Any = SimpleNamespace(seq=seq, deliveries=deliveries, subject="ipe.test", ack=lambda: None, nak=lambda _delay: None)
    return Work(delivery, 0.0)


def seq_of(work: Piece) -> int:
    return (work if isinstance(work, Work) else work[0]).delivery.seq


async def settle() -> None:
    """Let everything that can go on without the clock go on."""
    for _ in range(20):
        await asyncio.sleep(0)


def one_worker(kind: str, run: Do, timed_out: Do) -> Lanes | Batches:
    if kind == "batches":
        return Batches(run, timed_out, batch=Batch(1, 0), alone=lambda _works: False)
    return Lanes(run, timed_out, concurrency=1, latest=False, superseded=lambda _work: None)


both = pytest.mark.parametrize("kind", ["lanes", "batches"])


@both
async def test_the_watchdog_lets_a_timed_out_piece_be_settled(kind):
    stored = asyncio.Event()
    done: list[int | str] = []

    async def run(work: Piece) -> None:
        if seq_of(work) == 1:
            await asyncio.Event().wait()
        done.append(seq_of(work))

    async def timed_out(_work: Piece) -> None:
        await stored.wait()
        done.append("buried")

    lanes = one_worker(kind, run, timed_out)
    lanes.put("a", piece(1))
    lanes.put("b", piece(2))
    for _ in range(3):
        await settle()
        lanes.cancel_overdue(-1)  # every piece that is worked on is overdue
    stored.set()
    await settle()
    assert done == ["buried", 2]
    assert await lanes.drain(0) == []


@both
async def test_a_worker_outlives_what_cannot_be_settled(kind):
    """E.g. a dead letter that is refused: the event stays and comes again, and the others go on."""
    failed: list[int] = []
    done: list[int] = []

    async def run(work: Piece) -> None:
        if seq_of(work) == 1 and not failed:
            failed.append(1)
            raise RuntimeError("refused while it was settled")
        done.append(seq_of(work))

    async def timed_out(_work: Piece) -> None:
        raise AssertionError("nothing is late")

    lanes = one_worker(kind, run, timed_out)
    lanes.put("a", piece(1))
    lanes.put("b", piece(2))
    await eventually(lambda: sorted(done) == [1, 2])
    assert failed == [1]
    await lanes.drain(0)


async def finish(_work: Piece) -> None: ...


@pytest.fixture
async def declining() -> Lanes:
    """Lanes whose lane ``a`` is empty and has declined piece 1000."""
    lanes = Lanes(finish, finish, concurrency=1, latest=False, superseded=lambda _work: None)
    taken = [lanes.put("a", piece(seq)) for seq in range(1, LANE_LIMIT + 1)]
    assert all(taken)
    assert not lanes.put("a", piece(1000))
    await settle()
    assert lanes.size == 0
    return lanes


async def test_a_declined_piece_that_never_returns_is_forgotten(declining, monkeypatch):
    assert not declining.put("a", piece(1001)), "1000 may still come back"
    monkeypatch.setattr("ipe_events.runtime.lanes.GONE_SECONDS", -1)  # as if all that time had passed
    assert declining.put("a", piece(1002))
    assert len(await declining.drain(0)) == 1


async def test_a_held_consumer_does_not_make_declined_pieces_forgotten(declining):
    now = asyncio.get_running_loop().time()
    (lane,) = declining._lanes.values()
    lane.declined = {1000: now - 1_000}
    declining.resumed()
    assert not declining.put("a", piece(1001)), "1000 could not come back while the consumer was held"
    assert declining.put("a", piece(1000))
    await declining.drain(0)


async def test_latest_keeps_the_newest_whatever_is_delivered_again():
    async def later(_work: Piece) -> float:
        return 3_600.0

    dropped: list[int] = []
    lanes = Lanes(later, later, concurrency=1, latest=True, superseded=lambda work: dropped.append(seq_of(work)))
    lanes.put("a", piece(5))
    await settle()
    lanes.put("a", piece(7))
    lanes.put("a", piece(5, deliveries=2))
    lanes.put("a", piece(7, deliveries=2))
    assert dropped == [5, 5]
    assert lanes.size == 1
    assert [seq_of(work) for work in await lanes.drain(0)] == [7]
