"""Clients that send request headers slowly, against a server of a trivial application."""

import asyncio
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.types import Receive, Scope, Send

from palr_jax.serving.connections import timed

SECONDS = 0.4
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def talk(client: Client) -> None:
    """Connects a client to a server."""

    async def main() -> None:
        config = uvicorn.Config(
            app, port=0, http=timed(SECONDS), lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address[:2])
        try:
            await asyncio.wait_for(client(reader, writer), 30)
        finally:
            writer.close()
            server.should_exit = True
            await task

    asyncio.run(main())


async def response(reader: asyncio.StreamReader) -> bytes:
    """Reads a response of `app`."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(2) == b"ok"
    return head


async def closed_late(reader: asyncio.StreamReader, start: float) -> None:
    """The server answers 408 and closes the connection, not before its time."""
    assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    assert asyncio.get_running_loop().time() - start >= 0.9 * SECONDS


def test_a_client_that_sends_headers_byte_by_byte_is_closed() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        late = asyncio.create_task(closed_late(reader, loop.time()))
        for byte in REQUEST[:-1] * 20:
            if late.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        await late

    talk(client)


def test_a_client_that_sends_nothing_is_closed() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await closed_late(reader, asyncio.get_running_loop().time())

    talk(client)


def test_every_request_of_a_connection_has_its_own_time() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            for part in (REQUEST[:9], REQUEST[9:]):
                writer.write(part)
                await asyncio.sleep(0.6 * SECONDS)
            assert (await response(reader)).startswith(b"HTTP/1.1 200 ")
        start = asyncio.get_running_loop().time()
        writer.write(REQUEST[:9])
        await closed_late(reader, start)

    talk(client)


def test_a_connection_between_requests_is_left_to_keep_alive() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(REQUEST)
            assert (await response(reader)).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(2 * SECONDS)

    talk(client)
