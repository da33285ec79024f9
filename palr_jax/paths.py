"""Paths on disk and in buckets (`gs://BUCKET/…`), used alike."""

import importlib.util
import os
import shutil
from functools import cache
from pathlib import Path
from typing import cast

from palr_jax.errors import UserError, shown

_SCHEME = "gs://"


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
        found = fsspec.filesystem("gcs").exists(bucket)
        reason = "there is none of this name"
    except Exception as error:  # of the network, the credentials or the service
        found, reason = False, (str(error).strip().splitlines() or [repr(error)])[0]
    if not found:
        raise UserError(
            f"the bucket {_SCHEME}{bucket} cannot be reached ({reason}): see to its name and run "
            "`gcloud auth application-default login`"
        )
