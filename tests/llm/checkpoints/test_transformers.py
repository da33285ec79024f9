"""Exports load in transformers and peft with equal logits, and the other way round.

Needs the extra `bench`. With the path of SmolLM2's GGUF file in the environment variable
PALR_SMOLLM2_GGUF the same is shown for a real model.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax import llm
from palr_jax.cli import main
from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.export import export_adapter, export_model
from palr_jax.llm.checkpoints.peft import load_adapter, read_lora
from palr_jax.llm.config import LoRAConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from tests.llm.checkpoints.gguf_files import CONFIG
from tests.llm.checkpoints.test_gguf import MAKERS, metadata_of, read_tokenizer
from tests.llm.test_lora import disturb
from tests.llm.variants import TOKENS, VARIANTS, write_checkpoint
from tests.programs import forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SMOLLM2 = os.environ.get("PALR_SMOLLM2_GGUF", "")


def torch_logits(model: Any, tokens: np.ndarray = TOKENS) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.float().numpy()


def load_torch(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def close(model: Llama, expected: np.ndarray, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(forward(model, jnp.array(TOKENS)), expected, atol=atol)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_as_transformers_writes_it_loads(variant: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", VARIANTS[variant])
    theirs = load_torch(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b", max_shard_size="10KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    close(llm.load(tmp_path / "b")[0], torch_logits(theirs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_folder_loads_in_transformers(variant: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", VARIANTS[variant])
    assert main(["export", "--weights", str(tmp_path / "a"), "--to", str(tmp_path / "b")]) == 0
    close(llm.load(tmp_path / "a")[0], torch_logits(load_torch(tmp_path / "b")))


def test_bfloat16_from_transformers_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", VARIANTS["llama3"])
    theirs = load_torch(tmp_path / "a").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "b")
    close(llm.load(tmp_path / "b")[0], torch_logits(theirs.float()))


@pytest.mark.parametrize("variant", ["llama3", "smollm2", "mistral-window", "qwen2", "qwen3"])
def test_adapters_go_out_to_peft_merged_and_alone(variant: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", VARIANTS[variant])
    lora = LoRAConfig(rank=3, alpha=12.0, dropout=0.1)
    model, _ = llm.load(tmp_path / "base", lora=lora)
    disturb(model)
    tokenizer = train_tokenizer(["Toy Story"], 400)
    export_adapter(model, lora, str(tmp_path / "base"), tokenizer, tmp_path / "adapter")
    export_model(model, None, tmp_path / "merged")
    base = load_torch(tmp_path / "base")
    plain = torch_logits(base)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    expected = torch_logits(adapted)
    assert np.abs(expected - plain).max() > 0.01
    close(model, expected)
    close(model, torch_logits(load_torch(tmp_path / "merged")))
    # And back as peft writes it.
    adapted.save_pretrained(tmp_path / "theirs")
    again, _ = llm.load(tmp_path / "base", lora=read_lora(tmp_path / "theirs"))
    load_adapter(again, lora, tmp_path / "theirs")
    np.testing.assert_array_equal(
        forward(again, jnp.array(TOKENS)), forward(model, jnp.array(TOKENS))
    )


def test_a_fresh_adapter_of_peft_loads(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", VARIANTS["mistral"])
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    adapted = peft.get_peft_model(load_torch(tmp_path / "base"), settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    lora = read_lora(tmp_path / "adapter")
    assert lora.rank == 2
    assert len(lora.targets) == 7
    model, _ = llm.load(tmp_path / "base", lora=lora)
    load_adapter(model, lora, tmp_path / "adapter")
    close(model, torch_logits(adapted))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*layers\.[02]\..*(k|o)_proj"},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["0.self_attn.k_proj"]},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "2.mlp.gate_proj"]},
        {"target_modules": ["q_proj"], "fan_in_fan_out": True},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
        {"target_modules": ["q_proj"], "init_lora_weights": False},
    ],
    ids=str,
)
def test_adapters_of_each_plain_kind_give_the_logits_of_peft(
    settings: JsonObject, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "base", VARIANTS["llama3"])
    made = peft.get_peft_model(
        load_torch(tmp_path / "base"), peft.LoraConfig(r=4, lora_alpha=6, **settings)
    )
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(load_torch(tmp_path / "base"), tmp_path / "adapter")
    close(llm.load(tmp_path / "base", adapter=tmp_path / "adapter")[0], torch_logits(theirs))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_on_changed_weights_is_converted_as_the_message_says(
    start: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "base", VARIANTS["llama3"])
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=start
    )
    made = peft.get_peft_model(load_torch(tmp_path / "base"), settings)
    made.peft_config["default"].init_lora_weights = True  # as peft's own guide has it
    made.save_pretrained(tmp_path / "start")
    made.peft_config["default"].init_lora_weights = start
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(tmp_path / "trained")
    with pytest.raises(UserError, match=f"init_lora_weights '{start}' is not supported"):
        llm.load(tmp_path / "base", adapter=tmp_path / "trained")
    expected = torch_logits(made)
    made.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    close(llm.load(tmp_path / "base", adapter=tmp_path / "plain")[0], expected, atol=1e-3)


def test_exported_tokenizers_load_in_transformers(tmp_path: Path) -> None:
    json_kind = read_tokenizer(metadata_of(MAKERS["llama-bpe"], "llama-bpe"), tmp_path)
    pieces = train_tokenizer(["Toy Story (1995)", "Heat (1995)"], 400)
    for number, tokenizer in enumerate((json_kind, pieces)):
        folder = tmp_path / str(number)
        write_checkpoint(folder / "a", {**CONFIG, "vocab_size": tokenizer.vocab_size})
        export_model(llm.load(folder / "a")[0], tokenizer, folder / "b")
        theirs = transformers.AutoTokenizer.from_pretrained(folder / "b")
        ids = theirs("Toy\n", add_special_tokens=True).input_ids
        assert ids == [*tokenizer.begin_ids, *tokenizer.encode("Toy\n")]
        assert theirs.eos_token_id == tokenizer.eos_id
        config = transformers.AutoConfig.from_pretrained(folder / "b")
        assert config.eos_token_id == tokenizer.eos_id
        assert config.bos_token_id == tokenizer.begin_ids[0]


@pytest.mark.skipif(not Path(SMOLLM2).is_file(), reason="PALR_SMOLLM2_GGUF names no file")
def test_smollm2_equals_transformers_on_the_same_weights(tmp_path: Path) -> None:
    model, tokenizer = llm.load(SMOLLM2)
    assert tokenizer is not None
    export_model(model, tokenizer, tmp_path / "hf")
    prompt = tokenizer.encode("The capital of France is")
    rng = np.random.default_rng(0)
    tokens = np.concatenate([prompt, rng.integers(0, tokenizer.vocab_size, 120)])[None]
    logits = forward(model, jnp.array(tokens))
    expected = torch_logits(load_torch(tmp_path / "hf"), tokens)
    assert np.abs(logits - expected).max() < 2e-3
    print("largest error", np.abs(logits - expected).max())
    chance = jax.nn.softmax(logits[0, len(prompt) - 1])
    assert tokenizer.decode([int(chance.argmax())]) == " Paris"
    assert float(chance.max()) == pytest.approx(0.77, abs=0.01)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    # transformers' own reading of the file, rotation and tokenizer included.
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        Path(SMOLLM2).parent, gguf_file=Path(SMOLLM2).name, dtype=torch.float32
    )
    assert np.abs(logits - torch_logits(loaded, tokens)).max() < 2e-3
    for text in ("The capital of France is", 'watched "Amélie (2001)", 12345!\n', "  two\n\n漢字"):
        assert theirs(text).input_ids == tokenizer.encode(text).tolist()
