"""Every way to say who we are, TLS, and what a refused one looks like."""

from pathlib import Path

import pytest
import trustme

from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.bus.consumer import Consumer, ConsumerSpec, Delivery
from ipe_events.bus.services import Endpoint, Reply, Request
from ipe_events.errors import BusError, BusPermissionDenied, BusUnavailable, ConfigError
from tests.helpers import eventually, free_port
from tests.integration.bus.helpers import make_stream, new_key, operator
from tests.nats import Factory, NatsServer


async def works_as(settings: BusSettings, identity: str) -> None:
    async with await Bus.connect(settings, name="test") as bus:
        assert bus.identity == identity
        await make_stream(bus, "S", "s.>")
        assert (await bus.publish("s.a", b"1")).seq == 1


async def test_user_and_password_file(nats_factory: Factory, tmp_path: Path):
    server = nats_factory(extra='authorization { users: [{ user: "ada", password: "s3cret" }] }')
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    await works_as(BusSettings((server.url,), user="ada", password_file=str(secret)), "ada")


async def test_a_wrong_password_is_one_clear_error_at_once(nats_factory: Factory):
    server = nats_factory(extra='authorization { users: [{ user: "ada", password: "s3cret" }] }')
    with pytest.raises(BusPermissionDenied, match="refuses the credentials of 'ada'") as caught:
        await Bus.connect(BusSettings((server.url,), user="ada", password="wr0ng"), name="test")
    assert "wr0ng" not in str(caught.value)
    assert "wr0ng" not in repr(BusSettings(user="ada", password="wr0ng", token="wr0ng"))


async def test_token_file(nats_factory: Factory, tmp_path: Path):
    server = nats_factory(extra='authorization { token: "t0ken" }')
    (tmp_path / "token").write_text("t0ken\n")
    await works_as(BusSettings((server.url,), token_file=str(tmp_path / "token")), "token")


async def test_nkey_seed_file(nats_factory: Factory, tmp_path: Path):
    key = new_key()
    server = nats_factory(extra=f"authorization {{ users: [{{ nkey: {key.public} }}] }}")
    (tmp_path / "seed").write_text(key.seed + "\n")
    await works_as(BusSettings((server.url,), nkey_seed_file=str(tmp_path / "seed")), key.public)


async def test_creds_file_and_jwt_with_seed(nats_factory: Factory, tmp_path: Path):
    mode = operator("drift-handler")
    server = nats_factory(extra=mode.config)
    await works_as(BusSettings((server.url,), creds_file=str(mode.write_creds(tmp_path / "user.creds"))), "drift-handler")
    (tmp_path / "jwt").write_text(mode.user_jwt)
    (tmp_path / "seed").write_text(mode.user.seed)
    settings = BusSettings((server.url,), jwt_file=str(tmp_path / "jwt"), nkey_seed_file=str(tmp_path / "seed"))
    async with await Bus.connect(settings, name="test") as bus:
        assert bus.identity == "drift-handler"


async def test_a_rotated_password_file_is_read_at_the_reconnect(nats_factory: Factory, tmp_path: Path):
    server = nats_factory(extra='authorization { users: [{ user: "ada", password: "old" }] }')
    secret = tmp_path / "password"
    secret.write_text("old")
    async with await Bus.connect(BusSettings((server.url,), user="ada", password_file=str(secret)), name="test") as bus:
        server.kill()
        secret.unlink()  # for a moment there is none
        server.extra = 'authorization { users: [{ user: "ada", password: "new" }] }'
        server.start()
        secret.write_text("new")
        await eventually(lambda: bus.connected)


async def test_an_unusable_file_is_named(nats_server: NatsServer, tmp_path: Path):
    (tmp_path / "user.creds").write_text("nothing")
    with pytest.raises(ConfigError, match=r"user\.creds: has no section"):
        await Bus.connect(BusSettings((nats_server.url,), creds_file=str(tmp_path / "user.creds")), name="test")
    with pytest.raises(ConfigError, match="more than one kind of credentials: token, user"):
        await Bus.connect(BusSettings((nats_server.url,), user="a", token="b"), name="test")


async def test_nobody_listens():
    with pytest.raises(BusUnavailable, match="cannot be reached"):
        await Bus.connect(BusSettings((f"nats://127.0.0.1:{free_port()}",)), name="test")


async def test_the_second_server_is_tried(nats_server: NatsServer):
    async with await Bus.connect(BusSettings((f"nats://127.0.0.1:{free_port()}", nats_server.url)), name="test") as bus:
        assert bus.connected


async def test_a_server_without_jetstream_is_refused(nats_factory: Factory):
    server = nats_factory(jetstream=False)
    with pytest.raises(BusError, match="JetStream is not on"):
        await Bus.connect(server.settings, name="test")


