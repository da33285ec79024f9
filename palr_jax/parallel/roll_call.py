"""The processes of a group connect to the leader before JAX starts; each reports what is missing.

Every follower connects to the leader's port and sends its index. Once all are connected, the leader
tells them so and frees the port for JAX. The connections stay open: over them the processes tell
each other how they end (`palr_jax.parallel.watch`).
"""

import json
import select
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

from palr_jax.errors import UserError, reason
from palr_jax.json_types import JsonObject

# How often a waiting process prints what it waits for.
_SAY_SECONDS = 10.0
# How often a follower tries to reach the leader, and how long one try and one message may take.
_TRY_SECONDS, _SEND_SECONDS = 0.5, 5.0
# How long a follower waits for the leader's first answer, which comes at once.
_ANSWER_SECONDS = 5.0
# Bytes of one message; what connects to the port may be any program and send anything.
_LONGEST = 10_000


class Link:
    """A connection to another process; messages are JSON objects, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_SEND_SECONDS)
        self._connection = connection
        self._start = b""

    def fileno(self) -> int:
        """Of the connection, for `select`."""
        return self._connection.fileno()

    def send(self, message: dict[str, object]) -> None:
        """Sends a message; a closed connection is detected by the next read."""
        with suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[JsonObject] | None:
        """The received messages; None if the peer closed the connection or is not palr.

        To be called once `select` says that there is something to read.
        """
        try:
            read = self._connection.recv(65536)
            *lines, self._start = (self._start + read).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError):
            return None
        if not all(isinstance(one, dict) for one in messages) or len(self._start) > _LONGEST:
            return None
        return messages if read or messages else None

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


def meet(host: str, port: int, index: int, count: int, seconds: float) -> dict[int, Link]:
    """Waits until all processes are connected, and prints which are missing.

    Returns:
        The leader's links to all others by their index, a follower's to the leader.

    Raises:
        UserError: a process is late, the port is taken, or the processes were started differently.
    """
    if index:
        return {0: _follow(host, port, index, count, seconds)}
    return _lead(host, port, count, seconds)


def _lead(host: str, port: int, count: int, seconds: float) -> dict[int, Link]:
    came: dict[int, Link] = {}
    strangers: list[Link] = []
    address, ends, says = f"{host}:{port}", time.monotonic() + seconds, 0.0
    with _listener(address, port) as listener:
        while len(came) < count - 1:
            missing = [one for one in range(1, count) if one not in came]
            now = time.monotonic()
            if now > ends:
                line = _late(seconds, f"{named(missing)} to connect to {address}", came)
                for link in came.values():
                    link.send({"refused": line})
                raise UserError(line)
            if now > says:
                says = now + _SAY_SECONDS
                _say(f"waiting for {named(missing)} to connect to {address}{_beside(came)}")
                for link in came.values():
                    link.send({"missing": missing})
            sources: list[socket.socket | Link] = [listener, *strangers, *came.values()]
            ready, _, _ = select.select(sources, [], [], 0.2)
            if listener in ready:
                strangers.append(Link(listener.accept()[0]))
            for one in [one for one, link in came.items() if link in ready]:
                if came[one].receive() is None:  # a process that waits has nothing to say
                    came.pop(one).close()
                    _say(f"process {one} disconnected")
            for link in [link for link in strangers if link in ready]:
                strangers.remove(link)
                _let_in(link, came, missing, count)
    for link in strangers:
        link.close()
    for link in came.values():
        link.send({"go": True})
    return came


def _listener(address: str, port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {address} ({reason(error)}): name another port, "
            "the same for all processes"
        ) from None


def _let_in(link: Link, came: dict[int, Link], missing: list[int], count: int) -> None:
    """Accepts or refuses a process by its first message."""
    first = (link.receive() or [{}])[0]
    index, theirs = first.get("process"), first.get("processes")
    if type(index) is not int or type(theirs) is not int or not 0 < index < theirs:
        link.close()  # not a palr process, such as a port scanner
    elif theirs != count:
        line = f"process 0 was started with --processes {count}, and process {index} with {theirs}"
        link.send({"refused": f"{line}: start all with the same number"})
        _say(f"{line}: that one is refused")
        link.close()
    elif index in came:
        line = f"process {index} is connected already: give every process another --process"
        link.send({"refused": line})
        link.close()
    else:
        came[index] = link
        link.send({"missing": [one for one in missing if one != index]})


def _follow(host: str, port: int, index: int, count: int, seconds: float) -> Link:
    address, ends = f"{host}:{port}", time.monotonic() + seconds
    awaited = f"process 0 at {address}"
    why: str | None = None
    says = 0.0
    while time.monotonic() < ends:
        if time.monotonic() > says:
            says = time.monotonic() + _SAY_SECONDS
            _say(f"waiting for {awaited}{f' ({why})' if why else ''}")
        try:
            wait = min(_SEND_SECONDS, max(ends - time.monotonic(), 0.1))
            link = Link(socket.create_connection((host, port), timeout=wait))
        except OSError as error:  # it is not there yet, or its name is not known yet
            why = reason(error)
            time.sleep(_TRY_SECONDS)
            continue
        link.send({"process": index, "processes": count})
        if _is_let_in(link, address):
            return link
        link.close()
        why = "what answers there is not a palr process, or it exited"
        time.sleep(_TRY_SECONDS)
    raise UserError(_late(seconds, f"{awaited}{f' ({why})' if why else ''}", ()))


def _is_let_in(link: Link, address: str) -> bool:
    """Waits until the leader lets the group start or gives up.

    Returns:
        Whether all have joined; false if the leader exited or is not a process of palr.

    Raises:
        UserError: the leader refused this process or gave up.
    """
    heard, silence = time.monotonic(), _ANSWER_SECONDS
    while time.monotonic() < heard + silence:
        ready, _, _ = select.select([link], [], [], _TRY_SECONDS)
        if not ready:
            continue
        heard, silence = time.monotonic(), 3 * _SAY_SECONDS
        for message in link.receive() or [{}]:
            if "refused" in message:
                raise UserError(str(message["refused"]))
            if "go" in message:
                return True
            if "missing" not in message:
                return False
            if missing := message["missing"]:
                _say(f"connected to process 0 at {address}; waiting for {named(missing)}")
    return False


def named(indices: Iterable[int]) -> str:
    """Processes in words, as `process 3` or `processes 1 to 4 and 7`."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], index]
        else:
            spans.append([index])
    *firsts, last = [" to ".join(map(str, span)) for span in spans]
    text = f"{', '.join(firsts)} and {last}" if firsts else last
    return f"process {text}" if len(spans) == len(spans[0]) == 1 else f"processes {text}"


def _late(seconds: float, awaited: str, came: Iterable[int]) -> str:
    return (
        f"waited {seconds:g} s for {awaited}{_beside(came)}: start the same command for every "
        "process, and check that the network allows the connections"
    )


def _beside(came: Iterable[int]) -> str:
    came = list(came)
    return f" (connected: {named(came)})" if came else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
