import os
import subprocess
import sys
from pathlib import Path

from tests.locations import ROOT

CODE = """
import jax, jax.numpy as jnp
from jax import monitoring
from palr_jax.io.compile_cache import folder, keep_programs
heard = []
monitoring.register_event_listener(lambda event, **_: heard.append(event))
keep_programs()
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 4))).block_until_ready()
print(heard.count("/jax/compilation_cache/cache_hits"), folder())
"""


def run(environment: dict[str, str]) -> tuple[int, Path]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=kept | environment, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    hits, place = done.stdout.split(maxsplit=1)
    return int(hits), Path(place.strip())


def test_programs_are_found_by_the_next_command(tmp_path: Path) -> None:
    place = {"XDG_CACHE_HOME": str(tmp_path)}
    hits, folder = run(place)
    assert hits == 0
    assert folder == tmp_path / "palr-jax" / "programs"
    assert any(folder.iterdir())
    assert run(place)[0] > 0


def test_a_chosen_cache_folder_is_kept(tmp_path: Path) -> None:
    _, folder = run(
        {"XDG_CACHE_HOME": str(tmp_path / "a"), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "b")}
    )
    assert not folder.exists()
    assert (tmp_path / "b").exists()
