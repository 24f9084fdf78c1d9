"""Contexts: named ways to reach the bus, so that no command needs a URL and no command line holds a password.

They live in ``contexts.yaml`` in the user's configuration folder (mode 0600), and point to secrets by file. Contexts of the
``nats`` command line (``~/.config/nats/context/*.json``) are read, not written. Settings are found in this order:

1. the context that the command names (``--context``), else the one in ``IPE_CONTEXT``;
2. else, when ``IPE_NATS_URL`` is set, that server and whatever else of ``IPE_NATS_*`` is set, and no context at all;
3. else the current context (``ipe context use``), else the ``nats`` command line's selected one;
4. else ``nats://127.0.0.1:4222``.

In cases 1 and 3 ours win over those of the same name of ``nats``.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
import yaml

from ipe_events.bus.settings import BusSettings
from ipe_events.errors import ConfigError, UsageError

ENVIRONMENT: Mapping[str, str] = {
    "IPE_NATS_URL": "servers",
    "IPE_NATS_USER": "user",
    "IPE_NATS_PASSWORD": "password",
    "IPE_NATS_PASSWORD_FILE": "password_file",
    "IPE_NATS_TOKEN": "token",
    "IPE_NATS_TOKEN_FILE": "token_file",
    "IPE_NATS_CREDS": "creds_file",
    "IPE_NATS_NKEY": "nkey_seed_file",
    "IPE_NATS_JWT": "jwt_file",
    "IPE_NATS_CA": "tls_ca",
    "IPE_NATS_CERT": "tls_cert",
    "IPE_NATS_KEY": "tls_key",
    "IPE_NATS_TLS": "tls",
    "IPE_NATS_TLS_FIRST": "tls_first",
    "IPE_NATS_TLS_HOSTNAME": "tls_hostname",
    "IPE_NATS_INBOX_PREFIX": "inbox_prefix",
    "IPE_NATS_JS_DOMAIN": "js_domain",
}
"""Environment variable → attribute of ``BusSettings``; several servers are separated by commas, switches are true or false."""

_NATS_CLI: Mapping[str, str] = {
    "user": "user",
    "password": "password",
    "token": "token",
    "creds": "creds_file",
    "nkey": "nkey_seed_file",
    "user_jwt": "jwt_file",
    "ca": "tls_ca",
    "cert": "tls_cert",
    "key": "tls_key",
    "tls_first": "tls_first",
    "inbox_prefix": "inbox_prefix",
    "jetstream_domain": "js_domain",
}
_UNSUPPORTED = ("nsc", "socks_proxy", "windows_cert_store", "jetstream_api_prefix")
_FIELDS = {item.name: item for item in dataclasses.fields(BusSettings) if item.name != "source"}
_SWITCHES = {"tls", "tls_first"}
_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """A named way to reach the bus.

    Attributes:
        name: its name.
        settings: what it says.
        origin: ``ipe`` or ``nats``, whose file it is in.
        current: whether commands use it when nothing else is said.
    """

    name: str
    settings: BusSettings
    origin: str
    current: bool


class Contexts:
    """The contexts of this user.

    Args:
        folder: where ours are; by default the user's configuration folder.
        nats_folder: where those of the ``nats`` command line are.
    """

    def __init__(self, folder: Path | None = None, nats_folder: Path | None = None) -> None:
        config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        self.file = (folder or platformdirs.user_config_path("ipe")) / "contexts.yaml"
        self.nats_folder = nats_folder or config_home / "nats"

    def list(self) -> list[Context]:
        """All contexts, ours first, by name.

        Raises:
            ConfigError: a file is unusable.
        """
        current, ours = self._load()
        theirs_current, theirs = self._load_nats()
        current = current or theirs_current
        contexts = [Context(name, self._settings(name, ours[name]), "ipe", name == current) for name in sorted(ours)]
        contexts += [Context(n, self._nats_settings(n, theirs[n]), "nats", n == current) for n in sorted(theirs) if n not in ours]
        return contexts

    def get(self, name: str) -> BusSettings:
        """One context's settings.

        Raises:
            ConfigError: there is none of this name, or its file is unusable.
        """
        _, ours = self._load()
        if name in ours:
            return self._settings(name, ours[name])
        _, theirs = self._load_nats()
        if name in theirs:
            return self._nats_settings(name, theirs[name])
        known = ", ".join(sorted({*ours, *theirs})) or "none"
        raise ConfigError(f"context {name!r} does not exist (known: {known})", fix="see `ipe context list`, or `ipe context add`")

    def current(self) -> str:
        """The name of the context in use; empty without one."""
        return self._load()[0] or self._load_nats()[0]

    def add(self, name: str, settings: BusSettings, *, use: bool = False) -> None:
        """Writes (or replaces) a context; secrets as files only.

        Raises:
            UsageError: the name is unusable, or the settings hold a secret itself.
            ConfigError: the file is unusable.
        """
        if not name or name.strip() != name or "/" in name:
            raise UsageError(f"context name {name!r} is empty or holds spaces at its ends or a slash")
        if settings.password or settings.token:
            raise UsageError("a context holds no password or token", fix="put it into a file: password_file, token_file")
        current, contexts = self._load()
        defaults = BusSettings()
        values = {key: getattr(settings, key) for key in _FIELDS if getattr(settings, key) != getattr(defaults, key)}
        values["servers"] = list(settings.servers)
        contexts[name] = values
        self._save(name if use or not current else current, contexts)

    def use(self, name: str) -> None:
        """Makes a context the current one.

        Raises:
            ConfigError: there is none of this name.
        """
        self.get(name)
        self._save(name, self._load()[1])

    def remove(self, name: str) -> None:
        """Removes one of our contexts.

        Raises:
            ConfigError: we have none of this name.
        """
        current, contexts = self._load()
        if name not in contexts:
            raise ConfigError(f"context {name!r} is not in this file", where=str(self.file), fix="see `ipe context list`")
        del contexts[name]
        self._save("" if current == name else current, contexts)

    # --- files -------------------------------------------------------------------------------------------------------------

    def _load(self) -> tuple[str, dict[str, dict[str, Any]]]:
        try:
            document = yaml.safe_load(self.file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            return "", {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot be read: {error}", where=str(self.file), fix="repair or remove the file") from error
        contexts = document.get("contexts", {}) if isinstance(document, dict) else None
        if not isinstance(contexts, dict) or not all(isinstance(values, dict) for values in contexts.values()):
            raise ConfigError("is not `contexts: {name: {…}}`", where=str(self.file), fix="repair or remove the file")
        if document.get("version", _VERSION) != _VERSION:
            raise ConfigError(
                f"has version {document['version']!r}, known is {_VERSION}", where=str(self.file), fix="upgrade ipe"
            )
        return str(document.get("current") or ""), contexts

    def _save(self, current: str, contexts: dict[str, dict[str, Any]]) -> None:
        text = yaml.safe_dump({"version": _VERSION, "current": current, "contexts": contexts}, sort_keys=True)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=self.file.parent, prefix=".contexts-")  # mode 0600
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self.file)
        except OSError as error:
            raise ConfigError(f"cannot be written: {error}", where=str(self.file)) from error

    def _settings(self, name: str, values: dict[str, Any]) -> BusSettings:
        return build(values, f"{self.file} (context {name})")

    def _load_nats(self) -> tuple[str, dict[str, dict[str, Any]]]:
        contexts: dict[str, dict[str, Any]] = {}
        try:
            for path in sorted((self.nats_folder / "context").glob("*.json")):
                values = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(values, dict):
                    raise ConfigError("is no JSON object", where=str(path))
                contexts[path.stem] = values
            selected = self.nats_folder / "context.txt"
            current = selected.read_text(encoding="utf-8").strip() if selected.exists() else ""
        except (OSError, ValueError) as error:
            raise ConfigError(f"context of the nats command line cannot be read: {error}", where=str(self.nats_folder)) from error
        return (current if current in contexts else ""), contexts

    def _nats_settings(self, name: str, values: dict[str, Any]) -> BusSettings:
        place = str(self.nats_folder / "context" / f"{name}.json")
        for key in _UNSUPPORTED:
            if values.get(key):
                raise ConfigError(
                    f"uses {key!r}, which ipe cannot", where=place, fix="make an own context with `ipe context add`"
                )
        ours: dict[str, Any] = {ours: values[theirs] for theirs, ours in _NATS_CLI.items() if values.get(theirs)}
        if values.get("url"):
            ours["servers"] = str(values["url"])
        if ours.get("creds_file"):
            ours.pop("user", None)
        return build(ours, place)


def build(values: Mapping[str, Any], source: str) -> BusSettings:
    """Settings from keys and values of a file or the environment.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _FIELDS:
            raise ConfigError(f"unknown key {key!r}", where=source, fix=f"known are {', '.join(sorted(_FIELDS))}")
        if key == "servers":
            parts = value.split(",") if isinstance(value, str) else value
            if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part.strip() for part in parts):
                raise ConfigError(f"servers {value!r} are no URLs", where=source, fix="nats://host:4222, separated by commas")
            given[key] = tuple(part.strip() for part in parts)
        elif key in _SWITCHES:
            given[key] = _switch(value, key, source)
        elif key == "connect_timeout":
            if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"connect_timeout {value!r} is no number of seconds", where=source)
            given[key] = float(value)
        elif not isinstance(value, str):
            raise ConfigError(f"{key} is {value!r}, not text", where=source)
        else:
            given[key] = value
    return BusSettings(**given, source=source)


def _switch(value: Any, key: str, source: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ConfigError(f"{key} is {value!r}", where=source, fix="true or false")


def resolve(context: str | None = None, env: Mapping[str, str] | None = None, contexts: Contexts | None = None) -> BusSettings:
    """The settings that a command should use, by the order at the top of this module.

    Args:
        context: the context that the command names.
        env: the environment; this process' by default.
        contexts: where contexts are; the user's by default.

    Raises:
        ConfigError: the context does not exist, or a value is unusable.
    """
    env = os.environ if env is None else env
    contexts = contexts or Contexts()
    name = context or env.get("IPE_CONTEXT", "")
    if name:
        return contexts.get(name)
    given = {attribute: env[variable] for variable, attribute in ENVIRONMENT.items() if env.get(variable)}
    if "servers" in given:
        return build(given, "the environment (IPE_NATS_*)")
    if given:
        variables = ", ".join(sorted(variable for variable in ENVIRONMENT if env.get(variable)))
        raise ConfigError(f"{variables} without IPE_NATS_URL", where="the environment", fix="set IPE_NATS_URL too, or unset them")
    current = contexts.current()
    return contexts.get(current) if current else BusSettings(source="the default")
