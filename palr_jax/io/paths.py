"""Paths on disk and in buckets (`gs://BUCKET/…`), used alike."""

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
    """A path on disk, or one in a bucket, which reads and writes as a `Path` does.

    A leading `~` or `~USER` is that user's home.

    Raises:
        UserError: it is the address of something else or no path, there is no such user, the extra
            `gcs` is not installed, or the bucket cannot be reached.
    """
    text = os.fspath(name)
    if not text or "\0" in text or not _can_be_encoded(text):
        raise UserError(f"{shown(text)} is no path")
    if "://" not in text:
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise UserError(f"{shown(text)}: there is no such user, or no home of theirs") from None
    bucket = text.removeprefix(_SCHEME).split("/")[0]
    if not text.startswith(_SCHEME) or not bucket:
        raise UserError(f"{text} is neither a path nor of the form {_SCHEME}BUCKET/PATH")
    _reach(bucket)
    from etils import epath  # noqa: PLC0415

    return cast(Path, epath.Path(text))


def in_bucket(path: Path) -> bool:
    """Whether a path is one in a bucket: it can be neither renamed nor appended to at once."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """The same path from the root on."""
    return path if in_bucket(path) else path.absolute()


def delete(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it, if it is there."""
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
    """Checks once that a bucket is there for this user."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"{_SCHEME}{bucket} is a bucket, and reading buckets needs gcsfs: "
            "pip install 'palr-jax[gcs]'"
        )
    import fsspec  # noqa: PLC0415

    # Other processes write too, so nothing that was listed before may be believed.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        _check_network()
        found = fsspec.filesystem("gcs").exists(bucket)
        why = "there is none of this name"
    except Exception as error:  # of the network, the credentials or the service
        found, why = False, reason(error)
    if not found:
        raise UserError(
            f"the bucket {_SCHEME}{bucket} cannot be reached ({why}): see to its name and run "
            "`gcloud auth application-default login`"
        )


def _check_network() -> None:
    """Raises an OSError within seconds where the service is out of reach; gcsfs tries for long."""
    if getproxies():  # somebody else reaches it
        return
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator in ("", "default", "None"):
        emulator = _SERVICE
    address = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
        pass
