"""The handlers' vocabulary: ``@handler``, ``@every``, ``@service``, ``@provide``; ``Retry``, ``Reject``, ``Skip``; ``Backoff``.

A handler is a plain async function. The decorators return it unchanged, so a test calls it like any other; what they learn from
the signature is attached to it and executed later by ``ipe_events.runtime``. This module imports no machinery (no NATS, no
HTTP): a file of handlers imports in a fraction of a second.

Outcomes are told by returning or raising: return → publish what was returned, acknowledge; ``Retry`` → again later, the object's
later events wait; ``Reject`` → dead letter at once; ``Skip`` → acknowledge, nothing published; any other exception → again after
a back-off, in the end a dead letter.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, TypeVar, overload

from ipe_events.declaration import (
    ATTRIBUTE,
    Backoff,
    Batch,
    Declared,
    Service,
    Start,
    Subscription,
    Timer,
    declaration_error,
    names_of,
    provide,
    read_signature,
    texts,
)
from ipe_events.durations import seconds
from ipe_events.events.base import Payload
from ipe_events.interest import patterns_of, topics_of

__all__ = ["Backoff", "Batch", "Reject", "Retry", "Skip", "every", "handler", "provide", "service"]

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, object]])
AnyF = TypeVar("AnyF", bound=Callable[..., Any])
S = TypeVar("S", bound=Callable[..., Coroutine[Any, Any, object] | AsyncIterator[object]])


class Retry(Exception):
    """Raise it to see the same event again later.

    Args:
        reason: for the log and the dead letter, one sentence.
        delay: seconds, or a text such as ``"10m"``; None: the handler's back-off.
    """

    def __init__(self, reason: str = "", *, delay: float | str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = None if delay is None else seconds(delay, what="delay")


class Reject(Exception):
    """Raise it when this event can never be handled: it becomes a dead letter at once.

    Args:
        reason: kept with the dead letter, one sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Skip(Exception):
    """Raise it when there is nothing to do: acknowledged, counted as skipped.

    Args:
        reason: for the debug log, one sentence.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


@overload
def handler(function: F, /) -> F: ...


@overload
def handler(
    *,
    on: str | Iterable[str] = (),
    clusters: str | Iterable[str] = (),
    namespaces: str | Iterable[str] = (),
    where: Callable[[Any], bool] | None = None,
    batch: int | Batch | None = None,
    latest: bool = False,
    start: Start = "new",
    concurrency: int | None = None,
    timeout: float | str = 30.0,
    retry: Backoff | None = None,
    name: str | None = None,
    id: str | None = None,
    dry_run: bool = False,
) -> Callable[[F], F]: ...


def handler(
    function: F | None = None,
    /,
    *,
    on: str | Iterable[str] = (),
    clusters: str | Iterable[str] = (),
    namespaces: str | Iterable[str] = (),
    where: Callable[[Any], bool] | None = None,
    batch: int | Batch | None = None,
    latest: bool = False,
    start: Start = "new",
    concurrency: int | None = None,
    timeout: float | str = 30.0,
    retry: Backoff | None = None,
    name: str | None = None,
    id: str | None = None,  # noqa: A002 - what it is called in DESIGN §6 and everywhere on the bus
    dry_run: bool = False,
) -> F | Callable[[F], F]:
    """Subscribe an async function to events; bare, or with options.

    Args:
        function: the function, when used without parentheses.
        on: a resource (``"deployments.apps"``), a topic filter (``"ipe.finding.ipe-drift.>"``), or several; by default the
            topic of the first parameter's payload type.
        clusters: names or globs (``"prod-*"``) of the clusters it is about; by default all.
        namespaces: names or globs of the namespaces; by default all.
        where: further condition on the payload, checked in the client before the function is called.
        batch: take a list of up to so many events at a time.
        latest: only the newest event per object matters: older ones that wait, and stale ones, are dropped.
        start: where a handler that never ran before begins: ``"new"``, ``"all"`` that the stream keeps, an aware ``datetime``,
            or ``"snapshot"``: all objects as they are now, then the changes, without gap or resurrection; clusters that report
            later too. A restart goes on live; to have everything once more, delete the handler's consumer.
        concurrency: how many objects are handled at once (default 32; 1 for batches); events of one object keep their order.
        timeout: seconds (or ``"2m"``) one call may take; then it is cancelled and counts as failed.
        retry: what follows an exception; see ``Backoff``.
        name: of the handler on the bus (author of findings and commands); by default the function's.
        id: of the durable consumer; by default the name, or ``<name>-<function>`` when they differ.
        dry_run: its commands only ask the API server what would happen.

    Raises:
        DeclarationError: anything is wrong with the function or an option.
    """

    def declare(target: F) -> F:
        signature = read_signature(target, event=True)
        patterns, resources = patterns_of(target, texts(on), signature.payloads)
        if bool(batch) != signature.batched:
            raise declaration_error(
                target, "batch= and a list as first parameter belong together", fix="batch=100 and list[Event[Change]]"
            )
        identity = names_of(target, name, id)
        return _attach(
            target,
            _checked(
                target,
                Subscription(
                    function=target,
                    name=identity[0],
                    id=identity[1],
                    injections=signature.injections,
                    outputs=signature.outputs,
                    patterns=patterns,
                    resources=resources,
                    payloads=signature.payloads,
                    wrapped=signature.wrapped,
                    clusters=texts(clusters),
                    namespaces=texts(namespaces),
                    where=where,
                    batch=Batch(batch) if isinstance(batch, int) else batch,
                    latest=latest,
                    start=start,
                    concurrency=concurrency if concurrency is not None else (1 if batch else 32),
                    timeout=seconds(timeout, what="timeout"),
                    retry=retry or Backoff(),
                    dry_run=dry_run,
                ),
            ),
        )

    return declare if function is None else declare(function)


def every(
    interval: float | str,
    /,
    *,
    timeout: float | str = 30.0,
    name: str | None = None,
    id: str | None = None,  # noqa: A002 - as above
    dry_run: bool = False,
) -> Callable[[F], F]:
    """Call an async function again and again while the process runs: ``@every("30s")``.

    The first call comes one interval after the start; a call that takes longer delays the next, calls never overlap. The function
    takes injected parameters only; payloads that it returns are published.

    Args:
        interval: seconds or a text such as ``"5m"``.
        timeout: seconds one call may take.
        name: of the handler on the bus; share it with the ``@handler`` whose ``State`` it reads.
        id: unique in the process.
        dry_run: its commands only ask the API server what would happen.

    Raises:
        DeclarationError: anything is wrong with the function or an option.
    """

    def declare(target: F) -> F:
        signature = read_signature(target, event=False)
        identity = names_of(target, name, id)
        return _attach(
            target,
            Timer(
                function=target,
                name=identity[0],
                id=identity[1],
                injections=signature.injections,
                outputs=signature.outputs,
                seconds=seconds(interval, what="interval"),
                timeout=seconds(timeout, what="timeout"),
                dry_run=dry_run,
            ),
        )

    return declare


def service(
    verb: str,
    /,
    *,
    scope: str = "*",
    concurrency: int = 8,
    timeout: float | str = 30.0,
    name: str | None = None,
    id: str | None = None,  # noqa: A002 - as above
    dry_run: bool = False,
) -> Callable[[S], S]:
    """Answer requests on ``ipe.svc.<name>.<scope>.<verb>`` (a NATS micro endpoint).

    The function takes the request's payload model first (or ``Event[Model]``; or none at all), then injected parameters, and
    returns the answer's payload. An async generator function yields several answers; an empty message ends them.

    Args:
        verb: last token of the subject.
        scope: token that NATS permissions grant callers by; ``"*"`` answers all and leaves the scope in ``meta.subject``.
        concurrency: how many requests are answered at once.
        timeout: seconds one call may take.
        name: of the service, by default the function's.
        id: unique in the process.
        dry_run: its commands only ask the API server what would happen.

    Raises:
        DeclarationError: anything is wrong with the function or an option.
    """

    def declare(target: S) -> S:
        signature = read_signature(target, event=None, streams=True)
        request = signature.payloads[0] if signature.payloads else None
        if len(signature.payloads) > 1 or signature.batched or (request is not None and not issubclass(request, Payload)):
            raise declaration_error(target, "a service takes one request model", fix="a class derived from Payload or Request")
        identity = names_of(target, name, id)
        names_of(target, verb, None)
        return _attach(
            target,
            Service(
                function=target,
                name=identity[0],
                id=identity[1],
                injections=signature.injections,
                outputs=signature.outputs,
                verb=verb,
                scope=scope,
                request=request,
                wrapped=signature.wrapped,
                streams=inspect.isasyncgenfunction(target),
                concurrency=concurrency,
                timeout=seconds(timeout, what="timeout"),
                dry_run=dry_run,
            ),
        )

    return declare


def _attach(target: AnyF, declared: Declared) -> AnyF:
    if ATTRIBUTE in vars(target):
        raise declaration_error(target, "it is declared twice", fix="one decorator per function")
    setattr(target, ATTRIBUTE, declared)
    return target


def _checked(target: Callable[..., Any], declared: Subscription) -> Subscription:
    """Options that are wrong by themselves or together."""
    if declared.start not in {"new", "snapshot", "all"} and not isinstance(declared.start, datetime):
        raise declaration_error(target, f"start={declared.start!r} is unknown", fix='"new", "snapshot", "all" or a datetime')
    if isinstance(declared.start, datetime) and declared.start.tzinfo is None:
        raise declaration_error(target, "start= has no time zone", fix="datetime(2026, 1, 1, tzinfo=UTC)")
    if declared.start == "snapshot" and not declared.resources:
        raise declaration_error(target, 'start="snapshot" needs a resource', fix='on="deployments.apps"')
    if not 1 <= declared.concurrency <= 10_000:
        raise declaration_error(target, f"concurrency={declared.concurrency} is not between 1 and 10000")
    if declared.batch and declared.concurrency != 1:
        raise declaration_error(target, "batches come one after the other", fix="leave concurrency= out")
    if declared.batch and declared.latest:
        raise declaration_error(target, "latest= and batch= exclude each other")
    if declared.where is not None and not callable(declared.where):
        raise declaration_error(target, f"where={declared.where!r} is not a function", fix="where=lambda change: …")
    for option, values in (("cluster", declared.clusters), ("namespace", declared.namespaces)):
        for pattern in declared.patterns:
            if values and not any(option in topic.fields for topic in topics_of(pattern)):
                raise declaration_error(target, f"{option}s= cannot narrow {pattern!r}: its topic names no {option}")
    return declared
