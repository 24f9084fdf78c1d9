"""What a handler declares, compiled once when its file is imported.

``@handler`` and its siblings read the function's signature here: the first parameter says what it wants, the others what to
inject, the return type what it publishes. All that can be wrong is wrong *now*, as a ``DeclarationError`` that names function,
parameter and the known choices; the runtime later only executes what these immutable declarations say. Nothing here does I/O.
"""

import difflib
import inspect
import re
import types
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from ipe_events.clock import Clock
from ipe_events.errors import DeclarationError, UsageError
from ipe_events.events.base import Payload
from ipe_events.events.message import Event, Message
from ipe_events.events.refs import ResourceRef

ATTRIBUTE = "__ipe_declaration__"
"""Where a decorated function carries its declaration."""

Start: TypeAlias = Literal["new", "snapshot", "all"] | datetime

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")

_injectable: dict[type, str] = {Clock: "Clock"}
_provided: dict[type, Callable[..., Any]] = {}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how late a failed event is tried again.

    Attributes:
        attempts: how often the handler sees an event before it becomes a dead letter.
        first: seconds before the second attempt.
        factor: by which the wait grows.
        ceiling: longest wait, in seconds.
        jitter: share of the wait that is random, 0 to 1.
    """

    attempts: int = 5
    first: float = 1.0
    factor: float = 3.0
    ceiling: float = 300.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.factor < 1 or self.ceiling < self.first or not 0 <= self.jitter <= 1:
            raise UsageError(f"{self} makes no sense", fix="attempts ≥ 1, 0 ≤ first ≤ ceiling, factor ≥ 1, jitter 0 to 1")

    def delay(self, attempt: int, chance: float) -> float:
        """Seconds to wait after attempt number ``attempt`` failed; ``chance`` in [0, 1) spreads it."""
        wait = min(self.ceiling, self.first * self.factor ** min(attempt - 1, 64))
        return wait * (1 - self.jitter * chance)


@dataclass(frozen=True, slots=True)
class Batch:
    """Several events at a time, in the order of the stream.

    Attributes:
        size: at most so many.
        linger: seconds to wait for more after the first one came.
    """

    size: int
    linger: float = 0.2

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 10_000 or not 0 <= self.linger <= 60:
            raise UsageError(f"{self} makes no sense", fix="size 1 to 10000, linger 0 to 60 seconds")


@dataclass(frozen=True, slots=True)
class Injection:
    """One parameter that the runtime fills in.

    Attributes:
        parameter: its name.
        kind: its type.
        argument: ``T`` of ``Policies[T]``; None for plain types.
    """

    parameter: str
    kind: type
    argument: type | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What all declarations share.

    Attributes:
        function: the user's, unchanged.
        name: of the handler on the bus: author of findings and commands, what grants refer to.
        id: of this function: durable consumer, metrics, idempotency; unique in a process.
        injections: parameters to fill in.
        outputs: payload types it returns.
    """

    function: Callable[..., Any]
    name: str
    id: str
    injections: tuple[Injection, ...]
    outputs: tuple[type[Payload], ...]

    @property
    def place(self) -> str:
        """Module and function, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def injects(self, type_name: str) -> bool:
        """Whether a parameter of this type (``Commands``, ``Snapshots``…) is asked for."""
        return any(injection.kind.__name__ == type_name for injection in self.injections)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription(Declared):
    """An ``@handler``.

    Attributes:
        patterns: subject filters before clusters and namespaces narrow them.
        resources: Kubernetes resources it needs collected.
        payloads: what it takes: payload models, or ``Change``, or ``Message``.
        wrapped: whether it wants ``Event[payload]``.
        clusters: names or globs; empty: all.
        namespaces: names or globs; empty: all.
        where: further condition on the payload.
        batch: several at a time.
        latest: only the newest per object matters.
        start: where a new durable begins.
        concurrency: how many objects are handled at once.
        timeout: seconds one call may take.
        retry: what follows an exception.
        dry_run: its commands only ask what would happen.
    """

    patterns: tuple[str, ...]
    resources: tuple[ResourceRef, ...]
    payloads: tuple[type, ...]
    wrapped: bool
    clusters: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    where: Callable[[Any], bool] | None = None
    batch: Batch | None = None
    latest: bool = False
    start: Start = "new"
    concurrency: int = 32
    timeout: float = 30.0
    retry: Backoff = Backoff()
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer(Declared):
    """An ``@every``.

    Attributes:
        seconds: between two calls; a call that takes longer delays the next.
        timeout: seconds one call may take.
        dry_run: its commands only ask what would happen.
    """

    seconds: float
    timeout: float = 30.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Declared):
    """An ``@service``.

    Attributes:
        verb: last token of its subject.
        scope: token that NATS permissions grant callers by; ``*`` answers every scope.
        request: model of the request; None when it takes none.
        wrapped: whether it wants ``Event[request]``.
        streams: whether it yields several answers.
        concurrency: how many requests are answered at once.
        timeout: seconds one call may take.
        dry_run: its commands only ask what would happen.
    """

    verb: str
    scope: str
    request: type[Payload] | None
    wrapped: bool
    streams: bool
    concurrency: int = 8
    timeout: float = 30.0
    dry_run: bool = False


# --- what can be injected ------------------------------------------------------------------------------------------------


def injectable(kind: type, name: str = "") -> type:
    """Make a type of the SDK known as one that parameters can ask for; the runtime knows how to build it."""
    _injectable[kind] = name or kind.__name__
    return kind


def provide(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Let handlers ask for a type of your own: ``factory``'s return type, built once per process when it starts.

    The factory is a plain or async function without parameters, or an async generator function that yields the thing once and
    cleans up after its ``yield`` when the process drains. It stands above the handlers that ask for it.

    Raises:
        DeclarationError: the factory has no usable return type, or the type has a provider already.
    """
    kind = _hints(factory).get("return")
    if get_origin(kind) in {AsyncIterator, AsyncGenerator}:
        kind = get_args(kind)[0]
    if not isinstance(kind, type) or kind in {type(None), object}:
        raise declaration_error(
            factory, "the provider's return type must be the class it provides", fix="def prices() -> PriceList: …"
        )
    if inspect.signature(factory).parameters:
        raise declaration_error(factory, "a provider takes no parameters")
    known = _provided.get(kind)
    if kind in _injectable or (known is not None and _place(known) != _place(factory)):
        raise declaration_error(factory, f"{kind.__name__} has a provider already")
    _provided[kind] = factory
    return factory


