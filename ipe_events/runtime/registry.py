"""Finding handlers: in a file, in a module, or among the installed entry points ``ipe_events.handlers``.

A file is run as a module of its own under a name derived from its path, so two files with one name do not meet; its folder is not
put on the import path. What goes wrong while importing it is told as one error that names file and line.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from ipe_events.declaration import Declared, declaration_of
from ipe_events.errors import ConfigError, IpeError

GROUP = "ipe_events.handlers"
"""Entry points of installed handlers: name → module."""


def load(sources: list[str]) -> list[Declared]:
    """The handlers of several files (``page.py``), modules (``acme.handlers``) or installed names (``ipe-drift``), in order.

    Raises:
        ConfigError: a source does not exist, cannot be imported, or declares nothing.
        DeclarationError: a handler in it is wrong.
    """
    found: dict[int, Declared] = {}
    for source in sources:
        declared = declared_in(load_module(source))
        if not declared:
            raise ConfigError("no handler is declared there", where=source, fix="decorate an async function with @handler")
        found.update({id(one.function): one for one in declared})
    return list(found.values())


def load_module(source: str) -> ModuleType:
    """The module behind one source.

    Raises:
        ConfigError: it does not exist or cannot be imported.
        DeclarationError: a handler in it is wrong.
    """
    if source.endswith(".py") or "/" in source:
        return _load_file(Path(source))
    names = installed()
    if source in names:
        return _import(names[source].module, source)
    try:
        known = importlib.util.find_spec(source) is not None
    except (ImportError, ValueError):
        known = False
    if not known:
        raise ConfigError(
            f"{source!r} is no file, module or installed handler",
            fix=f"a path ending in .py, or one of: {', '.join(sorted(names)) or 'none is installed'}",
        )
    return _import(source, source)


def installed() -> dict[str, EntryPoint]:
    """Installed handlers by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def declared_in(module: ModuleType) -> list[Declared]:
    """What a module itself declares, in the order of its source; names that it imported are not its own."""
    found = {id(value): declaration_of(value) for value in vars(module).values()}
    return [one for one in found.values() if one is not None and one.function.__module__ == module.__name__]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("there is no such file", where=str(path), fix="start one with `ipe handlers new NAME`")
    place = path.resolve()
    name = f"ipe_handlers_{place.stem}_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise ConfigError("it is not a Python file", where=str(path), fix="give it a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except IpeError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise _import_error(str(path), error) from error
    return module


def _import(module: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except IpeError:
        raise
    except Exception as error:
        raise _import_error(source, error) from error


def _import_error(source: str, error: Exception) -> ConfigError:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).name == Path(source).name]
    line = f", line {inside[-1].lineno}" if inside else f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
    return ConfigError(f"it cannot be imported: {type(error).__name__}: {error}", where=f"{source}{line}")
