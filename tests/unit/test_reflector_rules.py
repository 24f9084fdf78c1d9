"""Every rule of the reflector is a line here."""

from dataclasses import replace

import pytest

from ipe_events.errors import (
    KubeError,
    KubeForbidden,
    KubeGone,
    KubeInvalid,
    KubeNotFound,
    KubeThrottled,
    KubeTimeout,
    KubeUnauthorized,
    KubeUnavailable,
)
from ipe_events.kube.reflector import cause_of
from ipe_events.kube.reflector_rules import LONGEST_DELAY, REFUSED_DELAY, Cause, Phase, Position, Rung, after, delay, start
from ipe_events.kube.status import CONNECTION_LOST, RV_TOO_LARGE, UNREACHABLE

WATCH = Position(Phase.WATCH, version=10, rung=Rung.LAST, synced=True)
LIST = Position(Phase.LIST, version=10, rung=Rung.LAST, synced=True)
FIRST = Position(Phase.WATCHLIST)

TABLE = [
    # where, cause, version brought → phase, version, rung, failures
    (WATCH, Cause.ENDED, 15, Phase.WATCH, 15, Rung.LAST, 0),
    (WATCH, Cause.ENDED, 0, Phase.WATCH, 10, Rung.LAST, 0),
    (WATCH, Cause.SHORT, 0, Phase.WATCH, 10, Rung.LAST, 1),
    (WATCH, Cause.RESET, 12, Phase.WATCH, 12, Rung.LAST, 1),
    (WATCH, Cause.SILENT, 12, Phase.WATCH, 12, Rung.LAST, 1),
    (WATCH, Cause.THROTTLED, 0, Phase.WATCH, 10, Rung.LAST, 1),
    (WATCH, Cause.UNREACHABLE, 0, Phase.WATCH, 10, Rung.LAST, 1),
    (WATCH, Cause.SERVER_ERROR, 0, Phase.WATCH, 10, Rung.LAST, 1),
    (WATCH, Cause.REFUSED, 0, Phase.WATCH, 10, Rung.LAST, 1),
    (WATCH, Cause.MALFORMED, 11, Phase.WATCH, 11, Rung.LAST, 1),
    (WATCH, Cause.GONE, 0, Phase.LIST, 10, Rung.LAST, 1),
    (WATCH, Cause.AHEAD, 0, Phase.LIST, 10, Rung.QUORUM, 1),
    (WATCH, Cause.BACKWARDS, 12, Phase.LIST, 12, Rung.QUORUM, 0),
    (LIST, Cause.SYNCED, 20, Phase.WATCH, 20, Rung.LAST, 0),
    (LIST, Cause.GONE, 0, Phase.LIST, 10, Rung.QUORUM, 1),
    (LIST, Cause.AHEAD, 0, Phase.LIST, 10, Rung.QUORUM, 1),
    (LIST, Cause.SERVER_ERROR, 0, Phase.LIST, 10, Rung.LAST, 1),
    (LIST, Cause.RESET, 0, Phase.LIST, 10, Rung.LAST, 1),
    (FIRST, Cause.SYNCED, 20, Phase.WATCH, 20, Rung.LAST, 0),
    (FIRST, Cause.RESET, 0, Phase.LIST, 0, Rung.CACHE, 1),
    (FIRST, Cause.UNSUPPORTED, 0, Phase.LIST, 0, Rung.CACHE, 1),
    (FIRST, Cause.THROTTLED, 0, Phase.LIST, 0, Rung.CACHE, 1),
]


@pytest.mark.parametrize(("at", "cause", "brought", "phase", "version", "rung", "failures"), TABLE)
def test_rule(at: Position, cause: Cause, brought: int, phase: Phase, version: int, rung: Rung, failures: int) -> None:
    then = after(at, cause, version=brought)
    assert (then.phase, then.version, then.rung, then.failures) == (phase, version, rung, failures)


def test_a_server_without_watchlists_is_not_asked_again() -> None:
    assert not after(FIRST, Cause.UNSUPPORTED).watchlist
    assert after(FIRST, Cause.RESET).watchlist


def test_a_start_goes_on_or_syncs() -> None:
    assert start(7) == Position(Phase.WATCH, 7, Rung.LAST, synced=True)
    assert start(seen=7) == Position(Phase.LIST, 7, Rung.LAST)
    assert start().phase is Phase.WATCHLIST
    assert start(watchlist=False).phase is Phase.LIST


def test_nothing_ends_a_reflector_and_no_wait_grows_beyond_its_bound() -> None:
    for cause in Cause:
        position = WATCH
        for _ in range(200):
            position = after(position, cause, version=20)
            wait = delay(position, cause, jitter=1.0)
            assert 0 <= wait <= (REFUSED_DELAY * 1.5 if cause is Cause.REFUSED else LONGEST_DELAY * 2)


@pytest.mark.parametrize(
    ("cause", "failures", "retry_after", "wait"),
    [
        (Cause.ENDED, 0, 0.0, 0.0),
        (Cause.RESET, 1, 0.0, 0.8),
        (Cause.RESET, 3, 0.0, 3.2),
        (Cause.RESET, 60, 0.0, 30.0),
        (Cause.THROTTLED, 1, 7.0, 7.0),
        (Cause.GONE, 1, 0.0, 0.0),
        (Cause.GONE, 4, 0.0, 6.4),
        (Cause.REFUSED, 1, 0.0, 300.0),
    ],
)
def test_waits(cause: Cause, failures: int, retry_after: float, wait: float) -> None:
    assert delay(replace(WATCH, failures=failures), cause, retry_after=retry_after, jitter=0.0) == pytest.approx(wait)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (KubeGone("x", status=410), Cause.GONE),
        (KubeThrottled("x"), Cause.THROTTLED),
        (KubeForbidden("x", status=403), Cause.REFUSED),
        (KubeNotFound("x", status=404), Cause.REFUSED),
        (KubeUnauthorized("x", status=401), Cause.SERVER_ERROR),
        (KubeInvalid("x", status=400), Cause.UNSUPPORTED),
        (KubeTimeout("x", status=504, reason=RV_TOO_LARGE), Cause.AHEAD),
        (KubeTimeout("x"), Cause.SILENT),
        (KubeTimeout("x", status=504), Cause.SERVER_ERROR),
        (KubeUnavailable("x", reason=UNREACHABLE), Cause.UNREACHABLE),
        (KubeUnavailable("x", reason=CONNECTION_LOST), Cause.RESET),
        (KubeUnavailable("x", status=500), Cause.SERVER_ERROR),
        (KubeError("x"), Cause.MALFORMED),
    ],
)
def test_errors_fall_under_a_rule(error: KubeError, cause: Cause) -> None:
    assert cause_of(error) is cause
