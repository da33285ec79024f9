"""Paths on disk and in buckets (`gs://BUCKET/…`), with one interface."""

import importlib.util
import os
import shutil
import socket
from functools import cache
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from palr_jax.errors import UserError, reason, shown

_SCHEME = "gs://"
_SERVICE = "https://storage.googleapis.com"
_CONNECT_SECONDS = 10


def path_of(name: str | os.PathLike[str]) -> Path:
    """A path on disk, or one in a bucket with the interface of `Path`.

    A leading `~` or `~USER` is expanded.

    Raises:
        UserError: `name` is another kind of address or not a path, the user is unknown, the extra
            `gcs` is not installed, or the bucket cannot be reached.
    """
    text = os.fspath(name)
    if not text or "\0" in text or not _can_be_encoded(text):
        raise UserError(f"{shown(text)} is not a path")
    if "://" not in text:
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise UserError(f"{shown(text)}: unknown user, or one without a home") from None
    bucket = text.removeprefix(_SCHEME).split("/")[0]
    if not text.startswith(_SCHEME) or not bucket:
        raise UserError(f"{text} is neither a path nor of the form {_SCHEME}BUCKET/PATH")
    _reach(bucket)
    from etils import epath  # noqa: PLC0415

    return cast(Path, epath.Path(text))


def in_bucket(path: Path) -> bool:
    """Whether a path is in a bucket, where files cannot be appended to and folders not renamed."""
    return not isinstance(path, Path)


def objects_below(path: Path) -> list[Path]:
    """The objects of a bucket below a folder, at any depth, or the one at a path.

    Takes one request per thousand objects, where a walk takes one for each of them.
    """
    import fsspec  # noqa: PLC0415
    from etils import epath  # noqa: PLC0415

    names = fsspec.filesystem("gcs").find(str(path))
    return [cast(Path, epath.Path(f"{_SCHEME}{name}")) for name in names]


def absolute(path: Path) -> Path:
    """The absolute path."""
    return path if in_bucket(path) else path.absolute()


def delete(path: Path) -> None:
    """Deletes a file, or a folder recursively; does nothing if the path does not exist."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif in_bucket(path):
        path.rmtree()  # type: ignore[attr-defined]
    else:
        shutil.rmtree(path)


def _can_be_encoded(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


@cache
def _reach(bucket: str) -> None:
    """Checks once per bucket that this user can access it."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"{_SCHEME}{bucket} is a bucket, and reading buckets needs gcsfs: "
            "pip install 'palr-jax[gcs]'"
        )
    import fsspec  # noqa: PLC0415

    os.register_at_fork(after_in_child=_forget_connections)
    # Other processes write to the bucket, so cached listings would be stale.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        _check_network()
        found = fsspec.filesystem("gcs").exists(bucket)
        why = "it does not exist"
    except Exception as error:  # from the network, the credentials or the service
        found, why = False, reason(error)
    if not found:
        raise UserError(
            f"the bucket {_SCHEME}{bucket} cannot be reached ({why}): check its name and run "
            "`gcloud auth application-default login`"
        )


def _forget_connections() -> None:
    """Makes a forked process connect again: it has no thread that serves its parent's connections.

    fsspec itself forgets them, but etils keeps the object that holds them.
    """
    from etils.epath import backend  # noqa: PLC0415

    backend.fsspec_backend._get_filesystem.cache_clear()


def _check_network() -> None:
    """Raises an OSError within seconds if the service is unreachable; gcsfs retries for minutes."""
    if getproxies():  # the proxy connects to the service
        return
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator in ("", "default", "None"):
        emulator = _SERVICE
    address = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
        pass
