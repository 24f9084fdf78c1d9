"""Identifiers that are the same for ever: a redelivery, a restart or a relist makes no second one.

A change is identified by what it is (cluster, epoch, resource, uid, resourceVersion, verb); what a handler derives is identified
by the handler, its input and the position of the output. ``Nats-Msg-Id`` and ``ce-id`` carry them, so the stream drops doubles.
"""

import hashlib
import re
from typing import NamedTuple

from ipe_events.errors import SchemaError

_CHANGE_ID = re.compile(r"([^/]+)/(0|[1-9][0-9]{0,17})/([^/]*)/([^/]+)/([^/]+)/([^/]+)/([^/]+)")


class ChangeId(NamedTuple):
    """The parts of a change's id, in their order in the text."""

    cluster_uid: str
    epoch: int
    group: str
    resource: str
    uid: str
    resource_version: str
    verb: str

    def __str__(self) -> str:
        return "/".join(map(str, self))


def parse_change_id(text: str) -> ChangeId:
    """The parts of ``<cluster-uid>/<epoch>/<group>/<resource>/<uid>/<rv>/<verb>``; the core group is empty.

    Raises:
        SchemaError: the text is not a change's id.
    """
    match = _CHANGE_ID.fullmatch(text)
    if not match:
        shown = text if len(text) <= 300 else f"{text[:300]}… (cut, {len(text):,} characters)"
        raise SchemaError(
            f"{shown!r} is not the id of a change", fix="<cluster-uid>/<epoch>/<group>/<resource>/<uid>/<rv>/<verb>"
        )
    cluster_uid, epoch, *rest = match.groups()
    return ChangeId(cluster_uid, int(epoch), *rest)


def derived_id(*parts: str | int) -> str:
    """A 32-digit hexadecimal id that depends on the parts alone (and on where one ends and the next begins)."""
    digest = hashlib.sha256()
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]
