"""The rooms of the package: no import runs in a circle, and light commands load no JAX."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.locations import ROOT

PACKAGE = ROOT / "palr_jax"


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imported(module: str) -> Iterator[str]:
    """The modules of the package that a module imports at its top level."""
    for node in ast.parse(MODULES[module].read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def _circles(edges: dict[str, set[str]]) -> set[str]:
    """What is left of a graph when nodes that import nothing are taken away, again and again."""
    left = {node: targets & set(edges) - {node} for node, targets in edges.items()}
    while done := {node for node, targets in left.items() if not targets}:
        left = {node: targets - done for node, targets in left.items() if node not in done}
    return set(left)


def test_modules_import_each_other_in_one_direction() -> None:
    assert not _circles({module: set(_imported(module)) for module in MODULES})


def test_rooms_import_each_other_in_one_direction() -> None:
    def room(module: str) -> str:
        """The folder of a module; a module of the package's root is a room of its own."""
        return module if module.count(".") == 1 else ".".join(module.split(".")[:2])

    edges: dict[str, set[str]] = {}
    for module in MODULES:
        edges.setdefault(room(module), set()).update(map(room, _imported(module)))
    assert not _circles(edges)


def test_a_circle_is_found() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_the_command_and_its_config_load_no_jax() -> None:
    code = (
        "import sys; from pathlib import Path; import palr_jax; from palr_jax.cli import main\n"
        "from palr_jax.config import load_config\n"
        "load_config(Path('configs/quickstart.yaml'), {})\n"
        "print([name for name in ('jax', 'flax', 'polars', 'scipy') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
