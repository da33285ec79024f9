"""GGUF files: weights and tokenizers as they were before llama.cpp converted them."""

import json
import unicodedata
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sentencepiece import SentencePieceProcessor

from palr_jax import llm
from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.llm.config import LinearScaling, Llama3Scaling
from palr_jax.llm.tokenizers.gguf_tokenizer import tokenizer_of
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from tests.llm.checkpoints.gguf_files import CONFIG, write_gguf
from tests.llm.variants import write_checkpoint
from tests.locations import SHARED
from tests.programs import forward

TYPES = gguf.GGMLQuantizationType
TOKENS = np.random.default_rng(3).integers(0, 400, (1, 30))
MISTRAL = SHARED / "models/mistral-32k-tokenizer"
TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30)
TITLES = [f"The {word}'s 12345 return, part {n} ({1950 + n})" for n, word in
          enumerate(("Sea", "Léon", "Ice & Fire", "Night")) for _ in range(9)]  # fmt: skip


@pytest.mark.parametrize("kind", [TYPES.F32, TYPES.F16, TYPES.Q8_0, TYPES.Q4_1, TYPES.Q4_0])
def test_a_gguf_file_gives_the_logits_of_the_same_weights_in_a_folder(
    kind: TYPES, tmp_path: Path
) -> None:
    read = write_gguf(tmp_path / "m.gguf", kind)
    write_checkpoint(tmp_path / "hf", CONFIG)
    save_file(
        {name: np.asarray(value, np.float32) for name, value in read.items()},
        tmp_path / "hf" / "model.safetensors",
    )
    (model, tokenizer), (expected, _) = llm.load(tmp_path / "m.gguf"), llm.load(tmp_path / "hf")
    assert tokenizer is None
    assert model.config == expected.config
    assert model.config.norm_eps == 1e-5
    np.testing.assert_array_equal(model.layers.q.kernel_IO[...], expected.layers.q.kernel_IO[...])
    np.testing.assert_array_equal(
        forward(model, jnp.array(TOKENS)), forward(expected, jnp.array(TOKENS))
    )
    stored = llm.load(tmp_path / "m.gguf", dtype=None)[0].layers.k.kernel_IO.dtype
    assert stored == (jnp.float16 if kind == TYPES.F16 else jnp.float32)


@pytest.mark.parametrize("change", [
    {"model_type": "qwen2"}, {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
], ids=str)  # fmt: skip
def test_a_gguf_file_of_qwen_gives_the_logits_of_the_same_weights_in_a_folder(
    change: JsonObject, tmp_path: Path
) -> None:
    config = {**CONFIG, **change}
    read = write_gguf(tmp_path / "m.gguf", TYPES.Q8_0, config)
    write_checkpoint(tmp_path / "hf", config)
    save_file(read, tmp_path / "hf" / "model.safetensors")
    (model, _), (expected, _) = llm.load(tmp_path / "m.gguf"), llm.load(tmp_path / "hf")
    assert model.config == expected.config
    assert model.config.family == change["model_type"]
    np.testing.assert_array_equal(
        forward(model, jnp.array(TOKENS)), forward(expected, jnp.array(TOKENS))
    )


def test_tied_embeddings_and_stretched_rotations_are_recognised(tmp_path: Path) -> None:
    tied = {**CONFIG, "tie_word_embeddings": True}
    write_gguf(tmp_path / "a", TYPES.F32, tied, {"llama.rope.scaling.type": "linear",
                                                "llama.rope.scaling.factor": 4.0})  # fmt: skip
    model, _ = llm.load(tmp_path / "a")
    assert model.config.tie_embeddings
    assert model.config.rope_scaling == LinearScaling(4.0)
    # LLaMA 3.1 by the formula in its reference code.
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    wavelength = 2 * np.pi / plain
    smooth = (8192 / wavelength - 1) / 3
    factors = np.where(
        wavelength < 8192 / 4,
        1,
        np.where(wavelength > 8192, 32, 1 / ((1 - smooth) / 32 + smooth)),
    ).astype(np.float32)
    write_gguf(tmp_path / "b", TYPES.F32, extra={"rope_freqs.weight": factors})
    assert llm.load(tmp_path / "b")[0].config.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    factors[2] = 3
    write_gguf(tmp_path / "c", TYPES.F32, extra={"rope_freqs.weight": factors})
    with pytest.raises(UserError, match="is not the one of LLaMA 3"):
        llm.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"llama.expert_count": 8}, "expert_count is not supported"),
        ({"llama.attention.sliding_window": 4096}, "sliding_window is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, "rope type 'yarn' is not supported"),
        ({"llama.rope.dimension_count": 8}, "partially rotated"),
        ({"tokenizer.ggml.model": "bert"}, "the kind 'bert' is not supported"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen35",
          "tokenizer.ggml.eos_token_id": 0}, "the pre-tokenizer 'qwen35' is not supported"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.eos_token_id": 0},
         "lacks the key .tokenizer.ggml.tokens.: copy it"),
    ],
)  # fmt: skip
def test_what_is_not_a_plain_llama_is_refused_by_name(
    metadata: JsonObject, complaint: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", TYPES.F32, metadata=metadata)
    with pytest.raises(UserError, match=complaint) as error:
        llm.load(tmp_path / "m.gguf")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["qwen2moe", "qwen3moe", "phi3", "gemma3"])
