"""Trace context: how one cause is followed through watch, bus, handler, command and outcome.

The context travels as a W3C ``traceparent`` in message headers; parts hand it on whether or not anybody records spans. Spans are
recorded by the OpenTelemetry SDK once ``configure`` was given an exporter (or ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set and the
extra ``otlp`` installed); without one, ``span`` only makes ids, which costs about a microsecond.
"""

import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ipe_events.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_random = random.Random()  # noqa: S311 - ids must be unique, not secret


class Trace(NamedTuple):
    """A place in a trace.

    Attributes:
        trace_id: 32 hexadecimal digits, shared by everything with one cause.
        span_id: 16 hexadecimal digits, of the step.
    """

    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        """The W3C header's value, sampled."""
        return f"00-{self.trace_id}-{self.span_id}-01"


def new_trace() -> Trace:
    """The start of a new trace."""
    return Trace(f"{_random.getrandbits(128) or 1:032x}", f"{_random.getrandbits(64) or 1:016x}")


def child(parent: Trace) -> Trace:
    """The next step of the same trace."""
    return Trace(parent.trace_id, f"{_random.getrandbits(64) or 1:016x}")


def parse_traceparent(text: str) -> Trace | None:
    """The place a ``traceparent`` names; None when it is malformed (the standard says: start anew)."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
        return None
    return Trace(match[1], match[2])


_tracer: "Tracer | None" = None


def configure(exporter: "SpanExporter | None" = None) -> bool:
    """Record spans from now on.

    Args:
        exporter: where they go; by default OTLP over HTTP when ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set.

    Returns:
        Whether spans are recorded.

    Raises:
        ConfigError: an OTLP endpoint is set, but the extra ``otlp`` is not installed.
    """
    global _tracer  # one tracer per process, as OpenTelemetry has it
    if exporter is None and "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise ConfigError(
                "spans cannot be exported without the OTLP exporter",
                where="OTEL_EXPORTER_OTLP_ENDPOINT",
                fix="pip install 'ipe-events[otlp]'",
            ) from error
        exporter = OTLPSpanExporter()
    if exporter is None:
        return False
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "ipe-events"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("ipe_events")
    return True


def recording() -> bool:
    """Whether ``span`` records anything; hot paths skip it otherwise."""
    return _tracer is not None


@contextmanager
def span(
    name: str,
    parent: Trace | None = None,
    *,
    links: Sequence[Trace] = (),
    attributes: Mapping[str, str | int] | None = None,
) -> Iterator[Trace]:
    """One step of a trace, recorded when tracing is configured.

    Args:
        name: of the step, constant: ``handler page``, ``command patch``.
        parent: the step that led here; None starts a trace.
        links: other steps that have to do with it.
        attributes: what it was about.
    """
    if _tracer is None:
        yield child(parent) if parent else new_trace()
        return
    from opentelemetry import trace as otel

    context = otel.set_span_in_context(otel.NonRecordingSpan(_context(parent))) if parent else None
    with _tracer.start_as_current_span(
        name, context=context, links=[otel.Link(_context(link)) for link in links], attributes=dict(attributes or {})
    ) as recorded:
        own = recorded.get_span_context()
        yield Trace(f"{own.trace_id:032x}", f"{own.span_id:016x}")


def _context(place: Trace) -> "SpanContextType":
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(
        int(place.trace_id, 16), int(place.span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext as SpanContextType
