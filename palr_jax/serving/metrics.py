"""What Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def made(kind, name: str, text: str, *labels: str, **more):  # type: ignore[no-untyped-def]
            return kind(f"palr_{name}", text, labels, registry=self.registry, **more)

        self.requests: Counter = made(
            Counter, "requests", "Requests that were answered.", "route", "status"
        )
        self.latency: Histogram = made(
            Histogram, "request_seconds", "Time to the answer.", "route", buckets=_SECONDS
        )
        self.batch_size: Histogram = made(
            Histogram, "batch_size", "Questions of a batch.", buckets=_SIZES
        )
        self.queue: Gauge = made(Gauge, "queue_length", "Questions that wait.")
        self.dropped: Counter = made(
            Counter, "dropped", "Questions that left the queue since their client went away."
        )
        self.hits: Counter = made(Counter, "cache_hits", "Answers that were there already.")
        self.misses: Counter = made(Counter, "cache_misses", "Answers that had to be computed.")
        self.programs: Gauge = made(
            Gauge, "programs_compiled", "Programs that JAX compiled or loaded from its cache."
        )
        self.late_programs: Gauge = made(
            Gauge, "programs_compiled_late", "Of these, since the server was ready."
        )
        self.ready: Gauge = made(Gauge, "ready", "1 while requests are answered.")

    def text(self) -> bytes:
        """In the form that Prometheus reads."""
        return generate_latest(self.registry)
