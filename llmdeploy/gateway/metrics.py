"""The metrics of the gateway: plain numbers that become Prometheus' text only when they are read."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmdeploy.gateway.api_routes import label

if TYPE_CHECKING:
    from prometheus_client import Metric

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
RATES = (1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 300.0, 500.0)

Labels = tuple[str, ...]


class Histogram:
    """Counts of values by upper bounds; the last count is for values above all bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return Prometheus' cumulative buckets: each bound, and the count of values up to it."""
        sums, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            sums.append((bound, float(so_far)))
        return sums


@dataclass(frozen=True)
class Metrics:
    """Counts since the gateway started."""

    requests: Counter[Labels] = field(default_factory=Counter)
    errors: Counter[Labels] = field(default_factory=Counter)
    switches: Counter[Labels] = field(default_factory=Counter)
    first_tokens: dict[Labels, Histogram] = field(default_factory=dict)
    rates: dict[Labels, Histogram] = field(default_factory=dict)

    def answered(self, engine: str, model: str, path: str, status: int) -> None:
        """Count an answer."""
        self.requests[engine, model, path if path == "/v1/chat/completions" else label(path), str(status)] += 1

    def failed(self, engine: str, kind: str) -> None:
        """Count a request that failed, by kind."""
        self.errors[engine, kind] += 1

    def switched(self, engine_from: str, engine_to: str, outcome: str) -> None:
        """Count a switch of the engine."""
        self.switches[engine_from, engine_to, outcome] += 1

    def first_token(self, engine: str, model: str, seconds: float) -> None:
        """Record the seconds from a request to the first byte of its stream."""
        _add(self.first_tokens, (engine, model), seconds, SECONDS)

    def streamed(self, engine: str, model: str, rate: float) -> None:
        """Record the events per second of a stream."""
        _add(self.rates, (engine, model), rate, RATES)

    def text(self, in_flight: Mapping[Labels, int], held: int) -> tuple[bytes, bytes]:
        """Return the text that Prometheus reads, and its content type."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self, dict(in_flight), held))
        return generate_latest(registry), CONTENT_TYPE_LATEST.encode()


def _add(histograms: dict[Labels, Histogram], labels: Labels, value: float, bounds: Sequence[float]) -> None:
    histogram = histograms.get(labels)
    if histogram is None:
        histogram = histograms[labels] = Histogram(bounds)
    histogram.add(value)


class _Collector:
    """The counts as metric families of prometheus_client, which writes the text format and its escapes."""

    def __init__(self, metrics: Metrics, in_flight: Mapping[Labels, int], held: int) -> None:
        self._metrics = metrics
        self._in_flight = in_flight
        self._held = held

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        metrics = self._metrics
        for name, words, labels, counts in (
            ("requests", "Requests answered", ("engine", "model", "route", "status"), metrics.requests),
            ("errors", "Requests that failed, by kind", ("engine", "kind"), metrics.errors),
            ("switches", "Switches of the engine", ("from", "to", "outcome"), metrics.switches),
        ):
            counter = CounterMetricFamily(f"llmdeploy_{name}", words, labels=labels)
            for values, count in list(counts.items()):
                counter.add_metric(values, count)
            yield counter
        for name, words, histograms in (
            ("time_to_first_token_seconds", "First byte of a stream, since its request", metrics.first_tokens),
            ("stream_tokens_per_second", "Events of a stream per second, taken for tokens", metrics.rates),
        ):
            family = HistogramMetricFamily(f"llmdeploy_{name}", words, labels=("engine", "model"))
            for values, histogram in list(histograms.items()):
                family.add_metric(values, histogram.buckets(), sum_value=histogram.total)
            yield family
        gauge = GaugeMetricFamily(
            "llmdeploy_requests_in_flight", "Requests with a server now", labels=("engine", "model")
        )
        for values, number in self._in_flight.items():
            gauge.add_metric(values, number)
        yield gauge
        yield GaugeMetricFamily("llmdeploy_requests_held", "Requests that wait for a server", value=self._held)
