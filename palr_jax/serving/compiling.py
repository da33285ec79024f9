"""Counts the programs that JAX compiles."""

import threading

from jax import monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts the programs that this process compiles or loads from the cache from now on."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _EVENT:
            with self._lock:
                self.count += 1
