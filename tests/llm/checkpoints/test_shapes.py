import pytest

from palr_jax.llm.checkpoints.shapes import SHAPES
from palr_jax.llm.checkpoints.weights import base_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.2-3b", 3_212_749_824),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_a_shape_has_the_parameters_that_its_makers_count(name: str, parameters: int) -> None:
    counted = 0
    for shape in base_parameters(SHAPES[name]).values():
        size = 1
        for axis in shape:
            size *= axis
        counted += size
    assert counted == parameters
