import pytest

from palr_jax.llm.checkpoints.shapes import SHAPES
from palr_jax.llm.checkpoints.weights import base_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-7b", 6_738_415_616), ("llama-13b", 13_015_864_320), ("llama2-70b", 68_976_648_192)],
)
def test_a_shape_has_the_parameters_that_its_makers_count(name: str, parameters: int) -> None:
    counted = 0
    for shape in base_parameters(SHAPES[name]).values():
        size = 1
        for axis in shape:
            size *= axis
        counted += size
    assert counted == parameters
