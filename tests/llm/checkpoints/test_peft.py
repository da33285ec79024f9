"""Reading and writing LoRA adapters in PEFT's format."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from palr_jax import llm
from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.export import export_adapter, export_model
from palr_jax.llm.checkpoints.peft import load_adapter, read_lora
from palr_jax.llm.config import LoRAConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from tests.llm.variants import (
    FIXTURES,
    KEPT,
    LORA,
    TOKENS,
    VARIANTS,
    write_adapter,
    write_checkpoint,
)
from tests.programs import forward

LLAMA3 = VARIANTS["llama3"]
EXPECTED = np.load(FIXTURES / "logits.npz")["llama3 with adapter"]
TOKENIZER = train_tokenizer(["Toy Story (1995)"], 400)


def adapted(base: Path, adapter: Path) -> Llama:
    return llm.load(base, adapter=adapter)[0]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an adapter, as written by other tools."""
    write_checkpoint(tmp_path / "base", LLAMA3)
    write_adapter(tmp_path / "adapter", LLAMA3, tmp_path / "base")
    return tmp_path / "base", tmp_path / "adapter"


def test_an_adapter_of_peft_gives_the_logits_of_peft(folders: tuple[Path, Path]) -> None:
    lora = read_lora(folders[1])
    assert lora == LoRAConfig(3, 12.0, 0.05, ("q", "down"))
    logits = forward(adapted(*folders), jnp.array(TOKENS))[:, KEPT]
    np.testing.assert_allclose(logits, EXPECTED, atol=1e-4)


