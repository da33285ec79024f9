"""Compiled programs that are kept between commands: compiling is most of what a short one takes."""

import os
from pathlib import Path


def keep_programs() -> None:
    """Lets JAX keep what it compiles in a folder under the user's cache, and find it there.

    Whoever has set JAX_COMPILATION_CACHE_DIR has decided: nothing is changed then. A program is
    found again by its contents, the versions of JAX and the device, so that it never is a stale
    one; the folder may be deleted at any time. Where it cannot be written, JAX warns and compiles.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax  # noqa: PLC0415

    jax.config.update("jax_compilation_cache_dir", str(folder()))
    # By default only what took a second is kept: a run has a hundred programs that take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def folder() -> Path:
    """Where programs are kept: `$XDG_CACHE_HOME/palr-jax/programs`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return home / "palr-jax" / "programs"
