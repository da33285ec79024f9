"""One run at a time in a folder."""

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
# What file systems answer that know no locks.
_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made if need be, while the block runs.

    The processes of one launch share the lock, which their leader holds. The kernel takes it back
    when that process ends, however it ends, so that no lock outlives its holder. On a network file
    system it holds among machines as far as that file system knows `flock`. A bucket knows no
    locks: there nothing keeps a second run out.

    Raises:
        UserError: another run holds the lock, in all processes.
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
            f"{folder} is in use by {holder}: wait until that run has ended, or stop it, or choose "
            "another folder"
        ) from None
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        say(f"warning: {folder}: this file system knows no locks; start one run at a time there")
        return
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
