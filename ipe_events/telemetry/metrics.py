"""Metrics: plain numbers on the hot path, OpenTelemetry at the border.

An OpenTelemetry counter costs about 5 µs per addition, a seventh of what one change may cost altogether. So a metric is a family
of *cells*, bound once to their label values; adding to a cell is adding to an int. When somebody scrapes, the cells become
OpenTelemetry ``MetricsData``, which any of its exporters takes; ``render`` uses the Prometheus one.

A family holds at most 2,000 label sets (OpenTelemetry's own limit); what comes after shares one cell whose labels are
all ``(overflow)``, so that a hostile cluster cannot fill the memory with namespaces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from ipe_events.clock import SYSTEM
from ipe_events.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.metrics.export import Metric as OtelMetric
    from opentelemetry.sdk.metrics.export import MetricsData
    from prometheus_client import CollectorRegistry

MAX_LABEL_SETS = 2_000
OVERFLOW = "(overflow)"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Default bounds of a histogram, in seconds."""


class Cell:
    """One number of a counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Count ``amount`` more."""
        self.value += amount

    def set(self, value: float) -> None:
        """Show ``value`` (gauges)."""
        self.value = value


class HistogramCell:
    """One distribution: counts per bucket, their sum and number."""

    __slots__ = ("bounds", "buckets", "count", "highest", "lowest", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.count = 0
        self.lowest = float("inf")
        self.highest = float("-inf")

    def observe(self, value: float) -> None:
        """Count one observation, e.g. a duration in seconds."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.count += 1
        self.lowest = min(self.lowest, value)
        self.highest = max(self.highest, value)


CellT = TypeVar("CellT", Cell, HistogramCell)


class Family(ABC, Generic[CellT]):
    """One metric with its label names; ``labels`` gives the cell of one set of values."""

    kind: str

    def __init__(self, name: str, doc: str, label_names: tuple[str, ...]) -> None:
        self.name = name
        self.doc = doc
        self.label_names = label_names
        self.cells: dict[tuple[str, ...], CellT] = {}
        self._overflow: CellT | None = None

    @abstractmethod
    def _new(self) -> CellT: ...

    def labels(self, *values: str) -> CellT:
        """The cell of these label values, in the order of the label names; keep it where it is used often.

        Raises:
            UsageError: the number of values differs from the number of labels.
        """
        cell = self.cells.get(values)
        if cell is not None:
            return cell
        if len(values) != len(self.label_names):
            raise UsageError(f"metric {self.name} has the labels {self.label_names}, got {values!r}")
        if len(self.cells) >= MAX_LABEL_SETS:
            if self._overflow is None:
                self._overflow = self._new()
            return self._overflow
        return self.cells.setdefault(values, self._new())

    def drop(self, *values: str) -> None:
        """Forget a cell, e.g. that of a cluster which left."""
        self.cells.pop(values, None)

    def points(self) -> list[tuple[dict[str, str], CellT]]:
        """Every cell with its labels."""
        points = [(dict(zip(self.label_names, values, strict=True)), cell) for values, cell in list(self.cells.items())]
        if self._overflow is not None:
            points.append((dict.fromkeys(self.label_names, OVERFLOW), self._overflow))
        return points


class Counter(Family[Cell]):
    """Only grows."""

    kind = "counter"

    def _new(self) -> Cell:
        return Cell()


class Gauge(Family[Cell]):
    """Goes up and down."""

    kind = "gauge"

    def _new(self) -> Cell:
        return Cell()


class Histogram(Family[HistogramCell]):
    """A distribution over fixed bounds."""

    kind = "histogram"

    def __init__(self, name: str, doc: str, label_names: tuple[str, ...], bounds: Sequence[float]) -> None:
        super().__init__(name, doc, label_names)
        self.bounds = tuple(bounds)

    def _new(self) -> HistogramCell:
        return HistogramCell(self.bounds)


AnyFamily = Counter | Gauge | Histogram

FAMILIES: dict[str, AnyFamily] = {}
"""Every metric of this process by name."""

_STARTED = SYSTEM.now()


def _register(family: AnyFamily) -> None:
    if not family.name.startswith("ipe_"):
        raise UsageError(f"metric {family.name!r} must start with ipe_")
    if family.name in FAMILIES:
        raise UsageError(f"metric {family.name!r} is declared twice")
    FAMILIES[family.name] = family


def counter(name: str, doc: str, labels: tuple[str, ...] = ()) -> Counter:
    """Declare a counter; its name ends in ``_total``."""
    if not name.endswith("_total"):
        raise UsageError(f"counter {name!r} must end in _total")
    family = Counter(name, doc, labels)
    _register(family)
    return family


def gauge(name: str, doc: str, labels: tuple[str, ...] = ()) -> Gauge:
    """Declare a gauge."""
    family = Gauge(name, doc, labels)
    _register(family)
    return family


def histogram(name: str, doc: str, labels: tuple[str, ...] = (), *, buckets: Sequence[float] = SECONDS) -> Histogram:
    """Declare a histogram; ``buckets`` are upper bounds, ascending."""
    family = Histogram(name, doc, labels, buckets)
    _register(family)
    return family


def snapshot() -> MetricsData:
    """All cells as OpenTelemetry metrics data, for any of its exporters."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    now, start = int(SYSTEM.now().timestamp() * 1e9), int(_STARTED.timestamp() * 1e9)
    metrics = [_as_otel(family, start, now) for family in list(FAMILIES.values()) if family.points()]
    scope = ScopeMetrics(scope=InstrumentationScope("ipe_events"), metrics=metrics, schema_url="")
    resource = Resource.create({"service.name": "ipe-events"})
    return MetricsData(resource_metrics=[ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url="")])


def _as_otel(family: AnyFamily, start: int, now: int) -> OtelMetric:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, HistogramDataPoint, NumberDataPoint, Sum
    from opentelemetry.sdk.metrics.export import Gauge as OtelGauge
    from opentelemetry.sdk.metrics.export import Histogram as OtelHistogram
    from opentelemetry.sdk.metrics.export import Metric as OtelMetric

    cumulative = AggregationTemporality.CUMULATIVE
    data: Sum | OtelGauge | OtelHistogram
    if isinstance(family, Histogram):
        data = OtelHistogram(
            data_points=[
                HistogramDataPoint(
                    labels, start, now, cell.count, cell.sum, list(cell.buckets), cell.bounds, cell.lowest, cell.highest
                )
                for labels, cell in family.points()
            ],
            aggregation_temporality=cumulative,
        )
    else:
        points = [NumberDataPoint(labels, start, now, cell.value) for labels, cell in family.points()]
        is_counter = isinstance(family, Counter)
        data = Sum(points, cumulative, is_monotonic=True) if is_counter else OtelGauge(points)
    return OtelMetric(name=family.name, description=family.doc, unit="", data=data)


_prometheus: CollectorRegistry | None = None
_rendering = Lock()


def render() -> bytes:
    """All cells in Prometheus' text format, through OpenTelemetry's exporter."""
    global _prometheus  # one registry per process, made when first asked for: its import costs 150 ms
    from prometheus_client import CollectorRegistry, generate_latest

    with _rendering:
        if _prometheus is None:
            registry = CollectorRegistry()
            _feed(registry)
            _prometheus = registry
        return generate_latest(_prometheus)


def _feed(registry: CollectorRegistry) -> None:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader

    reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry)
    # what a MeterProvider does with its readers; ours reads the cells instead (pinned by a test)
    reader._set_collect_callback(lambda *_reader, **_timeout: snapshot())  # noqa: SLF001 - the SDK offers no public producer interface
