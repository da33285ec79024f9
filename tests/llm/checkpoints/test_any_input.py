"""With any content of a file, a reader returns a result or raises a one-line error."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from palr_jax import llm
from palr_jax.errors import UserError
from palr_jax.llm.checkpoints import huggingface
from palr_jax.llm.checkpoints.gguf_file import open_file
from palr_jax.llm.checkpoints.hf_config import read_config
from palr_jax.llm.checkpoints.peft import load_adapter, read_lora
from palr_jax.llm.checkpoints.safetensors_file import read_header
from palr_jax.llm.checkpoints.weights import check_tensors
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.gguf_tokenizer import tokenizer_of
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from palr_jax.llm.tokenizers.tokenizer import load_tokenizer
from tests.llm.checkpoints.gguf_files import CONFIG, write_gguf
from tests.llm.checkpoints.test_gguf import MAKERS, metadata_of
from tests.llm.tokenizers.test_tokenizer import byte_level, spaced
from tests.llm.variants import LORA, VARIANTS, write_adapter, write_checkpoint

MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = st.text(max_size=6) | st.sampled_from(["silu", "llama", "linear", "llama3", "1", "\ud800"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 4, 16, 64, 2**31, 2**63, 10**400])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXTS, part, max_size=3),
    max_leaves=6,
)
DEEP = b"[" * 100_000


def outcome(read: Callable[[], Any]) -> None:
    """Runs a reader; it may raise a one-line error and no other."""
    message = "read"
    try:
        read()
    except UserError as error:
        message = str(error)
    assert message.isprintable()
    assert 0 < len(message) < 1000


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, and a valid file with some bytes changed, removed or inserted."""
    index, piece = st.integers(0, len(whole)), st.binary(max_size=12)
    spliced = st.builds(
        lambda first, length, new: whole[:first] + new + whole[first + length :],
        index, st.sampled_from([0, 1, 2, 4, 8, len(whole)]), piece,
    )  # fmt: skip
    return st.binary(max_size=60) | spliced | st.just(DEEP)


def changed(whole: Any) -> st.SearchStrategy[Any]:
    """A JSON value with a part of it, at any depth, replaced or removed."""
    return st.tuples(st.randoms(use_true_random=False), VALUES, st.booleans()).map(
        lambda drawn: _change(json.loads(json.dumps(whole)), *drawn)
    )


def _change(value: Any, random: Any, new: Any, drop: bool) -> Any:
    part = value
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = random.choice(keys)
        if not isinstance(part[key], dict | list) or not part[key] or random.random() < 0.3:
            break
        part = part[key]
    if drop:
        del part[key]
    else:
        part[key] = new
    return value


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


HF = [*VARIANTS.values(), {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}]


@MANY
@given(content=st.sampled_from(HF).flatmap(changed).map(dumped) | damaged(dumped(HF[2])))
def test_any_config(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    outcome(lambda: read_config(tmp_path / "config.json"))


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "head_dim"])
@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 10**30])
def test_a_config_of_any_size_asks_for_no_memory(key: str, size: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VARIANTS["llama3"])
    (tmp_path / "config.json").write_text(json.dumps(VARIANTS["llama3"] | {key: size}))

    def read() -> None:
        config, tensors = huggingface.open_folder(tmp_path)
        check_tensors(config, tensors, "here")

    with pytest.raises(UserError):
        read()


TENSORS = save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, {"format": "pt"})


@MANY
@given(content=damaged(TENSORS))
def test_any_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)

    def read() -> None:
        for tensor in read_header(tmp_path / "f")[0].values():
            assert tensor.read().shape == tensor.shape

    outcome(read)


def headers() -> st.SearchStrategy[Any]:
    return changed(
        {
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
            "__metadata__": {"format": "pt"},
        }
    )


@MANY
@given(header=headers())
def test_any_header_of_safetensors(header: Any, tmp_path: Path) -> None:
    text = dumped(header)
    (tmp_path / "f").write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))

    def read() -> None:
        for tensor in read_header(tmp_path / "f")[0].values():
            tensor.read()

    outcome(read)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder, VARIANTS["llama3"])
    adapter = tmp_path_factory.mktemp("adapter")
    write_adapter(adapter, VARIANTS["llama3"], folder)
    return llm.load(folder, lora=read_lora(adapter))[0]


ADAPTER = {
    "peft_type": "LORA", "bias": "none", **LORA, "init_lora_weights": True, "use_rslora": False,
    "layers_to_transform": [0, 1, 2], "exclude_modules": None, "rank_pattern": {},
}  # fmt: skip


