"""Prometheus metrics of the embedded server."""

import prometheus_client

LATENCY_BUCKETS_SECS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Monitoring:
    """Counters and histograms, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "isthmus_requests",
            "Requests by interface and status",
            ("interface", "status"),
            registry=self.registry,
        )
        self.rows = prometheus_client.Counter(
            "isthmus_scored_rows", "Rows scored", registry=self.registry
        )
        self.latency = prometheus_client.Histogram(
            "isthmus_request_latency_seconds",
            "Seconds from request to answer",
            ("interface",),
            buckets=LATENCY_BUCKETS_SECS,
            registry=self.registry,
        )
        self.version = prometheus_client.Gauge(
            "isthmus_model_version", "Newest version served", registry=self.registry
        )
        self.swaps = prometheus_client.Counter(
            "isthmus_model_swaps", "Versions that took over", registry=self.registry
        )

    def swapped(self, version: int) -> None:
        """Notes that a version took over."""
        self.version.set(version)
        self.swaps.inc()

    def render(self) -> bytes:
        """Returns the text exposition format."""
        return prometheus_client.generate_latest(self.registry)
