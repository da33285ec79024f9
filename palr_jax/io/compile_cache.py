"""Compiled programs that are kept between commands: compiling is most of what a short one takes."""

import os
from pathlib import Path


def keep_programs() -> None:
    """Lets JAX keep what it compiles in a folder under the user's cache, and find it there.

    If JAX_COMPILATION_CACHE_DIR is set, the setting is left unchanged. The key of a program is its
    contents, the version of JAX and the device, so a program is never stale. The folder may be
    deleted at any time. If it cannot be written, JAX warns and compiles.
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
