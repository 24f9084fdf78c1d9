"""Which NATS servers we talk to."""

import re

from ipe_events.errors import BusError

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(-.+)?")
_FLOOR_OLD = (2, 12, 12)
_FLOOR_NEW = (2, 14, 3)

REASON = "older ones have known holes (28 advisories in 2026: bypassed deny rules, other accounts' data, crashes before login)"
"""One sentence for whoever must upgrade."""


def check_version(version: str, place: str) -> None:
    """Passes servers from 2.12.12, and from 2.14.3 in the lines after 2.12; a pre-release counts as older than its release.

    Raises:
        BusError: the server is older, or its version cannot be read.
    """
    match = _VERSION.fullmatch(version)
    if not match:
        raise BusError(
            f"the NATS server's version {version!r} cannot be read", where=place, fix="run nats-server 2.14.3 or later"
        )
    number = (int(match[1]), int(match[2]), int(match[3]))
    floor = _FLOOR_OLD if number[:2] <= _FLOOR_OLD[:2] else _FLOOR_NEW
    if number < floor or (number == floor and match[4]):
        raise BusError(
            f"nats-server {version} is too old: {REASON}", where=place, fix="upgrade to 2.12.12, 2.14.3 or any later release"
        )