def providers() -> Mapping[type, Callable[..., Any]]:
    """Every provided type with its factory."""
    return types.MappingProxyType(_provided)


def declaration_of(function: object) -> Declared | None:
    """The declaration of a decorated function; None when it has none."""
    found = getattr(function, ATTRIBUTE, None)
    return found if isinstance(found, Declared) else None


# --- reading signatures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signature:
    """A function's signature, read.

    Attributes:
        payloads: types of the first parameter; empty when there is none.
        wrapped: whether it is ``Event[...]``.
        batched: whether it is a list of them.
        injections: the other parameters.
        outputs: payload types among the return type.
    """

    payloads: tuple[type, ...]
    wrapped: bool
    batched: bool
    injections: tuple[Injection, ...]
    outputs: tuple[type[Payload], ...]


def read_signature(function: Callable[..., Any], *, event: bool | None, streams: bool = False) -> Signature:
    """Compile a signature.

    Args:
        function: the user's.
        event: whether its first parameter is the event; None: if it looks like one.
        streams: whether it may be an async generator.

    Raises:
        DeclarationError: it is not async, or a parameter's type is missing or unknown.
    """
    is_stream = inspect.isasyncgenfunction(function)
    if not inspect.iscoroutinefunction(function) and not (streams and is_stream):
        raise declaration_error(function, "it must be an `async def`")
    hints = _hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise declaration_error(function, f"parameter {parameter}: take the things you need by name, not * or **")
        if parameter.name not in hints:
            raise declaration_error(function, f"parameter {parameter.name!r} has no type", fix="annotate it")
    payloads: tuple[type, ...] = ()
    wrapped = batched = False
    if event is None:
        event = bool(parameters) and _looks_like_event(hints[parameters[0].name])
    if event:
        if not parameters:
            raise declaration_error(function, "it takes no event", fix="async def f(event: Event[Change]) -> None")
        first = parameters.pop(0)
        payloads, wrapped, batched = _read_event(function, first.name, hints[first.name])
    injections = tuple(_read_injection(function, parameter, hints[parameter.name]) for parameter in parameters)
    return Signature(payloads, wrapped, batched, tuple(filter(None, injections)), _read_outputs(function, hints.get("return")))


