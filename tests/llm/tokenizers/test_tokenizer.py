import builtins
import io
import json
import re
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sentencepiece as spm
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.llm.tokenizers.json_tokenizer import JsonTokenizer
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from palr_jax.llm.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.llm.checkpoints.test_gguf import MAKERS
from tests.locations import SHARED

MODELS = SHARED / "models"
TEXTS = ["Toy Story (1995)", "the user enjoys", "Heat (1995)", '"Heat"\n', "a b c, d \n"]
SPECIAL = ["<s>", "</s>", "<unk>"]


def byte_level(begin: str = "") -> str:
    """A tokenizer.json like that of LLaMA 3 and SmolLM2; `begin` precedes every text."""
    pieces = hf.Tokenizer(hf.models.BPE())
    pieces.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    pieces.train_from_iterator(
        TEXTS,
        hf.trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if begin:
        pieces.post_processor = hf.processors.TemplateProcessing(
            single=f"{begin} $A </s>",
            special_tokens=[(begin, pieces.token_to_id(begin)), ("</s>", 1)],
        )
    pieces.enable_truncation(4)
    return pieces.to_str()


def spaced() -> str:
    """A tokenizer.json like that of LLaMA 2 and Mistral: a space precedes every text."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({*"".join(TEXTS).replace(" ", "▁").replace("\n", ""), "▁"})
    vocab = {piece: i for i, piece in enumerate([*SPECIAL, *byte_pieces, *letters, "he", "▁he"])}
    pieces = hf.Tokenizer(
        hf.models.BPE(
            vocab, [("h", "e"), ("▁", "he")], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    pieces.normalizer = hf.normalizers.Sequence(
        [hf.normalizers.Prepend("▁"), hf.normalizers.Replace(" ", "▁")]
    )
    pieces.decoder = hf.decoders.Sequence(
        [
            hf.decoders.Replace("▁", " "),
            hf.decoders.ByteFallback(),
            hf.decoders.Fuse(),
            hf.decoders.Strip(" ", 1, 0),
        ]
    )
    pieces.add_special_tokens(SPECIAL)
    return pieces.to_str()


OWN = train_tokenizer(TEXTS, 400)
WORDS = hf.Tokenizer(hf.models.WordLevel({"a": 0}, "a")).to_str()
BYTE_LEVEL = JsonTokenizer(byte_level(), [], 1)
SPACED = JsonTokenizer(spaced(), [0], 1)
TOKENIZERS: dict[str, Tokenizer] = {"own": OWN, "byte level": BYTE_LEVEL, "spaced": SPACED}
TOKENIZERS |= {
    name: load_tokenizer(MODELS / name)
    for name in ("stories260K", "mistral-32k-tokenizer")
    if (MODELS / name).exists()
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
# A NUL byte ends a text in SentencePiece's C strings; titles are tidied of control characters.
TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40)


@every_tokenizer
@settings(max_examples=50, deadline=None)
@given(segments=st.lists(TEXT, max_size=5))
def test_segments_decode_to_their_joined_text(tokenizer: Tokenizer, segments: list[str]) -> None:
    ids = [token for segment in segments for token in tokenizer.encode(f"{segment}\n")]
    if "▁" not in "".join(segments):  # SentencePiece's own sign for a space
        # Some models merge several spaces into one.
        expected = "".join(f"{segment}\n" for segment in segments)
        assert one_space(tokenizer.decode(ids)) == one_space(expected)
    assert max(ids, default=0) < tokenizer.vocab_size


def one_space(text: str) -> str:
    return re.sub(" +", " ", text)


@every_tokenizer
def test_a_line_break_ends_the_segment_that_it_is_in(tokenizer: Tokenizer) -> None:
    for text in ("Heat\n", '"Heat (1995)"\n', ' "Heat"\n'):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids[-1:]).endswith("\n")
        assert "\n" not in tokenizer.decode(ids[:-1])


@every_tokenizer
def test_special_tokens_come_from_no_text(tokenizer: Tokenizer) -> None:
    for text in ('"<s>"', "</s>", "Heat</s>\n"):
        ids = tokenizer.encode(text).tolist()
        assert not {*tokenizer.begin_ids, tokenizer.eos_id} & set(ids)
        assert tokenizer.decode(ids) == text


@every_tokenizer
def test_begin_and_end_tokens_vanish_in_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.begin_ids, *tokenizer.encode("Heat"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "Heat"


@every_tokenizer
def test_files_give_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)
    again = load_tokenizer(tmp_path)
    assert (again.vocab_size, again.begin_ids, again.eos_id) == (
        tokenizer.vocab_size, tokenizer.begin_ids, tokenizer.eos_id,
    )  # fmt: skip
    text = '"Heat </s> (1995)"\n'
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
    assert again.files() == tokenizer.files()


@every_tokenizer
def test_special_tokens_are_found_by_name(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_id("</s>") == tokenizer.eos_id
    assert tokenizer.special_id("<|im_start|>") is None
    assert tokenizer.special_id("a") is None


@pytest.mark.parametrize("name", ["own", "mistral-32k-tokenizer"])
def test_a_sentencepiece_model_as_json_gives_the_same_tokens(name: str) -> None:
    if name not in TOKENIZERS:
        pytest.skip("the 32,000-piece tokenizer is not here")
    reference = TOKENIZERS[name]
    pieces = spm.SentencePieceProcessor(model_proto=reference.files()["tokenizer.model"])
    adds_space = pieces.encode("a", out_type=str)[0].startswith("▁")
    tokenizer = JsonTokenizer(as_json(pieces, adds_space), reference.begin_ids, reference.eos_id)
    assert tokenizer.vocab_size == reference.vocab_size
    for text in [*TEXTS, '"B000 (L\'Oréal Eye Shadow, 0.5 oz) 💄"\n', " a (b) \n", ")\n"]:
        np.testing.assert_array_equal(tokenizer.encode(text), reference.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def as_json(pieces: spm.SentencePieceProcessor, adds_space: bool) -> str:
    """A SentencePiece model as a tokenizer.json: pairs merge in the order of the vocabulary."""
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    merges = []
    for piece, number in vocab.items():
        if not pieces.is_byte(number) and not pieces.is_control(number):
            splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
            merges += [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
    json_pieces = hf.Tokenizer(
        hf.models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    spaces = [hf.normalizers.Replace(" ", "▁")]
    prefix = [hf.normalizers.Prepend("▁")] if adds_space else []
    json_pieces.normalizer = hf.normalizers.Sequence(prefix + spaces)
    strip = [hf.decoders.Strip(" ", 1, 0)] if adds_space else []
    json_pieces.decoder = hf.decoders.Sequence(
        [hf.decoders.Replace("▁", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse(), *strip]
    )
    json_pieces.add_special_tokens(SPECIAL)
    return json_pieces.to_str()


def test_a_tokenizer_json_of_qwen_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(MAKERS["qwen2"].to_str())
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": "<|end|>", "bos_token": null, "add_bos_token": false}'
    )
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.begin_ids, tokenizer.eos_id) == ((), 1)
    for text in ("The Sea's 12345 return\n", "  two\n\n Ame\u0301lie <|end|>"):
        ids = tokenizer.encode(text).tolist()
        assert ids[:3] == MAKERS["qwen2"].encode(text).ids[:3]
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_training_is_deterministic() -> None:
    texts = [f"The {word} of {word} ({year})" for word in ("Sea", "Day") for year in range(99)]
    assert train_tokenizer(texts, 500).files() == train_tokenizer(texts, 500).files()


def test_a_text_is_never_cut_off() -> None:
    assert len(BYTE_LEVEL.encode("zq" * 50)) == 100  # the JSON asks for at most 4


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, 1),
        ({"tokenizer_config.json": {"eos_token": {"content": "<unk>"}}}, 2),
        ({"tokenizer_config.json": {"eos_token": None}, "config.json": {"eos_token_id": 2}}, 2),
        ({"config.json": {"eos_token_id": [1, 2]}}, 1),
    ],
)
def test_special_tokens_are_the_models_own(tmp_path: Path, files: JsonObject, eos: int) -> None:
    for begin, ids in (("", ()), ("<s>", (0,))):
        (tmp_path / "tokenizer.json").write_text(byte_level(begin))
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        tokenizer = load_tokenizer(tmp_path)
        assert (tokenizer.begin_ids, tokenizer.eos_id) == (ids, eos)


def test_begin_tokens_given_in_memory_win_over_the_files_own(tmp_path: Path) -> None:
    given = JsonTokenizer(byte_level("<s>"), [2, 0], 1)
    for name, content in given.files().items():
        (tmp_path / name).write_bytes(content)
    assert load_tokenizer(tmp_path).begin_ids == (2, 0)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "holds no tokenizer.model and no tokenizer.json"),
        ({"tokenizer.model": OWN.files()["tokenizer.model"][:200]}, "not a SentencePiece model"),
        ({"tokenizer.json": b"{"}, "is not a tokenizer.json"),
        ({"tokenizer.json": b'{"model": 3}'}, "is not a tokenizer.json"),
        ({"tokenizer.json": b"\xff"}, "tokenizer.json cannot be read .not UTF-8.: copy it again"),
        ({"tokenizer.json": byte_level().encode()}, "no file next to .* names its end token"),
        (
            {"tokenizer.json": byte_level().encode(), "config.json": b'{"eos_token_id": 9999}'},
            "has no token 9999: it belongs to another model",
        ),
        (
            {
                "tokenizer.json": byte_level().encode(),
                "tokenizer_config.json": b'{"eos_token": "<end>"}',
            },
            "lacks the end token '<end>' that the files next to it name: they belong to different",
        ),
        (
            {
                "tokenizer.json": hf.Tokenizer(hf.models.WordLevel({"a": 0}, "a"))
                .to_str()
                .encode(),
                "config.json": b'{"eos_token_id": 0}',
            },
            "cannot write a line break",
        ),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, files: JsonObject, complaint: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def panicking() -> str:
    """A tokenizer.json that makes the package panic: its template names a token without an id."""
    content = json.loads(byte_level("<s>"))
    content["post_processor"]["special_tokens"] = {}
    return json.dumps(content)


def test_a_panic_of_the_package_is_one_clear_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").write_text(panicking())
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer.json that works"):
        load_tokenizer(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"\n", b"\x12\x00"])
def test_a_sentencepiece_model_of_nothing_is_one_clear_line(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer.model is not a SentencePiece model"):
        load_tokenizer(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    for name in ("none.model", "none.json"):
        with pytest.raises(
            UserError, match=rf"{name} is missing: name a tokenizer.model, a tokenizer.json"
        ):
            load_tokenizer(tmp_path / name)


def test_a_model_without_begin_or_end_token_is_refused() -> None:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=300, hard_vocab_limit=False,
        model_type="bpe", byte_fallback=True, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(UserError, match="has no begin or end token"):
        SentencePieceTokenizer(model.getvalue())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> ModuleType:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'palr-jax\[hf\]'"):
        JsonTokenizer("{}", [], 0)
