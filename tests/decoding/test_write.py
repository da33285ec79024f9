import numpy as np
from flax import nnx

from palr_jax.decoding.write import write_text
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from tests.decoding.slow import full_passes

VOCAB = 40
MODEL = Llama(
    LlamaConfig(
        vocab_size=VOCAB, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        ffn_dim=24, max_length=64,
    ),
    nnx.Rngs(params=3),
)  # fmt: skip
LOGITS = full_passes(MODEL, width=32)


def one_by_one(prompt: list[int], new_tokens: int, stop_ids: list[int]) -> list[int]:
    """The same with a full forward pass per token."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        best = int(LOGITS(tokens).argmax())
        if best in stop_ids:
            break
        tokens.append(best)
    return tokens[len(prompt) :]


def padded(prompts: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    tokens_BT = np.full((len(prompts), width), 7, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt
    return tokens_BT, np.array([len(prompt) for prompt in prompts], np.int32)


def test_rows_of_any_length_are_written_as_if_alone() -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(VOCAB, size=length).tolist() for length in (1, 5, 12, 9)]
    free = [one_by_one(prompt, 8, []) for prompt in prompts]
    # One row stops early, perhaps others too; the rest continue.
    stop_ids = [free[1][4]]
    tokens_BT, length_B = padded(prompts, 12)
    written_BN = write_text(MODEL, tokens_BT, length_B, 8, stop_ids)
    assert written_BN.shape == (4, 8)
    found = [row[row >= 0].tolist() for row in written_BN]
    assert found == [one_by_one(prompt, 8, stop_ids) for prompt in prompts]
    assert len(found[1]) < 8
    for row, text in zip(written_BN, found, strict=True):
        assert (row[len(text) :] == -1).all()


def test_a_row_that_stops_at_once_is_empty() -> None:
    tokens_BT, length_B = padded([[3, 4, 5]], 4)
    first = one_by_one([3, 4, 5], 1, [])
    assert write_text(MODEL, tokens_BT, length_B, 5, first).tolist() == [[-1] * 5]
