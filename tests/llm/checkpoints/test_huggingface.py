"""Reading Hugging Face folders, and refusing those that cannot be read."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from palr_jax import llm
from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.loading import import_weights
from palr_jax.llm.compute import compute_over
from palr_jax.llm.config import LinearScaling, LoRAConfig
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from tests.llm.variants import VARIANTS, tensors, write_checkpoint
from tests.programs import forward

LLAMA3, MISTRAL = VARIANTS["llama3"], VARIANTS["mistral"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", LLAMA3)
    return tmp_path / "model"


def refusal(path: Path) -> str:
    """The one-line reason why `path` cannot be loaded; importing it leaves no files."""
    with pytest.raises(UserError) as error:
        llm.load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        import_weights(str(path), path.parent / "imported")
    assert not [entry for entry in path.parent.iterdir() if "imported" in entry.name]
    return str(error.value)


def rewrite(folder: Path, change: JsonObject, base: JsonObject = LLAMA3) -> None:
    config = {k: v for k, v in {**base, **change}.items() if v != "absent"}
    (folder / "config.json").write_text(json.dumps(config))


def test_every_tensor_becomes_its_parameter(folder: Path) -> None:
    (model, _), values = llm.load(folder), tensors(LLAMA3)
    layer = model.layers
    np.testing.assert_array_equal(
        layer.q.kernel_IO[1], values["model.layers.1.self_attn.q_proj.weight"].T
    )
    np.testing.assert_array_equal(
        layer.down.kernel_IO[0], values["model.layers.0.mlp.down_proj.weight"].T
    )
    np.testing.assert_array_equal(
        layer.ffn_norm.weight_D[1], values["model.layers.1.post_attention_layernorm.weight"]
    )
    np.testing.assert_array_equal(model.head_VD[...], values["lm_head.weight"])


@pytest.mark.parametrize(
    ("variant", "imported"),
    [("llama3", False), ("llama3", True), ("qwen2", True), ("qwen3", False)],
)
def test_parameters_come_to_the_devices_that_they_belong_to(
    variant: str, imported: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, VARIANTS[variant])
    shards = Shards(make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8]))
    lora = LoRAConfig(rank=2, targets=("v",))
    alone, _ = llm.load(folder, lora=lora, seed=3)
    if imported:
        import_weights(str(folder), tmp_path / "imported")
        folder = tmp_path / "imported"
    model, _ = llm.load(folder, lora=lora, seed=3, shards=shards)
    kernel = model.layers.down.kernel_IO[...]
    assert isinstance(kernel.sharding, NamedSharding)
    assert kernel.sharding.spec == PartitionSpec(None, ("tensor",), ("fsdp",))
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 12, 4)}
    assert model.compute == compute_over(shards)
    for mine, other in zip(jax.tree.leaves(model), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(mine, other)
        assert len(mine.sharding.device_set) == 8
    tokens = jnp.arange(12).reshape(2, 6)
    np.testing.assert_allclose(forward(model, tokens), forward(alone, tokens), atol=1e-5)


def test_an_old_table_and_a_tied_head_are_passed_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VARIANTS["smollm2"])
    file = tmp_path / "model.safetensors"
    values = load_file(file)
    plain, _ = llm.load(tmp_path)
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    save_file(values, file)
    model, _ = llm.load(tmp_path)
    for mine, other in zip(jax.tree.leaves(model), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_tied_head_with_values_of_its_own_is_refused(tmp_path: Path) -> None:
    """Transformers 4 leaves it out, transformers 5 uses it."""
    folder = tmp_path / "model"
    write_checkpoint(folder, VARIANTS["smollm2"])
    file = folder / "model.safetensors"
    values = load_file(file)
    values["lm_head.weight"] = values["model.embed_tokens.weight"] * 2
    save_file(values, file)
    assert "lm_head.weight is not the embedding, though the config ties them" in refusal(folder)


@pytest.mark.parametrize(
    ("rope", "complaint"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "as 10000.0 and as 500000.0"),
        (
            {"rope_parameters": {"rope_type": "default"},
             "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope type 'dynamic' is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "default"},
             "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_parameters and rope_scaling differ",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0},
             "rope_scaling": {"type": "linear", "factor": 4.0}},
            "rope_parameters and rope_scaling differ",
        ),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_itself_is_refused(
    folder: Path, rope: dict[str, object], complaint: str
) -> None:
    rewrite(folder, {"rope_theta": 5e5, "rope_scaling": None, **rope})
    assert complaint in refusal(folder)


def test_rotary_settings_may_be_given_twice(folder: Path) -> None:
    linear = {"type": "linear", "factor": 2.0}
    newer = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    rewrite(folder, {"rope_theta": 5e5, "rope_scaling": linear, "rope_parameters": newer})
    config = llm.load(folder)[0].config
    assert (config.rope_theta, config.rope_scaling) == (5e5, LinearScaling(2.0))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "qwen2_moe"}, "model_type 'qwen2_moe' is not supported"),
        ({"model_type": "gemma3_text"}, "model_type 'gemma3_text' is not supported"),
        ({"model_type": "qwen2"}, "tensor model.layers.0.self_attn.k_proj.bias is missing"),
        ({"model_type": "qwen3"}, "tensor model.layers.0.self_attn.k_norm.weight is missing"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is not supported"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8},
         "sliding_window is not supported"),
        ({"sliding_window": 4096}, "sliding_window is not supported"),
        ({"sliding_window": "wide"}, "sliding_window: Input should be a valid integer"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "Classification' is not supported"),
        ({"attention_bias": True}, "attention_bias is not supported"),
        ({"mlp_bias": True}, "mlp_bias is not supported"),
        ({"num_local_experts": 8}, "num_local_experts (mixture of experts) is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window is not"),
        ({"num_key_value_heads": 3}, "num_kv_heads (3) must divide num_heads (4)"),
        ({"vocab_size": 65}, "model.embed_tokens.weight has shape (64, 16), the config needs"),
        ({"hidden_size": "absent"}, "config.json lacks the key 'hidden_size'"),
        ({"rms_norm_eps": "absent"}, "config.json lacks the key 'rms_norm_eps'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "config.json lacks the key 'factor'"),
        ({"hidden_size": "sixteen"}, "config.json holds a value of the wrong kind"),
        ({"rope_theta": 0}, "rope_theta: Input should be greater than 0"),
        ({"rope_theta": float("nan")}, "rope_theta: Input should be a finite number"),
        ({"rope_theta": -1.0}, "rope_theta: Input should be greater than 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: Input should be a finite number"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor: Input should be"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "rope_scaling.factor: Inp"),
        ({"rope_scaling": {"type": "linear", "factor": -4.0}}, "rope_scaling.factor: Input shoul"),
        ({"rope_scaling": [1]}, "rope_scaling: Input should be a valid dictionary"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "settings per layer"),
        ({"architectures": {"a": 1}}, "architecture {'a': 1} is not supported"),
        ({"architectures": "LlamaForCausalLM"}, "architecture 'LlamaForCausalLM' is not supported"),
        ({"layer_types": 3}, "layer_types: Input should be a valid list"),
        ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
        ({"head_dim": 0}, "head_dim: Input should be greater than or equal to 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: Input should be greater than or equal"),
        ({"num_attention_heads": 0}, "num_attention_heads: Input should be greater than or equal"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers: Input should be less than"),
        ({"hidden_size": True}, "hidden_size: Input should be a valid integer"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: Input should be a valid boolean"),
        ({"intermediate_size": 2.5}, "intermediate_size: Input should be a valid integer"),
        ({"num_hidden_layers": 4}, "tensor model.layers.3.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 2}, "is not part of a plain LLaMA"),
        ({"tie_word_embeddings": False, "vocab_size": 64, "num_attention_heads": 2},
         "self_attn.k_proj.weight has shape (8, 16)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    folder: Path, change: JsonObject, complaint: str
) -> None:
    rewrite(folder, change)
    assert complaint in refusal(folder)


@pytest.mark.parametrize(
    ("change", "longest", "window"),
    [
        ({"sliding_window": None}, 128, None),
        ({"sliding_window": 4096}, 128, None),  # wider than the longest sequence
        ({"sliding_window": "absent"}, 128, None),
        ({"sliding_window": 100}, 100, 100),
        ({"sliding_window": 128}, 128, 128),
        # The default of transformers for a Mistral without the key.
        ({"sliding_window": "absent", "max_position_embeddings": 32768}, 4096, 4096),
    ],
    ids=str,
)
def test_a_mistral_reads_as_many_tokens_as_its_sliding_window(
    tmp_path: Path, change: JsonObject, longest: int, window: int | None
) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, MISTRAL)
    rewrite(folder, change, MISTRAL)
    import_weights(str(folder), tmp_path / "imported")
    for path in (folder, tmp_path / "imported"):
        config = llm.load(path)[0].config
        assert (config.max_length, config.sliding_window) == (longest, window)


def test_rows_longer_than_a_sliding_window_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VARIANTS["mistral-window"])
    model, _ = llm.load(tmp_path)
    assert jax.eval_shape(model, jnp.ones((1, 100), jnp.int32)).shape == (1, 100, 64)
    with pytest.raises(UserError, match="rows of 101 tokens exceed the model's sliding_window, 1"):
        model(jnp.ones((1, 101), jnp.int32))


def test_a_bias_in_the_weights_is_refused(folder: Path) -> None:
    values = tensors(LLAMA3) | {"model.layers.0.self_attn.q_proj.bias": np.ones(16, np.float32)}
    save_file(values, folder / "model.safetensors")
    assert "q_proj.bias is not part of a plain LLaMA" in refusal(folder)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, LLAMA3, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "1 of 3 files are missing (model-00002-of-00003.safetensors)" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "is missing" in refusal(folder)


@pytest.mark.parametrize("left", [0, 5, 200, 0.5, 0.999])
def test_a_cut_file_is_refused(folder: Path, left: float) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(left if left >= 1 else left * len(data))])
    assert "model.safetensors cannot be read (" in refusal(folder)
    assert "copy it again" in refusal(folder)


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    values = tensors(LLAMA3)
    values["model.norm.weight"] = np.ones(16, np.int8)
    save_file(values, folder / "model.safetensors")
    assert "tensor model.norm.weight is of type I8; only F32, F16, BF16" in refusal(folder)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return (Path.touch, (tmp_path / "opened",))

    folder = tmp_path / "model"
    write_checkpoint(folder, LLAMA3)
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    file.write_bytes(pickle.dumps(Trap()))
    for path in (folder, file):
        message = refusal(path)
        assert "pytorch_model.bin is a pickle" in message
        assert "save_pretrained" in message
    assert not (tmp_path / "opened").exists()


def test_the_tokenizer_must_have_the_size_of_the_model(folder: Path) -> None:
    tokenizer = train_tokenizer(["Toy Story (1995)"], 400)
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    message = refusal(folder)
    assert f"the tokenizer has {tokenizer.vocab_size} tokens, the model has 64" in message
    rewrite(folder, {"vocab_size": 4096})
    save_file(tensors({**LLAMA3, "vocab_size": 4096}), folder / "model.safetensors")
    assert "the model has 4,096" in refusal(folder)
    rewrite(folder, {"vocab_size": tokenizer.vocab_size + 3})  # padded for the devices
    save_file(
        tensors({**LLAMA3, "vocab_size": tokenizer.vocab_size + 3}), folder / "model.safetensors"
    )
    loaded = llm.load(folder)[1]
    assert loaded is not None
    assert loaded.decode(loaded.encode("Toy Story")) == "Toy Story"


def test_a_path_that_is_no_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    assert "is missing" in refusal(tmp_path / "none")
    assert "name its folder" in refusal(folder / "model.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json is missing" in refusal(empty)
    (folder / "config.json").write_text("[]")
    assert "holds no JSON object" in refusal(folder)
    (folder / "model.safetensors").unlink()
    rewrite(folder, {})
    assert "holds no .safetensors file" in refusal(folder)


def test_logits_of_a_list_of_prompts_have_the_shape_of_the_vocabulary(folder: Path) -> None:
    assert jax.eval_shape(llm.load(str(folder))[0], jnp.ones((2, 5), jnp.int32)).shape == (2, 5, 64)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[" * 200_000, "config.json is not valid JSON .nested too deeply."),
        (b'{"a": ' * 200_000, "config.json is not valid JSON .nested too deeply."),
        (b"\xff\xfe\x00", "config.json is not valid JSON"),
        (b'{"model_type": "\\ud800"}', "config.json is not valid JSON .*surrogates"),
        (b"7", "config.json holds no JSON object"),
        (b"version https://git-lfs.github.com/spec/v1\n", "config.json is a Git LFS pointer"),
    ],
)
def test_a_damaged_config_is_one_line(folder: Path, content: bytes, complaint: str) -> None:
    (folder / "config.json").write_bytes(content)
    assert re.search(complaint, refusal(folder))


@pytest.mark.parametrize(
    ("weight_map", "complaint"),
    [
        ({"a": "../other.safetensors"}, "names '../other.safetensors', not a file in its folder"),
        ({"a": "/etc/passwd"}, "names '/etc/passwd'"),
        ({"a": 3}, "weight_map.a: Input should be a valid string"),
        ({}, "names no file"),
        (None, "weight_map: Input should be a valid dict"),
    ],
)
def test_an_index_names_files_beside_it_alone(
    folder: Path, weight_map: object, complaint: str
) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert complaint in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    tokenizer = train_tokenizer(["Toy Story (1995)"], 400)
    write_checkpoint(folder, LLAMA3 | {"vocab_size": tokenizer.vocab_size})
    for file, content in tokenizer.files().items():
        (folder / file).write_bytes(content)
    llm.load(folder)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert f"{name} is a Git LFS pointer and not the file itself" in refusal(folder)