class Certificates:
    """A CA, a server's and a client's certificate as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        server = authority.issue_cert("127.0.0.1", "localhost")
        client = authority.issue_cert("agent@example.test")
        self.ca, self.cert, self.key = (str(folder / name) for name in ("ca.pem", "server.pem", "server.key"))
        self.client_cert, self.client_key = str(folder / "client.pem"), str(folder / "client.key")
        authority.cert_pem.write_to_path(self.ca)
        server.cert_chain_pems[0].write_to_path(self.cert)
        server.private_key_pem.write_to_path(self.key)
        client.cert_chain_pems[0].write_to_path(self.client_cert)
        client.private_key_pem.write_to_path(self.client_key)

    def config(self, more: str = "") -> str:
        return f'tls {{ cert_file: "{self.cert}", key_file: "{self.key}", ca_file: "{self.ca}", {more} }}'


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def test_tls_with_client_certificate(nats_factory: Factory, certificates: Certificates):
    server = nats_factory(extra=certificates.config("verify: true"))
    settings = BusSettings(
        (server.url,), tls_ca=certificates.ca, tls_cert=certificates.client_cert, tls_key=certificates.client_key
    )
    await works_as(settings, "anonymous")


async def test_tls_handshake_first_over_a_restart(nats_factory: Factory, certificates: Certificates):
    server = nats_factory(extra=certificates.config("handshake_first: true"))
    async with await Bus.connect(BusSettings((server.url,), tls_ca=certificates.ca, tls_first=True), name="test") as bus:
        await make_stream(bus, "S", "s.>")
        server.kill()
        server.start()
        assert (await bus.publish("s.a", b"x" * 100_000, timeout=15)).seq == 1


async def test_an_unknown_authority_is_refused(nats_factory: Factory, certificates: Certificates):
    server = nats_factory(extra=certificates.config())
    with pytest.raises(BusError, match=r"TLS with NATS failed.*certificate"):
        await Bus.connect(BusSettings((server.url,), tls=True), name="test")


RESTRICTED = """
authorization { users: [
  { user: admin, password: a },
  { user: drift, password: b, permissions: {
      publish: ["ipe.finding.drift.>", "$JS.API.INFO", "$JS.API.CONSUMER.MSG.NEXT.S.drift", "$JS.ACK.S.drift.>"],
      subscribe: ["_INBOX_drift.>", "ipe.svc.drift.>"] } } ] }
"""


async def test_a_permission_violation_names_subject_and_identity(nats_factory: Factory):
    server = nats_factory(extra=RESTRICTED)
    mine = BusSettings((server.url,), user="drift", password="b", inbox_prefix="_INBOX_drift")
    async with (
        await Bus.connect(BusSettings((server.url,), user="admin", password="a"), name="admin") as admin,
        await Bus.connect(mine, name="drift") as bus,
    ):
        await make_stream(admin, "S", "ipe.finding.>", "other.>")
        assert (await bus.publish("ipe.finding.drift.x", b"{}")).seq == 1

        async def answer(_request: Request) -> Reply:
            return Reply()

        with pytest.raises(BusPermissionDenied, match=r"'drift' may not publish to 'other\.Thing'"):
            await bus.publish("other.Thing", b"{}")
        with pytest.raises(BusPermissionDenied, match=r"'drift' may not publish to 'ipe\.svc\.Agent'"):
            await bus.request("ipe.svc.Agent")
        with pytest.raises(BusPermissionDenied, match=r"'drift' may not publish to '\$JS.API.STREAM.INFO.S'"):
            await bus.stream_info("S")
        with pytest.raises(BusPermissionDenied, match=r"'drift' may not subscribe to 'ipe\.svc\.Audit'"):
            await bus.serve("audit", "1.0.0", [Endpoint("q", "ipe.svc.Audit", answer)])
        assert bus.connected

        # and the durable that an administrator made for it works with nothing more than these rights
        await admin.js_api(
            "CONSUMER.CREATE.S.drift",
            {
                "stream_name": "S",
                "action": "create",
                "config": {"name": "drift", "durable_name": "drift", "ack_policy": "explicit"},
            },
        )
        seen: list[str] = []

        def take(delivery: Delivery) -> None:
            seen.append(delivery.subject)
            delivery.ack()

        consumer = await Consumer.start(bus, ConsumerSpec("S", "drift", start="all"), take)
        await eventually(lambda: seen == ["ipe.finding.drift.x"])
        await consumer.stop()
        state = await admin.js_api("CONSUMER.INFO.S.drift")
        assert state["num_ack_pending"] == 0
        with pytest.raises(BusPermissionDenied, match="'drift' may not publish to"):
            await Consumer.start(bus, ConsumerSpec("S", "mine", start="all"), lambda _d: None)


async def test_an_inbox_that_may_not_be_read_is_said(nats_factory: Factory):
    server = nats_factory(extra=RESTRICTED)
    with pytest.raises(BusPermissionDenied, match=r"'drift' may not subscribe to '_INBOX\."):
        await Bus.connect(BusSettings((server.url,), user="drift", password="b"), name="drift")
