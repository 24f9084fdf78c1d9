"""The seam to nats-py: if one of these fails after an upgrade, read ``ipe_events/bus/client.py`` before anything else."""

import inspect
import re

import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from ipe_events.bus.client import Client


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]  # functions all


def test_nats_py_still_has_what_we_override():
    assert parameters(NatsClient._process_msg) == ["self", "sid", "subject", "reply", "data", "headers"]
    assert parameters(NatsClient._process_err) == ["self", "err_msg"]
    assert parameters(NatsClient._connect_command) == ["self"]
    assert parameters(NatsClient._send_ping) == ["self", "future"]
    assert parameters(NatsClient._process_op_err) == ["self", "e"]
    assert parameters(Parser.parse) == ["self", "data"]
    assert parameters(Parser.reset) == ["self"]
    assert parameters(TcpTransport.connect) == ["self", "uri", "buffer_size", "connect_timeout"]
    assert parameters(TcpTransport.read) == ["self", "buffer_size"]
    assert parameters(Subscription.__init__)[:6] == ["self", "conn", "id", "subject", "queue", "cb"]
    for function in (NatsClient._process_msg, NatsClient._process_err, Parser.parse, TcpTransport.read):
        assert inspect.iscoroutinefunction(function)


def test_nats_py_still_has_the_fields_we_write():
    client = NatsClient()
    for name, kind in {"_pending": list, "_pending_data_size": int, "_sid": int, "_subs": dict, "_ps": Parser}.items():
        assert isinstance(getattr(client, name), kind), name
    for name in ("_flush_queue", "_transport", "_public_nkey", "_err", "_server_info"):
        assert hasattr(client, name), name
    parser = Parser(client)
    assert isinstance(parser.buf, bytearray)
    assert parser.state == AWAITING_CONTROL_LINE


def test_nats_py_still_reads_the_fields_where_we_write_them():
    source = inspect.getsource(NatsClient)
    for text in (
        "await self._ps.parse(b)",
        "await self.nc._process_msg",
        "self._transport.writelines(self._pending",
        "for sid, sub in self._subs.items():",
        "if not self._transport:",
        'options["nkey"] = self._public_nkey',
    ):
        assert text in source or text in inspect.getsource(Parser), text


class Probe:
    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes, bytes, bytes]] = []

    def __call__(self, *message: bytes) -> None:
        self.seen.append(message)  # type: ignore[arg-type]  # four of them


def client_with(probe: Probe) -> Client:
    client = Client()
    client._subs[1] = Subscription(client, 1, "a.*")
    client._raw[1] = probe
    return client


HEAD = b"NATS/1.0\r\nce-id: 1\r\n\r\n"
WIRE = (
    b"HMSG a.b 1 $JS.ACK.x %d %d\r\n%b{}\r\n" % (len(HEAD), len(HEAD) + 2, HEAD)
    + b"MSG a.c 1 5\r\nhello\r\n"
    + b"PONG\r\n"
    + b"HMSG a.d 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
)
MESSAGES = [
    (b"a.b", b"$JS.ACK.x", HEAD, b"{}"),
    (b"a.c", b"", b"", b"hello"),
    (b"a.d", b"", b"NATS/1.0 503\r\n\r\n", b""),
]


@pytest.mark.parametrize("size", range(1, len(WIRE) + 1))
async def test_raw_messages_arrive_as_bytes_however_the_wire_is_cut(size: int):
    probe = Probe()
    client = client_with(probe)
    for at in range(0, len(WIRE), size):
        await client._ps.parse(WIRE[at : at + size])
    assert probe.seen == MESSAGES


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
async def test_what_takes_runs_gets_them_and_leaves_the_rest(size: int):
    """Two messages of three are of the known form; none is lost or seen twice, in order, however the wire is cut."""
    probe = Probe()
    client = client_with(probe)

    def take(data: bytes, at: int) -> int:
        while found := known(data, at):
            probe(found[1], b"", b"", b"run")
            at = found.end()
        return at

    known = re.compile(rb"MSG (a\.[0-9]+) 1 5\r\nknown\r\n").match
    client._runs[1] = take
    wire = b"".join(b"MSG a.%d 1 5\r\n%b\r\n" % (number, b"known" if number % 3 else b"other") for number in range(30))
    for at in range(0, len(wire), size):
        await client._ps.parse(wire[at : at + size])
    assert [subject for subject, *_ in probe.seen] == [b"a.%d" % number for number in range(30)]
    assert (b"run" in [message[3] for message in probe.seen]) == (size >= 40)
    client._pending_data_size = 0
    client.unsubscribe_raw(1)
    assert not client._runs


async def test_headers_of_raw_messages_are_not_parsed(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args: object) -> None:
        raise AssertionError("headers were parsed")

    monkeypatch.setattr(NatsClient, "_process_headers", refuse)
    monkeypatch.setattr(NatsClient, "_build_message", refuse)
    probe = Probe()
    client = client_with(probe)
    await client._process_msg(1, *MESSAGES[0][:2], MESSAGES[0][3], HEAD)
    await client._ps.parse(WIRE)
    assert probe.seen == [MESSAGES[0], *MESSAGES]


@pytest.mark.parametrize(
    ("text", "kind", "subject"),
    [
        ("'permissions violation for publish to \"ipe.cmd.a\"'", "publish", "ipe.cmd.a"),
        ('\'permissions violation for subscription to "ipe.>" using queue "q"\'', "subscription", "ipe.>"),
    ],
)
async def test_violations_are_told_with_their_subject(text: str, kind: str, subject: str):
    client = Client()
    told: list[tuple[str, str]] = []
    client.on_violation = lambda *violation: told.append(violation)
    await client._process_err(text)
    assert told == [(kind, subject)]


@pytest.mark.parametrize("text", ["'user authentication expired'", "'authorization violation'", "'something new'"])
async def test_no_error_of_the_server_ends_the_client_for_good(text: str, monkeypatch: pytest.MonkeyPatch):
    client = Client()
    reconnects: list[Exception] = []

    async def reconnect(error: Exception) -> None:
        reconnects.append(error)

    monkeypatch.setattr(client, "_process_op_err", reconnect)
    await client._process_err(text)
    assert len(reconnects) == 1
    assert not client.is_closed


async def test_a_ping_does_not_overtake_what_was_written(monkeypatch: pytest.MonkeyPatch):
    """Otherwise a pong comes before the server's word on the command, and a refusal is noticed too late."""
    client = Client()
    sent: list[bytes] = []

    class Wire:
        def write(self, data: bytes) -> None:
            sent.append(data)

        def writelines(self, lines: list[bytes]) -> None:
            sent.extend(lines)

    async def no_flusher() -> None:
        return None

    monkeypatch.setattr(client, "_transport", Wire())
    monkeypatch.setattr(client, "_flush_pending", no_flusher)
    client.write(b"PUB forbidden 0\r\n\r\n")
    await client._send_ping()
    assert sent == [b"PUB forbidden 0\r\n\r\n", b"PING\r\n"]
    assert client._pending == []
