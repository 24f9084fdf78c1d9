"""Where the bus is and who we are there.

Secrets come from files or the environment, never from argv, and are read when a connection is opened, so that a rotated file is
picked up at the next reconnect. What identifies us (a user name, a public key, the name in a JWT) appears in error messages;
what proves it does not, not even in ``repr``.
"""

import base64
import binascii
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import nkeys

from ipe_events.errors import ConfigError

DEFAULT_SERVER = "nats://127.0.0.1:4222"
"""Where we look when nothing says otherwise."""

T = TypeVar("T")

_JWT = ("-----BEGIN NATS USER JWT-----", "------END NATS USER JWT------")
_SEED = ("-----BEGIN USER NKEY SEED-----", "------END USER NKEY SEED------")


@dataclass(frozen=True, slots=True)
class BusSettings:
    """One way to reach NATS.

    Attributes:
        servers: URLs, ``nats://host:port`` or ``tls://host:port``.
        user, password, password_file: user and password; the file's first line wins over ``password``.
        token, token_file: a token instead.
        creds_file: a ``.creds`` file (JWT and seed).
        nkey_seed_file: a file with an nkey seed (``SU…``).
        jwt_file: the JWT that belongs to ``nkey_seed_file``, when there is no ``.creds`` file.
        tls_ca, tls_cert, tls_key: PEM files; any of them, or ``tls``, asks for TLS.
        tls: TLS with the system's trust store.
        tls_first: handshake before the server's first line (``handshake_first`` of the server).
        tls_hostname: name to expect in the certificate, when it is not the URL's host.
        inbox_prefix: first tokens of our inboxes, when permissions give us our own.
        js_domain: JetStream domain, when the streams are behind a leaf node.
        connect_timeout: seconds for the first connection, all servers together.
        source: where these settings come from, for error messages.
    """

    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    user: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    token: str = field(default="", repr=False)
    token_file: str = ""
    creds_file: str = ""
    nkey_seed_file: str = ""
    jwt_file: str = ""
    tls: bool = False
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_first: bool = False
    tls_hostname: str = ""
    inbox_prefix: str = "_INBOX"
    js_domain: str = ""
    connect_timeout: float = 5.0
    source: str = ""

    @classmethod
    def resolve(cls, context: str | None = None, env: "dict[str, str] | None" = None) -> "BusSettings":
        """The settings that a command should use; see ``ipe_events.bus.contexts`` for the order of precedence."""
        from ipe_events.bus.contexts import resolve  # contexts build on settings

        return resolve(context, env)

    @property
    def identity(self) -> str:
        """Who we are, for people: a user, a public nkey, the JWT's name, ``token`` or ``anonymous``.

        Raises:
            ConfigError: the creds or seed file cannot be used.
        """
        if self.creds_file:
            return jwt_name(between(self._text(self.creds_file, "creds file"), _JWT, self.creds_file), self.creds_file)
        if self.nkey_seed_file and self.jwt_file:
            return jwt_name(self._text(self.jwt_file, "JWT file"), self.jwt_file)
        if self.nkey_seed_file:
            return self._with_key(lambda key: str(key.public_key.decode()))
        return self.user or ("token" if self.token or self.token_file else "anonymous")

    @property
    def wants_tls(self) -> bool:
        """Whether these settings ask for TLS."""
        return (
            self.tls
            or self.tls_first
            or bool(self.tls_ca or self.tls_cert)
            or any(url.startswith("tls:") for url in self.servers)
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context, or None for plain TCP.

        Raises:
            ConfigError: a PEM file is missing or unusable.
        """
        if not self.wants_tls:
            return None
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("a client certificate needs its key and the key its certificate", where=self.source, fix="set both")
        place = self.tls_ca or self.tls_cert
        try:
            context = ssl.create_default_context(cafile=self.tls_ca or None)
            if self.tls_cert:
                place = self.tls_cert
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"TLS file cannot be used: {error}", where=place, fix="give a readable PEM file") from error
        return context

    def client_options(self) -> dict[str, Any]:
        """What nats-py's ``connect`` takes to authenticate as this identity.

        Raises:
            ConfigError: a file cannot be read, or more than one kind of credentials is given.
        """
        kinds = [
            name
            for name, given in (
                ("creds file", self.creds_file),
                ("nkey seed file", self.nkey_seed_file),
                ("token", self.token or self.token_file),
                ("user", self.user),
            )
            if given
        ]
        if len(kinds) > 1:
            raise ConfigError(f"more than one kind of credentials: {', '.join(kinds)}", where=self.source, fix="keep one")
        options: dict[str, Any] = {"inbox_prefix": self.inbox_prefix, "tls_handshake_first": self.tls_first}
        if context := self.ssl_context():
            options["tls"] = context
            options["tls_hostname"] = self.tls_hostname or None
        if self.creds_file or self.nkey_seed_file:
            options["signature_cb"] = self._sign
            if self.creds_file or self.jwt_file:
                options["user_jwt_cb"] = self._jwt
        elif self.token or self.token_file:
            options["token"] = self._token
        elif self.user:
            options["user"] = self.user
            options["password"] = self._password
        return options

    def _token(self) -> str:
        return self._text(self.token_file, "token file") if self.token_file else self.token

    def _password(self) -> str:
        return self._text(self.password_file, "password file") if self.password_file else self.password

    def _jwt(self) -> bytes:
        if self.creds_file:
            return between(self._text(self.creds_file, "creds file"), _JWT, self.creds_file).encode()
        return self._text(self.jwt_file, "JWT file").encode()

    def _sign(self, nonce: str) -> bytes:
        return self._with_key(lambda key: base64.b64encode(key.sign(nonce.encode())))

    def _with_key(self, use: Callable[[Any], T]) -> T:
        place = self.creds_file or self.nkey_seed_file
        text = self._text(place, "nkey seed file")
        seed = bytearray((between(text, _SEED, place) if self.creds_file else text).encode())
        try:
            key = nkeys.from_seed(seed)
        except (nkeys.NkeysError, ValueError, binascii.Error) as error:
            raise ConfigError(f"holds no nkey seed ({type(error).__name__})", where=place, fix="a seed starts with SU") from error
        try:
            return use(key)
        finally:
            key.wipe()

    def _text(self, path: str, what: str) -> str:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{what} cannot be read: {error}", where=path, fix="check the path and its permissions") from error
        if not text:
            raise ConfigError(f"{what} is empty", where=path)
        return text


def between(text: str, marks: tuple[str, str], place: str) -> str:
    """The one line between two marker lines of a creds file.

    Raises:
        ConfigError: the markers or the line are missing.
    """
    _, found, rest = text.partition(marks[0])
    inner, closed, _ = rest.partition(marks[1])
    if not found or not closed or not inner.strip():
        raise ConfigError(f"has no section {marks[0].strip('-')!r}", where=place, fix="give a NATS .creds file")
    return inner.strip()


def jwt_name(jwt: str, place: str) -> str:
    """The name (or subject) that a user JWT claims; its signature is the server's business.

    Raises:
        ConfigError: the text is no JWT.
    """
    try:
        payload = jwt.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims.get("name") or claims["sub"])
    except (IndexError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError("holds no user JWT", where=place) from error
