"""A stream that fills up is told before it forgets."""

from structlog.testing import capture_logs

from ipe_events.agent.alarms import USED, LimitAlarm
from ipe_events.bus.connection import Bus
from ipe_events.telemetry.metrics import render


async def test_a_stream_near_its_limit_is_told_once_and_so_is_its_end(bus: Bus) -> None:
    await bus.js_api("STREAM.CREATE.IPE_GOV", {"name": "IPE_GOV", "subjects": ["ipe.finding.>"], "max_msgs": 10})
    alarm = LimitAlarm(bus)
    for number in range(7):
        await bus.publish("ipe.finding.a", b"{}", id=str(number))
    with capture_logs() as told:
        await alarm.look()
        assert told == []
        for number in range(7, 9):
            await bus.publish("ipe.finding.a", b"{}", id=str(number))
        await alarm.look()
        await alarm.look()
        (warning,) = told
        assert (warning["event"], warning["stream"], warning["limit"]) == ("a stream is filling up", "IPE_GOV", "max_msgs")
        assert (warning["used"], warning["allowed"], warning["log_level"]) == (9, 10, "warning")
        assert b'ipe_stream_limit_used_ratio{limit="max_msgs",stream="IPE_GOV"} 0.9' in render()
        await bus.js_api("STREAM.PURGE.IPE_GOV")
        await alarm.look()
    assert told[-1]["event"] == "a stream has room again"
    assert ("IPE_GOV", "max_msgs") not in USED.cells
