"""A lock that lets one run at a time work in a folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from palr_jax.errors import UserError
from palr_jax.io.paths import in_bucket
from palr_jax.io.progress import say
from palr_jax.parallel import processes

NAME = ".lock"
# Errors of file systems without locks.
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder, which is created if missing, while the block runs.

    The processes of one launch share the lock; their leader holds it. The kernel releases it when
    that process ends for any reason. On a network file system it works across machines if that file
    system supports `flock`. Buckets have no locks, so a second run is not kept out.

    Raises:
        UserError: another run holds the lock; raised in all processes.
    """
    with ExitStack() as stack:
        processes.led(lambda: None if in_bucket(folder) else _take(folder, stack))
        yield


def _take(folder: Path, stack: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        raise UserError(
            f"{folder} is in use by {holder}: wait for that run to end, stop it, or choose another "
            "folder"
        ) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        say(f"warning: {folder}: this file system has no locks; start only one run at a time in it")
        return
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
