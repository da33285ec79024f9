from pathlib import Path

import pytest

from palr_jax.errors import UserError
from palr_jax.io.files import write_json
from palr_jax.llm.checkpoints.hf_config import to_hf
from palr_jax.llm.checkpoints.shapes import SHAPES, shape_of
from palr_jax.llm.checkpoints.weights import base_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-7b", 6_738_415_616), ("llama-13b", 13_015_864_320), ("llama2-70b", 68_976_648_192)],
)
def test_a_shape_has_the_parameters_that_its_makers_count(name: str, parameters: int) -> None:
    counted = 0
    for shape in base_parameters(shape_of(name)).values():
        size = 1
        for axis in shape:
            size *= axis
        counted += size
    assert counted == parameters


def test_a_shape_is_read_from_a_file_or_its_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", to_hf(SHAPES["llama2-70b"]))
    assert shape_of(str(tmp_path)) == SHAPES["llama2-70b"]
    assert shape_of(str(tmp_path / "config.json")) == SHAPES["llama2-70b"]


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"llama-7c is neither a config\.json nor one of llama-7b"):
        shape_of("llama-7c")
