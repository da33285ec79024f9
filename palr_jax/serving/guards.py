"""ASGI middleware in front of the application: limits, API keys, headers, metrics."""

import asyncio
import hmac
import json
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palr_jax.serving.metrics import Metrics

# No resources of other origins and nothing inline: script and style of the page are files.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecurityHeaders:
    """Adds headers that make a browser load resources from this server alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application and adds the headers to its response."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)


class Observed:
    """Counts requests and their latency by route; all unknown routes count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application and records status and latency."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status, start = 500, time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.monotonic() - start)


class Keys:
    """Requires one of the keys for requests to /v1 and /v2."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app, self._keys = app, tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application, or answers 401."""
        is_free = scope["type"] != "http" or not scope["path"].startswith(("/v1/", "/v2/"))
        if is_free or scope["method"] == "OPTIONS" or self._is_known(scope):
            return await self._app(scope, receive, send)
        await _refuse(
            send, 401, "Authorization", "an API key is needed: Authorization: Bearer KEY",
            [(b"www-authenticate", b"Bearer")],
        )  # fmt: skip

    def _is_known(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        # Compared in constant time, so that the time does not reveal a part of a key.
        is_key = any(hmac.compare_digest(key.strip(), known) for known in self._keys)
        return kind.lower() == b"bearer" and is_key


class BodyLimits:
    """Refuses bodies that are too large or arrive too slowly, without storing them."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body and calls the application, or answers 413 or 408."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self._app(scope, receive, send)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._most:
            return await self._refuse_size(send)
        try:
            body = await asyncio.wait_for(self._read(receive), self._seconds)
        except TimeoutError:
            message = f"the body did not arrive within {self._seconds:g} s"
            return await _refuse(send, 408, "body", message, [(b"connection", b"close")])
        if body is None:
            return None  # the client has disconnected
        if len(body) > self._most:
            return await self._refuse_size(send)
        is_read = False

        async def receiving() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receiving, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, cut once it exceeds the limit; None if the client has disconnected."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self._most or not message.get("more_body", False):
                return b"".join(parts)

    async def _refuse_size(self, send: Send) -> None:
        message = f"the body is larger than {self._most:,} bytes"
        await _refuse(send, 413, "body", message, [(b"connection", b"close")])


async def _refuse(
    send: Send, status: int, field: str, message: str, headers: list[tuple[bytes, bytes]]
) -> None:
    body = json.dumps({"error": {"field": field, "message": message, "nearest": []}}).encode()
    sizes = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*sizes, *headers]})
    await send({"type": "http.response.body", "body": body})
