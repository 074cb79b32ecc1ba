"""What a process counts, as Prometheus reads it at `/metrics` of its health port.

Counted is what was committed, so that a batch that is tried again counts once. Of what lies in the database nothing is counted
here: that is the same for all copies of a room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

TEXT = "text/plain; version=0.0.4; charset=utf-8"
BATCH_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def registry_of_process() -> CollectorRegistry:
    """A registry of its own, which tells of this process's time, memory and files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class Metrics:
    """The counters of one process, and what is looked up when they are read."""

    def __init__(self) -> None:
        self.registry = registry_of_process()
        self._batches = Histogram(
            "tollbook_batch_seconds", "One transaction, from its begin to its commit", ["input"],
            buckets=BATCH_S, registry=self.registry,
        )  # fmt: skip
        self._records = Counter(
            "tollbook_records", "Records that came with committed batches", ["input"], registry=self.registry
        )
        self._parked = Counter(
            "tollbook_parked_records", "Records put aside: in quarantine, or waiting", ["state", "reason"],
            registry=self.registry,
        )  # fmt: skip

        self._undone = Counter(
            "tollbook_undone_records", "Records skipped that a restore from a backup undid", ["input"],
            registry=self.registry,
        )  # fmt: skip

    def batch(self, source: str, seconds: float, records: int) -> None:
        """A batch of an input was committed."""
        self._batches.labels(source).observe(seconds)
        self._records.labels(source).inc(records)

    def undone(self, source: str, records: int) -> None:
        """So many were skipped of a life that a restore undid."""
        self._undone.labels(source).inc(records)

    def parked(self, records: Iterable[Any]) -> None:
        """These were put aside, and it is committed."""
        for each in records:
            self._parked.labels(each.state, each.reason).inc()

    def look_at(self, health: Callable[[], dict[str, Any]]) -> None:
        """From now on the state of a worker is told too, as it is when it is asked for."""
        self.registry.register(_Health(health))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Health(Collector):
    """A worker's health as gauges."""

    def __init__(self, health: Callable[[], dict[str, Any]]) -> None:
        self._health = health

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing beforehand: the worker may not have begun yet."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = self._health()
        relay = GaugeMetricFamily("tollbook_relay_active", "1 in the copy of a room that sends what it publishes")
        relay.add_metric([], state["relay_active"])
        yield relay
        for name, text, value in (
            ("tollbook_lag_records", "Records on the partitions of this copy that it has not applied", lambda each: each["lag"]),
            ("tollbook_assigned_partitions", "Partitions that this copy reads", lambda each: each["assigned"]),
            ("tollbook_stopped_lanes", "Lanes that go on by a person's word only", lambda each: len(each["stopped"])),
            ("tollbook_loop_age_seconds", "Since the consume loop last turned", lambda each: each["loop_age_ms"] / 1000),
        ):  # fmt: skip
            gauge = GaugeMetricFamily(name, text, labels=["input"])
            for each in state["inputs"]:
                gauge.add_metric([each["input"]], value(each))
            yield gauge