def test_an_exported_adapter_is_the_one_that_came_in(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = folders
    model = adapted(base, adapter)
    export_adapter(model, read_lora(adapter), str(base), TOKENIZER, tmp_path / "out")
    theirs = load_file(adapter / "adapter_model.safetensors")
    ours = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    written = json.loads((adapter / "adapter_config.json").read_text())
    assert config | written == config
    assert (tmp_path / "out" / "tokenizer.model").exists()
    again = forward(adapted(base, tmp_path / "out"), jnp.array(TOKENS))
    np.testing.assert_array_equal(again, forward(model, jnp.array(TOKENS)))


def test_a_merged_export_gives_the_logits_of_peft(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model = adapted(*folders)
    export_model(model, None, tmp_path / "out")
    merged, _ = llm.load(tmp_path / "out")
    np.testing.assert_allclose(forward(merged, jnp.array(TOKENS))[:, KEPT], EXPECTED, atol=1e-4)
    written = load_file(tmp_path / "out" / "model.safetensors")
    base, adapter = (
        load_file(folders[0] / "model.safetensors"),
        load_file(folders[1] / "adapter_model.safetensors"),
    )
    for name, value in base.items():
        a = adapter.get(f"base_model.model.{name}".replace(".weight", ".lora_A.weight"))
        b = adapter.get(f"base_model.model.{name}".replace(".weight", ".lora_B.weight"))
        update = 0.0 if a is None else LORA["lora_alpha"] / LORA["r"] * (b @ a)
        np.testing.assert_allclose(written[name], value + update, atol=1e-6)


def edit(adapter: Path, **values: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "bias is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is not supported"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"r": 4}, r"has shape \(3, 24\), its adapter_config.json says rank 4"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported, as it chan"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights 'pissa_niter_16' is not"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora' is not supported"),
        ({"init_lora_weights": ["olora"]}, "is not supported"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is not supported"),
        ({"use_qalora": True}, "use_qalora is not supported"),
        ({"something_of_tomorrow": {"on": 1}}, "something_of_tomorrow is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"lora_alpha": float("nan")}, "lora_alpha: Input should be a finite number"),
        ({"lora_alpha": 0}, "lora_alpha: Input should be greater than 0"),
        ({"lora_alpha": -4}, "lora_alpha: Input should be greater than 0"),
        ({"lora_alpha": "16"}, "lora_alpha: Input should be a valid number"),
        ({"lora_dropout": float("inf")}, "lora_dropout: Input should be"),
        ({"r": 0}, "r: Input should be greater than"),
        ({"r": 3.5}, "r: Input should be a valid integer"),
        ({"r": 10**9}, "says rank 1000000000"),
        ({"target_modules": 7}, "target_modules"),
        ({"use_rslora": "yes"}, "use_rslora: Input should be a valid boolean"),
    ],
)
def test_what_is_not_plain_lora_is_refused(
    folders: tuple[Path, Path], change: JsonObject, complaint: str
) -> None:
    edit(folders[1], **change)
    with pytest.raises(UserError, match=complaint) as error:
        adapted(*folders)
    assert "\n" not in str(error.value)


def update(adapter: Path, name: str, scale: float = LORA["lora_alpha"] / LORA["r"]) -> np.ndarray:
    """What an adapter adds to a linear, named as `0.self_attn.q_proj`."""
    values = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.model.layers.{name}"
    return scale * values[f"{stem}.lora_B.weight"] @ values[f"{stem}.lora_A.weight"]


def merged(model: Llama, name: str, out: Path) -> np.ndarray:
    export_model(model, None, out)
    return load_file(out / "model.safetensors")[f"model.layers.{name}.weight"]


def test_rslora_has_a_factor_of_its_own(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    edit(adapter, use_rslora=True)
    name = "1.self_attn.q_proj"
    kernel = load_file(base / "model.safetensors")[f"model.layers.{name}.weight"]
    expected = kernel + update(adapter, name, LORA["lora_alpha"] / LORA["r"] ** 0.5)
    model = adapted(base, adapter)
    np.testing.assert_allclose(merged(model, name, tmp_path / "out"), expected, atol=1e-5)
    # It is exported with the usual factor and the same effect.
    export_adapter(model, read_lora(adapter), str(base), TOKENIZER, tmp_path / "again")
    again = adapted(base, tmp_path / "again")
    np.testing.assert_allclose(
        forward(again, jnp.array(TOKENS)), forward(model, jnp.array(TOKENS)), rtol=1e-5, atol=1e-5
    )


PARTS = {
    "by layer": ({"layers_to_transform": [0, 2]}, r"layers\.1\."),
    "by number": ({"layers_to_transform": 1}, r"layers\.[02]\."),
    "by expression": ({"target_modules": r".*layers\.(0|2)\..*(q|down)_proj"}, r"layers\.1\."),
    "by full name": (
        {"target_modules": ["model.layers.0.self_attn.q_proj", "2.mlp.down_proj"]},
        r"layers\.(1\.|0\.mlp|2\.self)",
    ),
    "by exclusion": ({"exclude_modules": ["0.self_attn.q_proj"]}, r"layers\.0\.self"),
    "by expressed exclusion": ({"exclude_modules": r".*\.0\..*q_proj"}, r"layers\.0\.self"),
}


@pytest.mark.parametrize(("change", "absent"), PARTS.values(), ids=PARTS)
def test_an_adapter_of_some_layers_leaves_the_others_as_they_are(
    folders: tuple[Path, Path], change: JsonObject, absent: str, tmp_path: Path
) -> None:
    base, adapter = folders
    edit(adapter, **change)
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: whole[name] for name in whole if not re.search(absent, name)}, file)
    export_model(adapted(base, adapter), None, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, kernel in load_file(base / "model.safetensors").items():
        part = name.removeprefix("model.layers.").removesuffix(".weight")
        lora_a = f"base_model.model.model.layers.{part}.lora_A.weight"
        expected = kernel + update(adapter, part) if lora_a in load_file(file) else kernel
        np.testing.assert_allclose(written[name], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "lost", "complaint"),
    [
        ({}, "layers.1.mlp.down_proj.lora_A", "layers.1.mlp.down_proj.lora_A.weight is missing"),
        ({}, "layers.1.mlp.down_proj", "layers.1.mlp.down_proj.lora_A.weight is missing"),
        ({"layers_to_transform": [0, 2]}, "layers.2.", "layers.2.self_attn.q_proj.*is missing"),
        ({"target_modules": ".*_proj"}, "layers.0.mlp.down_proj.lora_B", "lora_B.weight is miss"),
        ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, "none", "v_proj.*is missing"),
    ],
)
def test_a_tensor_that_should_be_there_is_missed(
    folders: tuple[Path, Path], change: JsonObject, lost: str, complaint: str
) -> None:
    edit(folders[1], **change)
    file = folders[1] / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if lost not in name}, file)
    with pytest.raises(UserError, match=complaint):
        adapted(*folders)


