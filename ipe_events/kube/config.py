"""Where a cluster's API server is and how we prove who we are, read by kubernetes_asyncio's own loaders.

``kubernetes_asyncio`` knows every way to log in; we only keep its hands tied: a kubeconfig is hostile until parsed, so a program
that it names (exec plugin, or the ``gcloud`` of the old auth provider) runs only when the operator has allowed exactly that
command. What comes out is ``Credentials``: plain values that ``KubeSession`` turns into a connection, with the moment at which
they should be read again. Every mistake in the file becomes one ``ConfigError`` that names file and problem.
"""

import asyncio
import hashlib
import os
import ssl
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from ipe_events.clock import SYSTEM
from ipe_events.errors import ConfigError

REREAD_SECONDS = 60.0
"""How long a token read from a file is used: projected service account tokens rotate."""

PLUGIN_SECONDS = 30.0
"""How long an exec plugin may take."""


@dataclass(frozen=True, slots=True)
class ClusterSource:
    """How to reach one cluster.

    Attributes:
        name: the operator's name for the cluster.
        kubeconfig: path of the file (or several, joined as in ``KUBECONFIG``); None: ``KUBECONFIG``, then ``~/.kube/config``.
        context: of the kubeconfig; None: its current one.
        in_cluster: use the service account of the pod we run in; the other fields are ignored then.
        allow_exec: commands that the kubeconfig may run to get credentials, exactly as it writes them.
    """

    name: str
    kubeconfig: str | None = None
    context: str | None = None
    in_cluster: bool = False
    allow_exec: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a session needs; ``fingerprint`` changes when the TLS material or the server does, not with the token.

    Attributes:
        server: base URL without a trailing slash.
        authorization: value of the ``Authorization`` header; empty: none.
        tls: context of an https server; None for http.
        server_name: expected in the server's certificate; None: the host's.
        proxy: URL of an HTTP proxy; None: none.
        fingerprint: of everything that belongs to the connection.
        ttl: seconds after which they should be read again; None: when refused.
    """

    server: str
    authorization: str
    tls: ssl.SSLContext | None
    server_name: str | None
    proxy: str | None
    fingerprint: str
    ttl: float | None


def kubeconfig_files(source: ClusterSource, env: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The files a source reads, in order of precedence.

    Raises:
        ConfigError: none of them exists.
    """
    text = source.kubeconfig or env.get("KUBECONFIG") or str(Path("~/.kube/config"))
    files = tuple(Path(part).expanduser() for part in text.split(os.pathsep) if part)
    found = tuple(file for file in files if file.is_file())
    if not found:
        raise ConfigError(
            f"no kubeconfig at {text}", where=f"cluster {source.name}", fix="name one with --kubeconfig or KUBECONFIG"
        )
    return found


def read_kubeconfig(file: Path) -> dict[str, Any]:
    """One kubeconfig file, checked as far as reading it needs.

    Raises:
        ConfigError: it cannot be read, is no YAML, or lists something that is not a list of named entries.
    """
    try:
        document = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(file)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"is not YAML: {problem}", where=str(file), fix="compare with `kubectl config view`") from error
    if not isinstance(document, dict):
        raise ConfigError(f"holds {type(document).__name__}, not a mapping", where=str(file), fix="give a kubeconfig file")
    for section in ("clusters", "contexts", "users"):
        entries = document.get(section)
        singular = section.removesuffix("s")
        if entries is None:
            continue
        if not isinstance(entries, list):
            raise ConfigError(f"{section} is {type(entries).__name__}, not a list", where=str(file))
        for position, entry in enumerate(entries):
            body = entry.get(singular) if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not isinstance(body, dict | None):
                raise ConfigError(f"{section}[{position}] needs `name` and `{singular}`", where=str(file))
    return document


async def load_credentials(source: ClusterSource) -> Credentials:
    """Read and check the source; runs an allowed exec plugin.

    Raises:
        ConfigError: names the file (or the pod's missing service account) and what is wrong with it.
    """
    # importing the loaders costs a good part of a second: only those who talk to a cluster pay
    from kubernetes_asyncio.client import Configuration

    configuration = Configuration()
    if source.in_cluster:
        ttl: float | None = _load_in_cluster(source, configuration)
        where = f"cluster {source.name} (in-cluster)"
    else:
        files = kubeconfig_files(source)
        where = os.pathsep.join(map(str, files))
        ttl = await _load_kubeconfig(source, files, where, configuration)
    return _credentials(configuration, ttl, where)


def _load_in_cluster(source: ClusterSource, configuration: Any) -> float:
    from kubernetes_asyncio.config import ConfigException, load_incluster_config

    try:
        load_incluster_config(client_configuration=configuration, try_refresh_token=False)  # type: ignore[no-untyped-call]  # theirs
    except (ConfigException, OSError) as error:
        raise ConfigError(
            f"no service account: {error}", where=f"cluster {source.name}", fix="run in a pod, or give a kubeconfig"
        ) from error
    return REREAD_SECONDS


