"""Header blocks of messages, read where they lie.

A block is what NATS carries: ``NATS/1.0`` and lines ``name: value``, each ended by CR LF. Building a dictionary of fifteen
headers costs more than everything else a consumer does with a message, so ``header`` finds the one that is asked for in the raw
bytes. Values follow the CloudEvents binding for NATS: what is not printable ASCII is percent-encoded.
"""

from urllib.parse import unquote

REPLAY_OF = "ipe-replay-of"
"""On a message that was published again: the dead letter it comes from. It is no news of the cluster."""
REPLAY_HANDLER = "ipe-replay-handler"
"""On a message that was published again: the id of the one handler that it is for."""


def header(block: bytes, name: bytes) -> str:
    """The value of one header, percent-decoded; empty when it is absent.

    Names are compared as they are written. A value cannot pretend to be a header: CR and LF never occur inside one.
    """
    start = block.find(b"\r\n" + name + b":")
    if start < 0:
        return ""
    start += len(name) + 3
    value = block[start : block.find(b"\r\n", start)].strip()
    text = value.decode("utf-8", "replace")
    return unquote(text) if "%" in text else text


def parse(block: bytes) -> dict[str, str]:
    """Every header of a block; of a repeated one the first."""
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            text = value.strip().decode("utf-8", "replace")
            headers.setdefault(name.decode("utf-8", "replace"), unquote(text) if "%" in text else text)
    return headers