def test_another_architecture_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m", TYPES.F32, {**CONFIG, "model_type": architecture})
    with pytest.raises(UserError, match=f"architecture '{architecture}' is not supported"):
        llm.load(tmp_path / "m")


def test_a_bias_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m", TYPES.F32, extra={"blk.0.attn_q.bias": np.ones(64, np.float32)})
    with pytest.raises(UserError, match=r"blk.0.attn_q.bias is not part of a plain LLaMA"):
        llm.load(tmp_path / "m")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.99])
def test_a_cut_file_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, TYPES.Q8_0)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"m.gguf cannot be read as GGUF .*copy it again") as error:
        llm.load(path)
    assert "\n" not in str(error.value)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights" * 99)
    with pytest.raises(UserError, match=r"notes.txt cannot be read as GGUF"):
        llm.load(tmp_path / "notes.txt")


def byte_level(
    steps: list[tokenizers.pre_tokenizers.PreTokenizer], whole_words: bool
) -> tokenizers.Tokenizer:
    """A tokenizer in its original format, trained on titles."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=whole_words))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(TITLES, trainer)
    return made


def metadata_of(made: tokenizers.Tokenizer, pre: str) -> JsonObject:
    """The metadata that llama.cpp's converter writes for it."""
    vocabulary = made.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [" ".join(merge) for merge in json.loads(made.to_str())["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def read_tokenizer(metadata: JsonObject, path: Path) -> Tokenizer:
    """The tokenizer of a file that has one."""
    found = tokenizer_of(metadata, path)
    assert found is not None
    return found


BYTES = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
PLAIN = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA3 = tokenizers.Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = tokenizers.Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAKERS = {
    "smollm": byte_level([tokenizers.pre_tokenizers.Digits(individual_digits=True), BYTES], False),
    "gpt-2": byte_level([BYTES], False),
    "llama-bpe": byte_level([tokenizers.pre_tokenizers.Split(LLAMA3, "isolated"), PLAIN], True),
    "qwen2": byte_level([tokenizers.pre_tokenizers.Split(QWEN, "isolated"), PLAIN], False),
}
MAKERS["qwen2"].normalizer = tokenizers.normalizers.NFC()


@pytest.mark.parametrize("pre", MAKERS)
@settings(max_examples=80, deadline=None)
@given(text=TEXT)
def test_byte_level_tokens_are_those_of_the_makers(pre: str, text: str) -> None:
    ours = _OURS.setdefault(pre, read_tokenizer(metadata_of(MAKERS[pre], pre), Path("m.gguf")))
    for sample in (text, f" {text} 1999", "The Sea's 2nd 12345 return\n"):
        expected = MAKERS[pre].encode(sample, add_special_tokens=False).ids
        assert ours.encode(sample).tolist() == expected
        composed = unicodedata.normalize("NFC", sample) if pre == "qwen2" else sample
        assert ours.decode(expected) == composed


_OURS: dict[str, Tokenizer] = {}


def test_the_begin_token_follows_the_metadata(tmp_path: Path) -> None:
    values = metadata_of(MAKERS["smollm"], "smollm")
    assert read_tokenizer(values, tmp_path).begin_ids == ()
    assert read_tokenizer(values, tmp_path).eos_id == 1
    marked = values | {"tokenizer.ggml.add_bos_token": True}
    assert read_tokenizer(marked, tmp_path).begin_ids == (0,)
    assert read_tokenizer(values | {"tokenizer.ggml.pre": "llama-bpe"}, tmp_path).begin_ids == (0,)


@pytest.mark.parametrize("source", ["own", "mistral"])
def test_sentencepiece_comes_back_from_its_pieces(source: str, tmp_path: Path) -> None:
    model = train_tokenizer(TITLES, 400).files()["tokenizer.model"]
    if source == "mistral":
        if not MISTRAL.exists():
            pytest.skip("the tokenizer of Mistral is not here")
        model = (MISTRAL / "tokenizer.model").read_bytes()
    pieces = SentencePieceProcessor(model_proto=model)
    ids = range(pieces.vocab_size())
    kinds = [
        6 if pieces.is_byte(i) else 3 if pieces.is_control(i) else 2 if pieces.is_unknown(i) else 1
        for i in ids
    ]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [pieces.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": source == "mistral",
    }
    ours = read_tokenizer(values, tmp_path)
    (begin,) = ours.begin_ids
    assert (begin, ours.eos_id) == (pieces.bos_id(), pieces.eos_id())
    back = SentencePieceProcessor(model_proto=ours.files()["tokenizer.model"])
    for text in [*TITLES, "naïve 漢字 🎬", " two  spaces ", "Amélie's (2001)\nx"]:
        assert back.encode(text) == pieces.encode(text)
        assert back.decode(pieces.encode(text)) == pieces.decode(pieces.encode(text))


def test_the_tokenizer_of_a_file_comes_with_its_model(tmp_path: Path) -> None:
    made = MAKERS["smollm"]
    config = {**CONFIG, "vocab_size": made.get_vocab_size()}
    write_gguf(tmp_path / "m", TYPES.Q8_0, config, metadata_of(made, "smollm"))
    _, tokenizer = llm.load(tmp_path / "m")
    assert tokenizer is not None
    assert tokenizer.encode("Léon").tolist() == made.encode("Léon").ids
    write_gguf(tmp_path / "n", TYPES.Q8_0, {**config, "vocab_size": 200},
               metadata_of(made, "smollm"))  # fmt: skip
    with pytest.raises(UserError, match="the model has 200: the files belong to different models"):
        llm.load(tmp_path / "n")


def numbers(path: Path, **changes: float | str) -> Path:
    write_gguf(path, TYPES.F32, metadata={f"llama.{key}": v for key, v in changes.items()})
    return path


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("rope.scaling.factor", float("nan"), "rope.scaling.factor: Input should be a finite"),
        ("rope.scaling.factor", -2.0, "rope.scaling.factor: Input should be greater than"),
        ("attention.key_length", 0, "attention.key_length: Input should be greater than"),
        ("attention.key_length", "16", "attention.key_length: Input should be a valid integer"),
        ("expert_count", "x", "expert_count: Input should be a valid integer"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    key: str, value: float | str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        llm.load(numbers(tmp_path / "m", **{key: value}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_attention_heads": 0}, "attention.head_count: Input should be greater than"),
        ({"rope_theta": 0.0}, "rope.freq_base: Input should be greater than"),
        ({"rope_theta": float("nan")}, "rope.freq_base: Input should be a finite number"),
        ({"rope_theta": float("inf")}, "rope.freq_base: Input should be a finite number"),
        ({"rms_norm_eps": -1e-5}, "rms_epsilon: Input should be greater than"),
        ({"max_position_embeddings": 0}, "context_length: Input should be greater than"),
    ],
)
def test_numbers_of_the_shape_are_checked(
    change: JsonObject, complaint: str, tmp_path: Path
) -> None:
    written = write_gguf_numbers(tmp_path / "n", {**CONFIG, **change})
    with pytest.raises(UserError, match=complaint):
        llm.load(written)


def write_gguf_numbers(path: Path, config: JsonObject) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_tensor("token_embd.weight", np.ones((400, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_type_of_scaling_decides_over_its_factor(tmp_path: Path) -> None:
    """As in llama.cpp: without a type a factor is linear; with the type none it is ignored."""
    cases: list[tuple[dict[str, float | str], LinearScaling | None]] = [
        ({"rope.scaling.factor": 4.0}, LinearScaling(4.0)),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, None),
        ({"rope.scale_linear": 2.5}, LinearScaling(2.5)),
        ({"rope.scale_linear": 0.0}, None),
    ]
    for number, (changes, expected) in enumerate(cases):
        path = numbers(tmp_path / str(number), **changes)
        assert llm.load(path)[0].config.rope_scaling == expected
    zero: dict[str, float | str] = {"rope.scaling.factor": 0.0, "rope.scaling.type": "linear"}
    with pytest.raises(UserError, match="factor is 0"):
        llm.load(numbers(tmp_path / "z", **zero))


def split(whole: Path, count: int) -> list[Path]:
    """Writes a model in several files, as llama.cpp's gguf-split does."""
    reader = gguf.GGUFReader(whole)
    paths = []
    for number in range(count):
        path = whole.with_name(f"{whole.stem}-{number + 1:05}-of-{count:05}.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for name, field in reader.fields.items():
                if name.startswith("llama."):
                    writer.add_key_value(name, field.contents(), field.types[0])
        writer.add_key_value("split.no", number, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.count", count, gguf.GGUFValueType.UINT16)
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def test_a_model_in_several_files_is_read_as_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", TYPES.Q8_0)
    first, second, third = split(tmp_path / "m.gguf", 3)
    whole, _ = llm.load(tmp_path / "m.gguf")
    parts, _ = llm.load(first)
    np.testing.assert_array_equal(
        forward(parts, jnp.array(TOKENS)), forward(whole, jnp.array(TOKENS))
    )
    with pytest.raises(UserError, match="is not the first of the 3 files of a model"):
        llm.load(second)
    renamed = third.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(UserError, match=r"of which 1 are missing \(m-00003-of-00003.gguf\)"):
        llm.load(first)
    second.rename(third)
    renamed.rename(second)
    with pytest.raises(UserError, match="does not belong to the same model"):
        llm.load(first)
    first.rename(tmp_path / "first.gguf")
    with pytest.raises(UserError, match=r"should be named NAME-00001-of-00003.gguf"):
        llm.load(tmp_path / "first.gguf")


def test_a_begin_token_of_sentencepiece_follows_the_metadata_too(tmp_path: Path) -> None:
    assert read_tokenizer(SPM, tmp_path).begin_ids == (1,)
    assert read_tokenizer(SPM | {"tokenizer.ggml.add_bos_token": True}, tmp_path).begin_ids == (1,)
    assert read_tokenizer(SPM | {"tokenizer.ggml.add_bos_token": False}, tmp_path).begin_ids == ()


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_an_added_end_token_ends_a_label(kind: int, tmp_path: Path) -> None:
    values: JsonObject = {key: [*v] if isinstance(v, list) else v for key, v in SPM.items()}
    values["tokenizer.ggml.tokens"] += ["<|im_start|>", "<|im_end|>", "Toy"]
    values["tokenizer.ggml.scores"] += [-1000.0] * 3
    values["tokenizer.ggml.token_type"] += [3, kind, 4]
    tokenizer = read_tokenizer(values | {"tokenizer.ggml.eos_token_id": 260}, tmp_path)
    assert tokenizer.eos_id == 260
    assert tokenizer.special_id("<|im_start|>") == 259
    ids = tokenizer.encode("Toy <|im_end|>").tolist()
    assert ids[0] == 261
    assert not {259, 260} & {*ids}


SPM: JsonObject = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
    "tokenizer.ggml.scores": [0.0] * 259,
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256,
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": [0.0] * 258}, "scores has 258 values for 259 tokens"),
        ({"token_type": [1]}, "token_type has 1 values for 259 tokens"),
        ({"tokens": []}, "tokens: List should have at least 1 item"),
        ({"tokens": 7}, "tokens: Input should be a valid list"),
        ({"tokens": ["<unk>"] * 259}, "a token occurs twice"),
        ({"eos_token_id": 259}, "eos_token_id is 259, of 259 tokens"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"bos_token_id": "<s>"}, "bos_token_id: Input should be a valid integer"),
        ({"add_bos_token": 3}, "add_bos_token: Input should be a valid boolean"),
        ({"scores": [float("nan")] * 259}, "scores.0: Input should be a finite number"),
        ({"model": ["llama"]}, "of the kind .'llama'. is not supported"),
        ({"model": "gpt2"}, "lacks the key tokenizer.ggml.merges"),
        ({"model": "gpt2", "merges": ["ab"]}, "merges holds 'ab', not a pair"),
        ({"model": "gpt2", "merges": []}, "lacks the key tokenizer.ggml.eos_token_id"),
        ({"model": "gpt2", "pre": ["smollm"]}, "the pre-tokenizer .'smollm'. is not supported"),
    ],
)
def test_a_damaged_vocabulary_is_one_line(
    change: JsonObject, complaint: str, tmp_path: Path
) -> None:
    values = SPM | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(UserError, match=complaint):
        read_tokenizer(values, tmp_path)
