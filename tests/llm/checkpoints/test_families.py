"""Models of each family that transformers drew: the same logits by every path here.

Needs the extra `bench`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType

from palr_jax import llm
from palr_jax.decoding.score import score
from palr_jax.decoding.score_plan import plan_score
from palr_jax.decoding.trie import build
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.export import export_model
from palr_jax.llm.checkpoints.loading import import_weights
from palr_jax.llm.config import Remat
from palr_jax.llm.llama import Llama, packed_layout
from palr_jax.ragged import Ragged
from tests.decoding.slow import slow_score
from tests.llm.checkpoints.gguf_files import CONFIG, write_gguf
from tests.llm.checkpoints.test_gguf import MAKERS, TITLES
from tests.llm.variants import TOKENS, VARIANTS, write_checkpoint
from tests.programs import compiled, forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLASSES = {
    "llama3.2": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mistral-window": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2-tied": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
every_family = pytest.mark.parametrize("variant", CLASSES)


@dataclass
class Pair:
    """The model of transformers, and the one that was imported from its files."""

    theirs: Any  # a torch.nn.Module of transformers
    ours: Llama

    def expected(self, tokens: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] of transformers."""
        with torch.no_grad():
            return self.theirs(torch.tensor(tokens)).logits.numpy()


@pytest.fixture
def pair(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if variant not in _PAIRS:
        _PAIRS[variant] = make_pair(variant, tmp_path_factory.mktemp(variant))
    return _PAIRS[variant]


_PAIRS: dict[str, Pair] = {}


def make_pair(variant: str, folder: Path) -> Pair:
    """Draws a model, biases and norms included, saves it and imports it."""
    values = dict(VARIANTS[variant])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert type(theirs).__name__ == CLASSES[variant]
    drawn = torch.Generator().manual_seed(1)
    for name, parameter in theirs.named_parameters():
        mean, std = (1.0, 0.2) if "norm" in name else (0.0, parameter.shape[-1] ** -0.5)
        torch.nn.init.normal_(parameter, mean, std, generator=drawn)
    theirs.save_pretrained(folder / "theirs")
    import_weights(str(folder / "theirs"), folder / "imported")
    return Pair(theirs, llm.load(folder / "imported")[0])


@every_family
def test_imported_logits_equal_those_of_transformers(pair: Pair) -> None:
    np.testing.assert_allclose(
        forward(pair.ours, jnp.array(TOKENS)), pair.expected(TOKENS), atol=1e-4
    )


@every_family
def test_logits_through_the_cache_equal_those_of_transformers(pair: Pair) -> None:
    expected = pair.expected(TOKENS[:, :40])
    tokens, read = jnp.array(TOKENS), np.array([30, 17])
    first = (tokens[:, :32], jnp.array(read))
    hidden, cache = compiled(Llama.prefill, pair.ours, *first, slots=48)
    for row in range(2):
        logits = pair.ours.logits(hidden)[row, : read[row]]
        np.testing.assert_allclose(logits, expected[row, : read[row]], atol=1e-4)
    for counts in ([3, 1], [4, 4], [0, 2]):
        chunk = np.stack([row[start : start + 4] for row, start in zip(TOKENS, read, strict=True)])
        new = (jnp.array(chunk), jnp.array(counts), cache)
        hidden, cache = compiled(Llama.extend, pair.ours, *new)
        logits = pair.ours.logits(hidden)
        for row, count in enumerate(counts):
            part = slice(read[row], read[row] + count)
            np.testing.assert_allclose(logits[row, :count], expected[row, part], atol=1e-4)
        read += counts


@every_family
def test_scores_equal_those_from_the_logits_of_transformers(pair: Pair) -> None:
    rng = np.random.default_rng(6)
    texts = {tuple(rng.integers(2, 5, rng.integers(2, 6)).tolist()) for _ in range(30)}
    items = Ragged.from_rows([[*text, 1] for text in sorted(texts)])
    slots = np.array([rng.permutation(len(items))[:8] for _ in range(2)])
    prompts, lengths = TOKENS[:, :16], np.array([16, 11])
    logp = np.asarray(score(pair.ours, prompts, lengths, plan_score(build(items, slots))))

    @cache
    def logits(tokens: tuple[int, ...]) -> np.ndarray:
        return pair.expected(np.array([tokens]))[0, -1]

    for row in range(2):
        candidates = {slot: items[item].tolist() for slot, item in enumerate(slots[row])}
        prompt = prompts[row, : lengths[row]].tolist()
        expected = slow_score(lambda tokens: logits(tuple(tokens)), prompt, candidates)
        np.testing.assert_allclose(logp[row], [expected[slot] for slot in range(8)], atol=1e-4)


@every_family
def test_packed_examples_equal_each_alone_in_transformers(pair: Pair) -> None:
    lengths = [40, 7, 33]
    row = TOKENS[0, : sum(lengths)]
    padded = np.pad(row, (0, 8))
    segment = np.pad(np.repeat([1, 2, 3], lengths), (0, 8))
    position = np.pad(np.concatenate([np.arange(length) for length in lengths]), (0, 8))
    layout = packed_layout(jnp.array([segment]), jnp.array([position]))
    packed = forward(pair.ours, jnp.array([padded]), layout)[0]
    for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        expected = pair.expected(row[None, start : start + length])[0]
        np.testing.assert_allclose(packed[start : start + length], expected, atol=1e-4)


@every_family
def test_a_merged_export_is_a_model_of_the_same_class(
    pair: Pair, variant: str, tmp_path: Path
) -> None:
    export_model(pair.ours, None, tmp_path / "merged")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    assert type(theirs).__name__ == CLASSES[variant]
    assert theirs.config.architectures == [CLASSES[variant]]
    again = Pair(theirs.eval(), pair.ours)
    np.testing.assert_allclose(again.expected(TOKENS), pair.expected(TOKENS), atol=1e-6)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("variant", ["qwen2", "qwen3"])
def test_gradients_equal_those_of_transformers(pair: Pair, remat: Remat) -> None:
    weight = np.random.default_rng(2).normal(size=(2, 20, 64)).astype(np.float32)
    tokens = TOKENS[:, :20]
    pair.theirs.zero_grad()
    logits = pair.theirs(torch.tensor(tokens)).logits
    (logits * torch.tensor(weight)).sum().backward()

    def loss(model: Llama) -> jax.Array:
        return (model.logits(model.hidden(jnp.array(tokens), remat=remat)) * weight).sum()

    grads = dict(nnx.to_flat_state(nnx.grad(loss)(pair.ours)))
    attention = pair.theirs.model.layers[1].self_attn
    linears = {name: getattr(attention, f"{name}_proj") for name in "qkv"}
    theirs = {(name, "kernel_IO"): linear.weight.grad.T for name, linear in linears.items()}
    if attention.q_proj.bias is None:
        theirs |= {
            ("q_norm", "weight_D"): attention.q_norm.weight.grad,
            ("k_norm", "weight_D"): attention.k_norm.weight.grad,
        }
    else:
        theirs |= {(name, "bias_O"): linear.bias.grad for name, linear in linears.items()}
    assert len(theirs) > 4
    for path, grad in theirs.items():
        found, expected = grads["layers", *path][...][1], grad.numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("variant", ["qwen2", "qwen3"])
def test_frozen_weights_in_bfloat16_are_near(pair: Pair, tmp_path: Path) -> None:
    export_model(pair.ours, None, tmp_path / "base")
    rounded, exact = (
        forward(llm.load(tmp_path / "base", dtype)[0], jnp.array(TOKENS))
        for dtype in ("bfloat16", None)
    )
    # Rounding to 8 bits costs about a hundredth of the largest logit.
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "qwen3", "head_dim": 128},  # the size that transformers takes for granted
    ],
    ids=str,
)
def test_a_gguf_file_of_qwen_equals_the_reading_of_transformers(
    change: JsonObject, tmp_path: Path
) -> None:
    size = {f"{change['model_type']}.vocab_size": CONFIG["vocab_size"]}
    write_gguf(tmp_path / "m.gguf", GGMLQuantizationType.Q8_0, {**CONFIG, **change}, size)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    pair = Pair(theirs.eval(), llm.load(tmp_path / "m.gguf")[0])
    np.testing.assert_allclose(
        forward(pair.ours, jnp.array(TOKENS)), pair.expected(TOKENS), atol=1e-4
    )


def test_the_tokenizer_of_qwen_goes_in_and_out(tmp_path: Path) -> None:
    """Byte-level BPE with Qwen's own regular expression, and characters composed first."""
    pieces = MAKERS["qwen2"]
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|end|>")
    write_checkpoint(tmp_path / "a", {**VARIANTS["qwen2"], "vocab_size": pieces.get_vocab_size()})
    made.save_pretrained(tmp_path / "a")
    model, tokenizer = llm.load(tmp_path / "a")
    assert tokenizer is not None
    export_model(model, tokenizer, tmp_path / "b")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    for text in [*TITLES, "Ame\u0301lie 2001\n\n it's  123"]:
        ids = pieces.encode(text).ids
        assert tokenizer.encode(text).tolist() == ids
        assert theirs(text).input_ids == ids
    assert (tokenizer.begin_ids, tokenizer.eos_id, theirs.eos_token_id) == ((), 1, 1)
