"""Clusters from kubeconfig files: the contexts whose names match globs."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ipe_events.errors import ConfigError
from ipe_events.kube.config import ClusterSource, kubeconfig_files, read_kubeconfig


def kubeconfig_sources(
    *, kubeconfig: str | None = None, contexts: Sequence[str] = (), allow_exec: Sequence[str] = ()
) -> list[ClusterSource]:
    """One source per context that matches one of the globs, named like it; without globs the current context.

    Raises:
        ConfigError: no file, a malformed one, no current context, or a glob that matches no context.
    """
    probe = ClusterSource(name="kubeconfig", kubeconfig=kubeconfig)
    files = kubeconfig_files(probe)
    where = ":".join(map(str, files))
    documents = [read_kubeconfig(file) for file in files]
    names = list(dict.fromkeys(entry["name"] for document in documents for entry in document.get("contexts") or ()))
    if contexts:
        found: list[str] = []
        for glob in contexts:
            matching = [name for name in names if fnmatchcase(name, glob)]
            if not matching:
                raise ConfigError(
                    f"no context matches {glob!r}", where=where, fix=f"it has: {', '.join(sorted(names)) or 'none'}"
                )
            found += matching
        chosen = list(dict.fromkeys(found))
    else:
        current = next((document["current-context"] for document in reversed(documents) if document.get("current-context")), None)
        if not isinstance(current, str):
            raise ConfigError("has no current context", where=where, fix="name contexts with --kube-context")
        chosen = [current]
    return [ClusterSource(name=name, kubeconfig=kubeconfig, context=name, allow_exec=tuple(allow_exec)) for name in chosen]