@MANY
@given(content=changed(ADAPTER).map(dumped) | damaged(dumped(ADAPTER)))
def test_any_adapter_config(content: bytes, model: Llama, tmp_path: Path) -> None:
    write_adapter(tmp_path, VARIANTS["llama3"], tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    outcome(lambda: load_adapter(model, read_lora(tmp_path), tmp_path))


NAMES = st.text(max_size=4) | st.sampled_from(
    [f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{letter}.weight"
     for layer in (0, 2, 3, 10**8) for letter in "AB"]
    + ["base_model.model.lm_head.lora_A.weight", "a\nb"]
)  # fmt: skip
SHAPES = st.sampled_from([(), (3,), (3, 16), (16, 3), (0, 3), (3, 16, 1)])


@MANY
@given(shapes=st.dictionaries(NAMES, SHAPES, max_size=4))
def test_any_tensors_of_an_adapter(
    shapes: dict[str, tuple[int, ...]], model: Llama, tmp_path: Path
) -> None:
    write_adapter(tmp_path, VARIANTS["llama3"], tmp_path)
    values = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    (tmp_path / "adapter_model.safetensors").write_bytes(save(values))
    outcome(lambda: load_adapter(model, read_lora(tmp_path), tmp_path))


SENTENCEPIECE = train_tokenizer(["Toy Story (1995)", "Heat (1995)"], 400).files()["tokenizer.model"]


def tokenized(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("Heat (1995)\n")).endswith("\n")
    assert tokenizer.vocab_size > 0
    tokenizer.below(300)


@MANY
@given(content=damaged(SENTENCEPIECE))
def test_any_sentencepiece_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    outcome(lambda: tokenized(tmp_path))


def small_files() -> st.SearchStrategy[dict[str, bytes]]:
    """The small files next to a tokenizer, one of them changed."""
    token = {"content": "<|end|>", "special": True, "lstrip": False}
    whole: dict[str, Any] = {
        "tokenizer_config.json": {"add_bos_token": False, "eos_token": "</s>", "unk_token": "<unk>",
                                  "additional_special_tokens": ["<|end|>", token],
                                  "added_tokens_decoder": {"400": token, "2": token}},
        "special_tokens_map.json": {"eos_token": {"content": "</s>"}, "bos_token": "<s>"},
        "added_tokens.json": {"<|end|>": 400, "x": 401},
        "config.json": {"eos_token_id": [2, 3]},
    }  # fmt: skip
    older = {**whole, "tokenizer_config.json": {"eos_token": "</s>"}}

    def one(files: dict[str, Any], name: str) -> st.SearchStrategy[dict[str, bytes]]:
        content = changed(files[name]).map(dumped) | damaged(dumped(files[name]))
        rest = {other: dumped(value) for other, value in files.items()}
        return content.map(lambda new: {**rest, name: new})

    return st.one_of([one(files, name) for files in (whole, older) for name in files])


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
@MANY
@given(files=small_files())
def test_any_files_beside_a_tokenizer(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    own = SENTENCEPIECE if kind == "tokenizer.model" else spaced().encode()
    for name, content in {kind: own, **files}.items():
        (tmp_path / name).write_bytes(content)
    outcome(lambda: tokenized(tmp_path))


JSONS = [byte_level("<s>"), spaced()]


@MANY
@given(
    content=st.sampled_from([json.loads(text) for text in JSONS]).flatmap(changed).map(dumped)
    | damaged(JSONS[0].encode())
)
def test_any_tokenizer_json(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    outcome(lambda: tokenized(tmp_path))
    assert "panicked" not in capfd.readouterr().err


def read_gguf(path: Path) -> None:
    _, tensors, metadata = open_file(path)
    for tensor in tensors.values():
        tensor.read()
    tokenizer_of(metadata, path)


@cache
def whole_gguf() -> bytes:
    with TemporaryDirectory() as folder:
        path, values = Path(folder) / "m", metadata_of(MAKERS["smollm"], "smollm")
        write_gguf(path, gguf.GGMLQuantizationType.Q8_0, CONFIG, values)
        return path.read_bytes()


@MANY
@given(data=st.data())
def test_any_gguf(data: st.DataObject, tmp_path: Path) -> None:
    whole = whole_gguf()
    start = data.draw(st.sampled_from([60, 600, 12_000]))
    content = data.draw(damaged(whole[:start]) | st.just(b"")) + whole[start:]
    (tmp_path / "m").write_bytes(content)
    outcome(lambda: read_gguf(tmp_path / "m"))


VOCABULARY = metadata_of(MAKERS["llama-bpe"], "llama-bpe")
SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
    "tokenizer.ggml.scores": [0.0] * 259,
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256,
}


@pytest.mark.parametrize("whole", [VOCABULARY, SPM], ids=["gpt2", "llama"])
@MANY
@given(data=st.data())
def test_any_vocabulary_of_gguf(whole: dict[str, Any], data: st.DataObject) -> None:
    short = st.sampled_from(sorted(whole)).map(
        lambda key: {**whole, key: whole[key][:-1]} if isinstance(whole[key], list) else whole
    )
    metadata = data.draw(changed(whole) | short)
    outcome(lambda: tokenizer_of(metadata, Path("m.gguf")))
