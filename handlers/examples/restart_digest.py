"""Counts container restarts per namespace and reports them every five minutes: state, a timer, one name for both functions."""

from typing import Any

from pydantic import AwareDatetime

from ipe_events import Change, Clock, State, every, handler
from ipe_events.events import Payload


class RestartDigest(Payload):
    """Restarts since the last digest.

    Attributes:
        restarts: ``cluster/namespace`` → number.
        time: when it was written.
    """

    restarts: dict[str, int]
    time: AwareDatetime


def restarts_of(pod: dict[str, Any]) -> int:
    return sum(int(status.get("restartCount", 0)) for status in pod.get("status", {}).get("containerStatuses", []))


@handler(on="pods", name="restart-digest", concurrency=8)
async def count(pod: Change, state: State) -> None:
    if pod.verb == "deleted":
        await state.delete(pod.uid)
        return
    total, known = restarts_of(pod.object), await state.get(pod.uid)
    if known is not None and total > known:
        place = f"{pod.cluster}/{pod.namespace}"

        def note(old: dict[str, Any]) -> dict[str, Any]:
            # from and to per pod: noting the same change twice counts once
            since = old.get(place, {}).get(pod.uid, [known])[0]
            return {**old, place: {**old.get(place, {}), pod.uid: [since, total]}}

        await state.update("pending", note, default={})
    await state.put(pod.uid, total)


@every("5m", name="restart-digest")
async def digest(state: State, clock: Clock) -> RestartDigest | None:
    pending: dict[str, dict[str, list[int]]] = await state.get("pending", {})
    if not pending:
        return None
    await state.put("pending", {})
    sums = {place: sum(to - since for since, to in pods.values()) for place, pods in pending.items()}
    return RestartDigest(restarts=sums, time=clock.now())