async def _load_kubeconfig(source: ClusterSource, files: tuple[Path, ...], where: str, configuration: Any) -> float | None:
    """Fill ``configuration``; returns how long the credentials hold."""
    from kubernetes_asyncio.config import ConfigException, load_kube_config

    user = _user_of(source, [read_kubeconfig(file) for file in files], where)
    _check_programs(source, user, where)
    try:
        async with asyncio.timeout(PLUGIN_SECONDS):
            loader = await load_kube_config(
                config_file=os.pathsep.join(map(str, files)),
                context=source.context,
                client_configuration=configuration,
                persist_config=False,
            )
    except TimeoutError as error:
        raise ConfigError(f"the credential plugin did not answer within {PLUGIN_SECONDS:.0f} s", where=where) from error
    except (ConfigException, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # the loader trusts the file's shape; whatever it stumbles over is a mistake in the file
        raise ConfigError(str(error) or type(error).__name__, where=where, fix="compare with `kubectl config view`") from error
    expiry: datetime | None = getattr(loader, "exec_plugin_expiry", None)
    if expiry is not None:
        return max(1.0, (expiry - SYSTEM.now()).total_seconds() - REREAD_SECONDS)
    return REREAD_SECONDS if "tokenFile" in user else None


def _user_of(source: ClusterSource, documents: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """The user entry of the chosen context; the first file that has a name wins, as with kubectl."""
    # a later file's current-context wins in kubernetes_asyncio's merge, so it does here
    current = next((name for document in reversed(documents) if (name := document.get("current-context"))), None)
    wanted = source.context or current
    if not wanted:
        raise ConfigError("has no current context", where=where, fix="name one with --context")
    context = _named(documents, "contexts", wanted)
    if context is None:
        names = sorted(entry["name"] for document in documents for entry in document.get("contexts") or ())
        raise ConfigError(f"has no context {wanted!r}", where=where, fix=f"it has: {', '.join(names) or 'none'}")
    cluster = context.get("cluster")
    found = _named(documents, "clusters", cluster)
    if found is None:
        raise ConfigError(f"context {wanted!r} names the cluster {cluster!r}, which is missing", where=where)
    if not isinstance(found.get("server"), str):
        raise ConfigError(f"cluster {cluster!r} has no `server`", where=where)
    name = context.get("user")
    user = _named(documents, "users", name) if name else {}
    if user is None:
        raise ConfigError(f"context {wanted!r} names the user {name!r}, which is missing", where=where)
    return user


def _named(documents: list[dict[str, Any]], section: str, name: object) -> dict[str, Any] | None:
    for document in documents:
        for entry in document.get(section) or ():
            if entry["name"] == name:
                return entry.get(section.removesuffix("s")) or {}
    return None


def _check_programs(source: ClusterSource, user: dict[str, Any], where: str) -> None:
    """Refuse to run what the operator has not allowed."""
    exec_plugin, provider = user.get("exec"), user.get("auth-provider")
    command: object = None
    if isinstance(exec_plugin, dict):
        command = exec_plugin.get("command")
    elif isinstance(provider, dict) and provider.get("name") == "gcp":
        config = provider.get("config")
        command = config.get("cmd-path", "gcloud") if isinstance(config, dict) else "gcloud"
    if command is not None and command not in source.allow_exec:
        raise ConfigError(
            f"wants to run {command!r} for credentials, which is not allowed",
            where=where,
            fix=f"allow it with allowExec: [{command!r}], if you trust it",
        )


def _credentials(configuration: Any, ttl: float | None, where: str) -> Credentials:
    server = str(configuration.host).rstrip("/")
    parts = urllib.parse.urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"server {server!r} is not an http(s) URL", where=where)
    digest = hashlib.sha256(repr((server, configuration.verify_ssl, configuration.tls_server_name, configuration.proxy)).encode())
    tls = None
    try:
        for file in (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file):
            digest.update(Path(file).read_bytes() if file else b"-")
        if parts.scheme == "https":
            tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
            # a cluster's own CA often lacks the key identifiers that Python 3.13 asks for; Go does not ask either
            tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if configuration.cert_file:
                tls.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
            if not configuration.verify_ssl:
                tls.check_hostname = False
                tls.verify_mode = ssl.CERT_NONE
    except (OSError, ValueError) as error:
        raise ConfigError(f"the TLS certificate or key is unusable: {error}", where=where) from error
    proxy = configuration.proxy
    if not proxy and not urllib.request.proxy_bypass(parts.hostname):
        proxy = urllib.request.getproxies().get(parts.scheme)
    authorization = str(configuration.api_key.get("BearerToken", "")).strip()
    if "\n" in authorization or "\r" in authorization:
        raise ConfigError("the token holds a line break", where=where, fix="write it as one line")
    return Credentials(server, authorization, tls, configuration.tls_server_name, proxy or None, digest.hexdigest(), ttl)
