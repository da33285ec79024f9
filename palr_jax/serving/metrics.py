"""The metrics that /metrics exposes to Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def made(kind, name: str, text: str, *labels: str, **more):  # type: ignore[no-untyped-def]
            return kind(f"palr_{name}", text, labels, registry=self.registry, **more)

        self.requests: Counter = made(Counter, "requests", "Answered requests.", "route", "status")
        self.latency: Histogram = made(
            Histogram,
            "request_seconds",
            "Seconds from request to response.",
            "route",
            buckets=_SECONDS,
        )
        self.batch_size: Histogram = made(
            Histogram, "batch_size", "Questions per batch.", buckets=_SIZES
        )
        self.queue: Gauge = made(Gauge, "queue_length", "Waiting questions.")
        self.dropped: Counter = made(
            Counter, "dropped", "Questions removed because their client disconnected."
        )
        self.hits: Counter = made(Counter, "cache_hits", "Answers from the cache.")
        self.misses: Counter = made(Counter, "cache_misses", "Computed answers.")
        self.programs: Gauge = made(
            Gauge, "programs_compiled", "Programs that JAX compiled or loaded from its cache."
        )
        self.late_programs: Gauge = made(
            Gauge,
            "programs_compiled_late",
            "Programs compiled or loaded since the server was ready.",
        )
        self.ready: Gauge = made(Gauge, "ready", "1 while the server is ready, else 0.")

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