def _read_event(function: Callable[..., Any], parameter: str, hint: Any) -> tuple[tuple[type, ...], bool, bool]:
    batched = get_origin(hint) in {list, Sequence}
    if batched:
        hint = get_args(hint)[0]
    wrapped = hint is Event or get_origin(hint) is Event
    if wrapped:
        if hint is Event:
            raise declaration_error(function, f"parameter {parameter!r}: Event of what?", fix="Event[Change], Event[Finding]…")
        hint = get_args(hint)[0]
    members = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    for member in members:
        if not (isinstance(member, type) and issubclass(member, (Payload, Message))):
            raise declaration_error(
                function,
                f"parameter {parameter!r} is {_show(member)}, which is no payload",
                fix="a class derived from ipe_events.events.Payload, Change, Message, or Event[…] of one of them",
            )
    if len(members) > 1 and not all(issubclass(member, Payload) for member in members):
        raise declaration_error(
            function, f"parameter {parameter!r} mixes payloads with Change or Message", fix="write two handlers"
        )
    return tuple(members), wrapped, batched


def _looks_like_event(hint: Any) -> bool:
    return hint is Event or get_origin(hint) is Event or (isinstance(hint, type) and issubclass(hint, (Payload, Message)))


def _read_injection(function: Callable[..., Any], parameter: inspect.Parameter, hint: Any) -> Injection | None:
    kind = get_origin(hint) or hint
    arguments = get_args(hint)
    if isinstance(kind, type) and (kind in _injectable or kind in _provided):
        return Injection(parameter.name, kind, arguments[0] if arguments else None)
    if parameter.default is not inspect.Parameter.empty:
        return None
    known = sorted([*_injectable.values(), *(provided.__name__ for provided in _provided)])
    near = difflib.get_close_matches(_show(hint), known, n=1)
    raise declaration_error(
        function,
        f"parameter {parameter.name!r} is {_show(hint)}, which nobody provides; known types: {', '.join(known)}",
        fix=f"did you mean {near[0]}?" if near else "decorate a function that returns one with @provide, above this handler",
    )


def _read_outputs(function: Callable[..., Any], hint: Any) -> tuple[type[Payload], ...]:
    outputs: list[type[Payload]] = []
    todo = [hint]
    while todo:
        member = todo.pop(0)
        if member in {None, type(None), Any, inspect.Signature.empty}:
            continue
        if get_origin(member) in {Union, types.UnionType, list, tuple, Sequence, Iterable, AsyncIterator, AsyncGenerator}:
            todo.extend(argument for argument in get_args(member) if argument is not ...)
        elif isinstance(member, type) and issubclass(member, Payload):
            outputs.append(member)
        else:
            raise declaration_error(function, f"it returns {_show(member)}", fix="return payloads, a list of payloads, or None")
    return tuple(outputs)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError as error:
        raise declaration_error(
            function, f"its annotations name {error.name!r}, which its module does not define", fix="import it at module level"
        ) from error


# --- small readers -------------------------------------------------------------------------------------------------------


def names_of(function: Callable[..., Any], name: str | None, identity: str | None) -> tuple[str, str]:
    """Name and id of a declaration, checked.

    Raises:
        DeclarationError: one holds characters that names on the bus cannot have.
    """
    own = function.__name__
    name = own if name is None else name
    identity = (name if name == own else f"{name}-{own}") if identity is None else identity
    for value in (name, identity):
        if not _NAME.fullmatch(value):
            raise declaration_error(function, f"name {value!r} does not fit", fix="1 to 100 letters, digits, `-`, `_`")
    return name, identity


def texts(value: str | Iterable[str]) -> tuple[str, ...]:
    """One or several texts as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def _show(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"


def declaration_error(function: Callable[..., Any], message: str, *, fix: str = "") -> DeclarationError:
    """An error that names the function it is about."""
    return DeclarationError(message, where=_place(function), fix=fix)
