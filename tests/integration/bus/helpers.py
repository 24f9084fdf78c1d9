"""What the bus tests share: streams, and identities of a server in operator mode."""

import base64
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import nkeys

from ipe_events.bus.connection import Bus


async def make_stream(bus: Bus, name: str, *subjects: str, **config: Any) -> None:
    """A stream with file storage, direct gets, and whatever else is given."""
    await bus.js_api(
        f"STREAM.CREATE.{name}", {"name": name, "subjects": list(subjects), "storage": "file", "allow_direct": True, **config}
    )


class Key(NamedTuple):
    """An nkey: seed and public key as text."""

    seed: str
    public: str

    def sign(self, text: str) -> bytes:
        return bytes(nkeys.from_seed(bytearray(self.seed.encode())).sign(text.encode()))


def new_key(prefix: int = nkeys.PREFIX_BYTE_USER) -> Key:
    seed = bytes(nkeys.encode_seed(os.urandom(32), prefix))
    return Key(seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode())


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def jwt(issuer: Key, subject: str, name: str, nats: dict[str, Any]) -> str:
    """A NATS JWT signed by ``issuer``."""
    claims = {
        "jti": name,
        "iat": 1_700_000_000,
        "iss": issuer.public,
        "name": name,
        "sub": subject,
        "nats": {**nats, "version": 2},
    }
    text = ".".join(_segment(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims))
    return f"{text}.{_segment(issuer.sign(text))}"


class Operator(NamedTuple):
    """A server's operator mode: its configuration, and one user's JWT and key."""

    config: str
    user_jwt: str
    user: Key

    def write_creds(self, path: Path) -> Path:
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{self.user_jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.user.seed}\n------END USER NKEY SEED------\n"
        )
        path.chmod(0o600)
        return path


def operator(user_name: str) -> Operator:
    """An operator with one account that has JetStream, and a user in it."""
    root, account, system, user = (
        new_key(nkeys.PREFIX_BYTE_OPERATOR),
        new_key(nkeys.PREFIX_BYTE_ACCOUNT),
        new_key(nkeys.PREFIX_BYTE_ACCOUNT),
        new_key(),
    )
    unlimited = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    stores = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    limits = {"limits": {**unlimited, "wildcards": True, **stores}, "type": "account"}
    operator_jwt = jwt(root, root.public, "op", {"type": "operator", "system_account": system.public})
    account_jwt = jwt(root, account.public, "acc", limits)
    system_jwt = jwt(root, system.public, "sys", {"limits": {**unlimited, "wildcards": True}, "type": "account"})
    user_jwt = jwt(account, user.public, user_name, {"type": "user", "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}})
    config = (
        f"operator: {operator_jwt}\nsystem_account: {system.public}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {account_jwt}, {system.public}: {system_jwt} }}"
    )
    return Operator(config, user_jwt, user)
