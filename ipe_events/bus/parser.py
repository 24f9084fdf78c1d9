"""nats-py's protocol parser with a short way for the messages of raw subscriptions.

nats-py's own parser spends several regular expressions, slices and an awaited call on each message. Acknowledgements and pulled
messages come by the ten thousand, dozens to a read; this one cuts complete messages out of what was read and calls back at once.
Everything else goes to the original parser, which never sees a part of a message that this one has begun.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from ipe_events.telemetry.log import get_logger

RawCallback = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with subject, reply, header block and body of each message; must not block."""

Run = Callable[[bytes, int], int]
"""Called with what was read and a position behind a message of the subscription: takes as many complete messages from there as it
knows the form of, and returns where it stopped; must not block."""

log = get_logger(__name__)

_MSG = re.compile(rb"MSG ([^ \r\n]+) (\d+) (?:([^ \r\n]+) )?(\d+)\r\n").match
_HMSG = re.compile(rb"HMSG ([^ \r\n]+) (\d+) (?:([^ \r\n]+) )?(\d+) (\d+)\r\n").match
_M, _H = b"MH"


class FastParser(Parser):
    """The parser of one connection.

    Args:
        client: whose connection it is.
        raw: callbacks by subscription number.
        runs: what takes runs of messages, by subscription number; only beside a callback.
    """

    def __init__(self, client: Any, raw: Mapping[int, RawCallback], runs: Mapping[int, Run]) -> None:
        self._raw = raw
        self._runs = runs
        self._begun = bytearray()
        self._needed = 0
        super().__init__(client)

    def reset(self) -> None:
        """A new connection begins."""
        super().reset()
        self._begun.clear()
        self._needed = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read; called by nats-py's read loop."""
        if self.nc.is_reconnecting:
            return  # the last bytes of the connection that was lost: what they begin will never end
        if self._needed:
            self._begun += data
            if len(self._begun) < self._needed:
                return
            data = bytes(self._begun)
            self._begun.clear()
            self._needed = 0
        if self.state == AWAITING_CONTROL_LINE and not self.buf:
            data = self._take(data)
            if not data:
                return
        await super().parse(data)

    def _take(self, data: bytes) -> bytes:
        """Call back for the raw messages at the front; returns what is left for the original parser."""
        raw, runs = self._raw, self._runs
        at, end, count = 0, len(data), 0
        while at < end:
            first = data[at]
            found = _MSG(data, at) if first == _M else _HMSG(data, at) if first == _H else None
            if found is None:
                break
            sid = int(found[2])
            callback = raw.get(sid)
            if callback is None:
                break
            start = found.end()
            stop = start + int(found[found.re.groups])
            if stop + 2 > end:
                self._begun += data[at:]
                self._needed = stop + 2 - at
                at = end
                break
            body = start + int(found[4]) if first == _H else start
            try:
                callback(found[1], found[3] or b"", data[start:body], data[body:stop])
                at = stop + 2
                if sid in runs:
                    at = runs[sid](data, at)
            except Exception:  # an exception here would end nats-py's read loop and with it the whole connection
                log.exception("a message callback failed", subject=found[1].decode(errors="replace"))
            at = max(at, stop + 2)
            count += 1
        if count:
            self.nc.stats["in_msgs"] += count
            self.nc.stats["in_bytes"] += at
        return data[at:]
