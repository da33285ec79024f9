"""The configs that come with the package, by name."""

from pathlib import Path

from palr_jax.config.keys import nearest
from palr_jax.errors import UserError
from palr_jax.io.paths import path_of

_PACKAGE = Path(__file__).parent.parent


def bundled_configs() -> dict[str, Path]:
    """The configs of configs/ by name: configs/llama-7b/v5e-16.yaml is llama-7b-v5e-16."""
    # A wheel holds them in the package, a checkout next to it.
    folder = _PACKAGE / "configs"
    if not folder.is_dir():
        folder = _PACKAGE.parent / "configs"
    files = sorted(folder.rglob("*.yaml"))
    return {"-".join(file.relative_to(folder).with_suffix("").parts): file for file in files}


def config_path(name: str) -> Path:
    """The file that `--config` names: a path, or a bundled config by its name.

    A file of that path wins. Only a name without a slash and an ending is looked up.

    Raises:
        UserError: neither a file nor a bundled config has that name, or as `path_of`.
    """
    path = path_of(name)
    if "/" in name or path.suffix or path.is_file():
        return path
    bundled = bundled_configs()
    if name not in bundled:
        raise UserError(
            f"--config {name}: there is no such file and no bundled config of that name; "
            f"{nearest(name, bundled)}"
        )
    return bundled[name]
