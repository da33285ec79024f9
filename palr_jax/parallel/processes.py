"""A group of processes that run one command together, each with its own devices.

All run the same program on the same files, which all must be able to read. Only the first process,
the leader, writes files and prints.
"""

import glob
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from palr_jax.errors import UserError, reason
from palr_jax.json_types import Json, JsonObject
from palr_jax.parallel.roll_call import Link, meet
from palr_jax.parallel.watch import AGAIN, is_watched, leave, watched

if TYPE_CHECKING:
    import jax

_Value = TypeVar("_Value")
# What `signal.signal` takes and returns.
_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None

# A process without a heartbeat for this long counts as dead, and the others stop.
_HEARTBEAT_SECONDS = 30
# How long a process waits for the others, and how much later JAX would give up by itself.
_WAIT_SECONDS = 300
_GRACE_SECONDS = 60
# How long it may take until the parent knows which process died.
_KNOWN_SECONDS = 10
# Words in the errors of JAX and its libraries when another process died.
_LOSS = ("Gloo", "NCCL", "closed by peer", "UNAVAILABLE", "heartbeat")
# Device files of the chips of a TPU VM.
_TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")


@dataclass(frozen=True)
class Group:
    """The index of this process in its group.

    Attributes:
        index: index of this process; 0 is the leader.
        count: number of processes.
    """

    index: int = 0
    count: int = 1


_group = Group()


def is_leader() -> bool:
    """Whether this process is the leader, which writes and prints."""
    return _group.index == 0


def are_many() -> bool:
    """Whether the group has more than one process."""
    return _group.count > 1


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the group of processes, if any; must be called before JAX is used.

    They find each other by the arguments or, without them, by the environment variables of Slurm,
    GKE, Open MPI or a Cloud TPU. The caller resumes in a child process (see `parallel/watch.py`).

    Args:
        coordinator: host and port of the leader, the same for all.
        count: number of processes.
        index: index of this process, from 0.

    Raises:
        UserError: some of the arguments are missing, or the other processes cannot be found.
    """
    global _group
    given = (coordinator, count, index)
    links: dict[int, Link] = {}
    if coordinator is None or count is None or index is None:
        if any(value is not None for value in given):
            raise UserError(
                "--coordinator, --processes and --process belong together: name all three"
            )
        if not is_shared(os.environ, any(glob.glob(pattern) for pattern in _TPU_FILES)):
            return
        awaited = "the other processes that the environment of this one names, if any"
        print(f"waiting for {awaited}", file=sys.stderr, flush=True)
    else:
        awaited = "the other processes, which are connected, to start JAX"
        links = meet(*_checked(coordinator, count, index), index, count, _WAIT_SECONDS)
    watched(links, index, _HEARTBEAT_SECONDS)
    import jax  # noqa: PLC0415

    with _waiting(awaited):
        try:
            jax.distributed.initialize(
                coordinator,
                count,
                index,
                initialization_timeout=_WAIT_SECONDS + _GRACE_SECONDS,
                # The links tell which process died, so they come first.
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS * (3 if links else 1),
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the other processes cannot be found ({reason(error)})") from error
    _group = Group(jax.process_index(), jax.process_count())


def _checked(coordinator: str, count: int, index: int) -> tuple[str, int]:
    """Host and port of the leader.

    Raises:
        UserError: the arguments name no process of a group.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {coordinator}: give HOST:PORT of process 0, as node0:8476")
    if not 0 <= index < count:
        raise UserError(f"--process {index}: with --processes {count} it is from 0 to {count - 1}")
    return host.strip("[]"), int(port)


@contextmanager
def _waiting(awaited: str) -> Iterator[None]:
    """Ends this process with one line if the others do not start.

    JAX's library would wait silently and then abort the process.
    """

    def end() -> None:
        print(
            f"palr: waited {_WAIT_SECONDS} s for {awaited}: start the same command for every "
            "process, and check that the network allows the connections",
            file=sys.stderr,
        )
        leave(2)

    timer = threading.Timer(_WAIT_SECONDS, end)
    timer.daemon = True
    timer.start()
    # Python's handler would react to Ctrl-C only after the wait.
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if is_main else None
    try:
        yield
    finally:
        timer.cancel()
        if is_main:
            signal.signal(signal.SIGINT, before)


def is_shared(environment: Mapping[str, str], has_tpu: bool) -> bool:
    """Whether this process may be one of several.

    Args:
        environment: the environment variables.
        has_tpu: whether the host has TPU chips. Only the network tells whether they belong to a
            pod, so JAX must look it up; a single host is a group of one.
    """
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    for name in sizes:
        size = environment.get(name) or "1"
        if not size.isdecimal():
            raise UserError(f"{name} is {size!r} in the environment: it is a number of processes")
        if int(size) > 1:
            return True
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    return has_tpu and "TPU_SKIP_MDS_QUERY" not in environment


def gather(value: Json) -> list[Json]:
    """The JSON values of all processes, in order of their index; an all-gather."""
    if not are_many():
        return [value]
    from jax.experimental import multihost_utils  # noqa: PLC0415

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(text)]))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]


def led(work: Callable[[], _Value]) -> _Value:
    """Runs `work` in the leader and returns its JSON value in all processes, which wait for it.

    Raises:
        UserError: `work` raised it, or an OSError, in the leader; raised in all processes.
    """
    if not are_many():
        return work()
    answer: JsonObject = {}
    if is_leader():
        try:
            answer = {"value": work()}
        except UserError as error:
            answer = {"error": str(error)}
        except OSError as error:  # such as a full disk: the others must not wait forever
            answer = {"error": f"{error.filename}: {reason(error)}: see to it and run again"}
    answer = gather(answer)[0]
    if "error" in answer:
        raise UserError(answer["error"])
    value: _Value = answer["value"]
    return value


class Terminated(Exception):  # noqa: N818 it is no error
    """The run received SIGTERM and saved its state."""


def is_loss(error: Exception) -> bool:
    """Whether an error was caused by the death of another process.

    If a parent watches this process, it usually ends it here: it knows which process died.
    """
    text = str(error)
    if not any(sign in text for sign in _LOSS):
        return False
    if is_watched():
        time.sleep(_KNOWN_SECONDS)
    return True


def failure(lost: bool) -> str:
    """One line about an error that is not a user's mistake.

    Args:
        lost: whether another process died and caused it.
    """
    if lost:
        return f"another process stopped, so this one stops: see its output; {AGAIN}"
    return f"process {_group.index} of {_group.count} failed, so the others will stop"


class Stop:
    """Records SIGTERM, which is sent before a machine is preempted.

    All processes must stop at the same step, but the signal reaches them at different times. So
    each step starts an all-reduce of the flags, whose result is read one step later without
    waiting.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: _Handler = None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def poll(self) -> "bool | jax.Array":
        """Starts an all-reduce of whether any process received SIGTERM; a lazy boolean."""
        if not are_many():
            return self._asked
        import jax  # noqa: PLC0415
        import jax.numpy as jnp  # noqa: PLC0415

        mesh = jax.sharding.Mesh(np.array(jax.devices()), "all")
        each = jax.sharding.NamedSharding(mesh, jax.P("all"))
        asked = np.array([self._asked])
        told = jax.make_array_from_callback((mesh.size,), each, lambda index: asked)
        whole = jax.sharding.NamedSharding(mesh, jax.P())
        return jax.jit(jnp.any, out_shardings=whole)(told)