@pytest.mark.parametrize("name", ["lm_head.lora_A", "lm_head.base_layer", "model.norm"])
def test_an_adapter_of_more_than_linears_is_to_be_merged(
    folders: tuple[Path, Path], name: str
) -> None:
    file = folders[1] / "adapter_model.safetensors"
    more = {f"base_model.model.{name}.weight": np.ones((3, 16), np.float32)}
    save_file(load_file(file) | more, file)
    with pytest.raises(UserError, match=rf"tensor .*{name}.weight belongs to no linear .*merge"):
        adapted(*folders)


@pytest.mark.parametrize(
    "change",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"init_lora_weights": "orthogonal"},
        {"fan_in_fan_out": True},
        {"task_type": None, "revision": "main", "megatron_core": "x", "qalora_group_size": 16},
        {"something_of_tomorrow": None, "rank_pattern": {}, "alora_invocation_tokens": None},
    ],
)
def test_settings_that_change_nothing_are_passed_over(
    folders: tuple[Path, Path], change: JsonObject
) -> None:
    edit(folders[1], **change)
    np.testing.assert_allclose(
        forward(adapted(*folders), jnp.array(TOKENS))[:, KEPT], EXPECTED, atol=1e-4
    )


def test_the_base_of_an_adapter_is_found_from_anywhere(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lora = adapted(*folders), read_lora(folders[1])
    monkeypatch.chdir(tmp_path)
    for given, written in (
        ("base", str(tmp_path / "base")),
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("gs://bucket/base", "gs://bucket/base"),
    ):
        out = tmp_path / "out" / given.replace("/", "_")
        export_adapter(model, lora, given, TOKENIZER, out)
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == written


@pytest.mark.parametrize(
    "other",
    [
        {"hidden_size": 24, "head_dim": 4},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 4},
        {"intermediate_size": 32},
    ],
)
def test_an_adapter_for_a_base_of_another_shape_is_refused(
    folders: tuple[Path, Path], other: JsonObject, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "other", {**LLAMA3, **other})
    with pytest.raises(
        UserError, match=r"adapter is an adapter for another base: tensor .*(down|q)_proj"
    ):
        adapted(tmp_path / "other", folders[1])


def test_an_adapter_for_other_weights_of_the_same_shape_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = folders
    model = adapted(base, adapter)
    export_adapter(model, read_lora(adapter), str(base), TOKENIZER, tmp_path / "out")
    values = load_file(base / "model.safetensors")
    values["model.norm.weight"] *= 1.5
    save_file(values, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is an adapter for another base: it was trained on weig"):
        adapted(base, tmp_path / "out")


def test_an_adapter_knows_its_base_in_bfloat16_too(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = folders
    lora = read_lora(adapter)
    model, _ = llm.load(base, "bfloat16", lora)
    load_adapter(model, lora, adapter)
    export_adapter(model, lora, str(base), TOKENIZER, tmp_path / "out")
    adapted(base, tmp_path / "out")
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "numpy") as opened:
        assert opened.metadata()["format"] == "pt"


def test_folders_that_are_no_adapter_are_refused(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    with pytest.raises(UserError, match=r"adapter_config.json is missing: name a PEFT adapter"):
        read_lora(base)
    with pytest.raises(UserError, match="is a PEFT adapter: name the model that it adapts"):
        llm.load(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model.bin is a pickle"):
        read_lora(adapter)


def test_a_ranker_without_an_adapter_has_none_to_export(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", LLAMA3)
    model, _ = llm.load(tmp_path / "base")
    with pytest.raises(UserError, match="tuned as a whole"):
        export_adapter(model, None, "base", TOKENIZER, tmp_path / "out")
    with pytest.raises(UserError, match="drawn at random"):
        export_adapter(model, LoRAConfig(), None, TOKENIZER, tmp_path / "out")
    assert not (tmp_path / "out").exists()
