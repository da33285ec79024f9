"""What leaves here loads in transformers and peft to equal logits, and the other way round.

Needs the extra `bench`. With the path of SmolLM2's GGUF file in the environment variable
PALR_SMOLLM2_GGUF the same is shown for a real model.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax import llm
from palr_jax.cli import main
from palr_jax.llm.config import LoRAConfig
from palr_jax.llm.export import export_adapter, export_model
from palr_jax.llm.gguf_tokenizer import tokenizer_of
from palr_jax.llm.llama import Llama
from palr_jax.llm.peft import load_adapter, read_lora
from palr_jax.llm.sentencepiece_tokenizer import train_tokenizer
from tests.llm.gguf_files import CONFIG
from tests.llm.test_gguf import MAKERS, metadata_of
from tests.llm.test_lora import disturb
from tests.llm.variants import TOKENS, VARIANTS, write_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SMOLLM2 = os.environ.get("PALR_SMOLLM2_GGUF", "")


def torch_logits(model, tokens: np.ndarray = TOKENS) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.float().numpy()


def load_torch(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def close(model: Llama, expected: np.ndarray, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(model(jnp.array(TOKENS)), expected, atol=atol)


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


@pytest.mark.parametrize("variant", ["llama3", "smollm2"])
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
    np.testing.assert_array_equal(again(jnp.array(TOKENS)), model(jnp.array(TOKENS)))


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


def test_exported_tokenizers_load_in_transformers(tmp_path: Path) -> None:
    json_kind = tokenizer_of(metadata_of(MAKERS["llama-bpe"], "llama-bpe"), tmp_path)
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
    export_model(model, tokenizer, tmp_path / "hf")
    prompt = tokenizer.encode("The capital of France is")
    rng = np.random.default_rng(0)
    tokens = np.concatenate([prompt, rng.integers(0, tokenizer.vocab_size, 120)])[None]
    logits = model(jnp.array(tokens))
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
