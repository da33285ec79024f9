"""HTTP connections with a time limit on request headers, which uvicorn does not have."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class TimedConnection(HttpToolsProtocol):
    """A connection that is closed, with status 408, if the headers of a request are late.

    A client that sends headers byte by byte, or none at all, would otherwise hold a connection
    forever. uvicorn itself closes connections that are idle after a response; bodies are timed by
    `guards.BodyLimits`.
    """

    header_seconds: float

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the timer: a client that connects has a request to send."""
        super().connection_made(transport)
        self._start()

    def on_message_begin(self) -> None:
        """Starts the timer of a later request on the same connection."""
        super().on_message_begin()
        self._start()

    def on_headers_complete(self) -> None:
        """Stops the timer."""
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_seconds, self._close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            # The headers of a pipelined request: uvicorn reads on after the response before them.
            self._start()
        elif not self.transport.is_closing():
            self.transport.write(_TIMEOUT)
            self.transport.close()


def timed(seconds: float) -> type[TimedConnection]:
    """The connections of a server whose clients have so many seconds to send request headers."""
    return type("Connection", (TimedConnection,), {"header_seconds": seconds})
