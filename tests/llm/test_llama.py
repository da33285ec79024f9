import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax import llm
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.kv_cache import KVCache
from palr_jax.llm.llama import Llama, TokenLayout, causal_layout, packed_layout
from tests.locations import SHARED
from tests.programs import compiled, forward

STORIES = SHARED / "models" / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not here")

TINY = LlamaConfig(
    vocab_size=61, dim=24, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=6, ffn_dim=40,
    max_length=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Llama:
    return Llama(TINY, nnx.Rngs(params=0))


def reference_logits(
    model: Llama, tokens: list[int], visible: np.ndarray, position: np.ndarray
) -> np.ndarray:
    """A reference LLaMA forward pass: float64, one token at a time, loops over heads."""
    config = model.config
    layers = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model)))

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * weight

    def rope(x: np.ndarray) -> np.ndarray:
        half = config.head_dim // 2
        out = np.empty_like(x)
        for t, p in enumerate(position):
            for i in range(half):
                angle = p / config.rope_theta ** (2 * i / config.head_dim)
                c, s = np.cos(angle), np.sin(angle)
                out[t, i] = x[t, i] * c - x[t, i + half] * s
                out[t, i + half] = x[t, i + half] * c + x[t, i] * s
        return out

    x = layers["embedding_VD"][tokens]
    for index in range(config.num_layers):
        w = jax.tree.map(lambda leaf, index=index: leaf[index], layers["layers"])
        h = norm(x, w["attention_norm"]["weight_D"])
        attended = []
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
            kv_columns = slice(shared * config.head_dim, (shared + 1) * config.head_dim)
            q = rope((h @ w["q"]["kernel_IO"])[:, columns])
            k = rope((h @ w["k"]["kernel_IO"])[:, kv_columns])
            v = (h @ w["v"]["kernel_IO"])[:, kv_columns]
            score = np.where(visible, q @ k.T / np.sqrt(config.head_dim), -np.inf)
            weight = np.exp(score - score.max(-1, keepdims=True))
            attended.append(weight / weight.sum(-1, keepdims=True) @ v)
        x = x + np.concatenate(attended, -1) @ w["o"]["kernel_IO"]
        h = norm(x, w["ffn_norm"]["weight_D"])
        gate = h @ w["gate"]["kernel_IO"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"]["kernel_IO"])) @ w["down"]["kernel_IO"]
    return norm(x, layers["norm"]["weight_D"]) @ layers["embedding_VD"].T


def test_logits_equal_a_slow_reference(tiny: Llama) -> None:
    tokens = np.random.default_rng(0).integers(0, 61, 20).tolist()
    expected = reference_logits(tiny, tokens, np.tri(20, dtype=bool), np.arange(20))
    np.testing.assert_allclose(forward(tiny, jnp.array([tokens]))[0], expected, atol=2e-5)


def test_a_tree_of_tokens_sees_its_ancestors_only(tiny: Llama) -> None:
    # Prompt 0 1 2, then the tree 3 -> (4, 5 -> 6), in preorder.
    horizon = np.array([6, 6, 6, 6, 4, 6, 6])
    position = np.array([0, 1, 2, 3, 4, 4, 5])
    index = np.arange(7)
    visible = (index[None] <= index[:, None]) & (index[:, None] <= horizon[None])
    assert not visible[5, 4]
    assert not visible[6, 4]
    tokens = [5, 9, 31, 7, 50, 12, 44]
    expected = reference_logits(tiny, tokens, visible, position)
    layout = TokenLayout(jnp.array([position]), jnp.array([horizon]))
    np.testing.assert_allclose(forward(tiny, jnp.array([tokens]), layout)[0], expected, atol=2e-5)


def test_packed_examples_equal_each_alone(tiny: Llama) -> None:
    rng = np.random.default_rng(1)
    lengths = [150, 97, 40]  # together longer than a block of queries
    tokens = rng.integers(0, 61, sum(lengths))
    segment = np.repeat([1, 2, 3], lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    pad = 13
    row = jnp.array([np.pad(tokens, (0, pad))])
    layout = packed_layout(
        jnp.array([np.pad(segment, (0, pad))]), jnp.array([np.pad(position, (0, pad))])
    )
    packed = forward(tiny, row, layout)[0]
    start = 0
    for length in lengths:
        alone = forward(tiny, jnp.array([tokens[start : start + length]]))[0]
        np.testing.assert_allclose(packed[start : start + length], alone, atol=1e-5)
        start += length


def test_padding_changes_nothing(tiny: Llama) -> None:
    tokens = np.random.default_rng(2).integers(0, 61, (2, 30))
    layout = causal_layout(jnp.array([30, 11]), 30)
    padded = forward(tiny, jnp.array(tokens), layout)
    alone = forward(tiny, jnp.array(tokens[1:, :11]))
    np.testing.assert_allclose(padded[1, :11], alone[0], atol=1e-5)


def test_cached_chunks_equal_one_pass(tiny: Llama) -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 61, (2, 40))
    prompt = np.array([13, 7])
    first = jnp.array(tokens[:, :16])
    _, cache = compiled(Llama.prefill, tiny, first, jnp.array(prompt), slots=48)
    # Causal rows: what a token sees does not change with the tokens after it.
    whole = compiled(Llama.hidden, tiny, jnp.array(tokens))
    read = prompt.copy()
    for counts in ([3, 1], [0, 4], [4, 4], [1, 0]):
        chunk = np.zeros((2, 4), np.int64)
        for row, count in enumerate(counts):
            chunk[row, :count] = tokens[row, read[row] : read[row] + count]
        new = (jnp.array(chunk), jnp.array(counts), cache)
        hidden, cache = compiled(Llama.extend, tiny, *new)
        for row, count in enumerate(counts):
            expected = whole[row, read[row] : read[row] + count]
            np.testing.assert_allclose(hidden[row, :count], expected, atol=1e-5)
        read += counts
    np.testing.assert_array_equal(cache.length_B, read)


@needs_stories
def test_stories_logits_are_golden() -> None:
    golden = np.load(STORIES / "golden_logits.npz")
    logits = forward(llm.load(STORIES)[0], jnp.array([golden["input_ids"]]))[0]
    assert np.abs(logits - golden["logits"]).max() < 1e-3


@needs_stories
def test_stories_greedy_text_is_golden() -> None:
    golden = json.loads((STORIES / "golden.json").read_text())
    model = llm.load(STORIES)[0]
    count = len(golden["greedy_ids"]) - 1

    @jax.jit
    def continue_greedily(prompt_BT: jax.Array) -> jax.Array:
        hidden_BTD, cache = model.prefill(prompt_BT, jnp.array([1]), slots=count + 3)

        def step(
            carry: tuple[jax.Array, KVCache], _: None
        ) -> tuple[tuple[jax.Array, KVCache], jax.Array]:
            token_B, cache = carry
            hidden_BTD, cache = model.extend(token_B[:, None], jnp.array([1]), cache)
            return (model.logits(hidden_BTD[:, 0]).argmax(-1), cache), token_B

        first_B = model.logits(hidden_BTD[:, 0]).argmax(-1)
        return jax.lax.scan(step, (first_B, cache), length=count)[1][:, 0]

    ids = continue_greedily(jnp.array([golden["prompt_ids"]]))
    assert golden["prompt_ids"] + ids.tolist() == golden["greedy_ids"]
