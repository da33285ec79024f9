"""The files of a table that is in several parts: those in a folder, or those that match a pattern.

A pattern is a path with `*`, `?` or `[…]`, as a shell expands it.
"""

from pathlib import Path

from palr_jax.errors import UserError

_WILD = frozenset("*?[")


def has_parts(path: Path) -> bool:
    """Whether a path names a folder or a pattern, and not a file; a missing file has no parts."""
    return path.is_dir() or (_is_wild(path) and not path.is_file())


def parts(path: Path) -> list[Path]:
    """The files in a folder or of a pattern, sorted by name.

    Skips folders, and names that begin with `.` or `_`, which are not data (`_SUCCESS`).

    Raises:
        UserError: the pattern holds `**`, which buckets do not support.
    """
    if path.is_dir():
        found = path.iterdir()
    else:
        above = next(folder for folder in path.parents if not _is_wild(folder))
        pattern = str(path.relative_to(above))
        if "**" in pattern:
            raise UserError(f"{path} holds **: write a * for each folder")
        found = above.glob(pattern)
    named = (file for file in found if not file.name.startswith((".", "_")))
    return sorted((file for file in named if file.is_file()), key=str)


def _is_wild(path: Path) -> bool:
    return not _WILD.isdisjoint(str(path))
