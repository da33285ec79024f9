import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from palr_jax.errors import UserError
from palr_jax.llm import huggingface
from palr_jax.llm.config import LoRAConfig

CONFIG = {
    "model_type": "llama", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 20, "vocab_size": 30, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64, "head_dim": 6, "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}  # fmt: skip


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens.weight": (30, 12), "model.norm.weight": (12,),
              "lm_head.weight": (30, 12)}  # fmt: skip
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (12,), "post_attention_layernorm": (12,),
                "self_attn.q_proj": (24, 12), "self_attn.k_proj": (12, 12),
                "self_attn.v_proj": (12, 12), "self_attn.o_proj": (12, 24),
                "mlp.gate_proj": (20, 12), "mlp.up_proj": (20, 12), "mlp.down_proj": (12, 20),
            }.items()
        }  # fmt: skip
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = tensors()
    names = sorted(values)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({n: values[n] for n in names[::2]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({n: values[n] for n in names[1::2]}, tmp_path / "model-00002-of-00002.safetensors")
    return tmp_path


def test_every_tensor_lands_in_its_place(folder: Path) -> None:
    model, values = huggingface.load(folder), tensors()
    assert model.config.rope_theta == 5000.0
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
    assert np.isfinite(model(jnp.array([[1, 2, 3]]))).all()


def test_adapters_start_from_the_seed_and_change_nothing(folder: Path) -> None:
    adapted = huggingface.load(folder, LoRAConfig(rank=2, targets=("v",)), seed=3)
    tokens = jnp.array([[4, 9, 2]])
    np.testing.assert_array_equal(adapted(tokens), huggingface.load(folder)(tokens))
    other = huggingface.load(folder, LoRAConfig(rank=2, targets=("v",)), seed=4)
    a, b = (model.layers.v.lora_a_IR[...] for model in (adapted, other))
    assert a.shape == (2, 12, 2)
    assert np.abs(a - b).max() > 0
    assert len(nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))) == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2' is not supported"),
        ({"attention_bias": True}, "attention_bias is not supported"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"num_key_value_heads": 3}, r"num_kv_heads \(3\) must divide num_heads \(4\)"),
        ({"vocab_size": 31}, r"tensor model.embed_tokens.weight has shape \(30, 12\)"),
        ({"hidden_size": None}, "config.json lacks the key 'hidden_size'"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.* is missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder: Path, change: dict, complaint: str) -> None:
    config = {k: v for k, v in {**CONFIG, **change}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=complaint) as error:
        huggingface.load(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_folder_is_refused(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"00002.safetensors cannot be read .* copy it again"):
        huggingface.load(folder)
    shard.unlink()
    with pytest.raises(UserError, match="is missing from the safetensors files"):
        huggingface.load(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no .safetensors file"):
        huggingface.load(folder)
