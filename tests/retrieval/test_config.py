import pytest
from pydantic import TypeAdapter, ValidationError

from palr_jax.retrieval.config import RetrieverConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0}, {"dropout": 1.0}, {"learning_rate": 0.0}, {"model": "sas"}, {"patience": 0},
        {"dim": 10, "num_heads": 3}, {"candidates": 0}, {"candidates": 9},
        {"devices": 0}, {"devices": 3, "batch_size": 32}, {"devices": 8, "dim": 20, "num_heads": 1},
        {"devices": 2, "model": "bpr_mf"},
        {"init_std": 0.0}, {"input_scale": 0.0}, {"input_scale": 8.0, "model": "gru4rec"},
        {"block": "gpt"}, {"block": "bert", "model": "bert4rec"},
    ],
)  # fmt: skip
def test_refuses_what_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TypeAdapter(RetrieverConfig).validate_python(wrong)
