"""``Log``: the logger that handlers are injected with."""

from typing import Any, Protocol

from ipe_events.declaration import injectable


class Log(Protocol):
    """A structured logger, bound to the handler: a constant message and keys, ``log.info("capped", cluster=…, name=…)``."""

    def debug(self, event: str, **keys: Any) -> Any:
        """For developers."""
        ...

    def info(self, event: str, **keys: Any) -> Any:
        """What happens."""
        ...

    def warning(self, event: str, **keys: Any) -> Any:
        """What somebody should look at."""
        ...

    def error(self, event: str, **keys: Any) -> Any:
        """What went wrong."""
        ...

    def exception(self, event: str, **keys: Any) -> Any:
        """What went wrong, with the exception being handled."""
        ...


injectable(Log)
