"""The tokenizer in the metadata of a GGUF file.

Two kinds are read: byte-level BPE (`gpt2`: LLaMA 3, SmolLM2, Qwen), which is converted to a
`tokenizer.json`, and SentencePiece (`llama`: LLaMA 1 and 2, Mistral), which is converted back to a
`tokenizer.model`.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, StrictBool, StrictInt, StrictStr
from sentencepiece import sentencepiece_model_pb2 as proto

from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.small_files import validated
from palr_jax.llm.tokenizers.json_tokenizer import JsonTokenizer
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from palr_jax.llm.tokenizers.special_tokens import SpecialTokens
from palr_jax.llm.tokenizers.tokenizer import Tokenizer

# Token types of GGUF, the same numbers as SentencePiece's.
_PLAIN, _CONTROL, _USER_DEFINED = 1, 3, 4
_KEY = "tokenizer.ggml."

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Regular expressions that split a text before the merges, applied in order, by the name in
# `tokenizer.ggml.pre`.
_WORDS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2_WORDS,),
    "smollm": (r"\p{N}", _GPT2_WORDS),
    "llama-bpe": (_LLAMA3_WORDS,),
    "llama3": (_LLAMA3_WORDS,),
    "llama-v3": (_LLAMA3_WORDS,),
    "qwen2": (_QWEN_WORDS,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
# LLaMA 3 encodes a word that is in the vocabulary as one token, regardless of the merges.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")
# Qwen composes characters and their accents (NFC) before it splits.
_COMPOSED = ("qwen2",)


_Kind = Annotated[StrictInt, Field(ge=1, le=6)]


class _Vocabulary(BaseModel):
    """The metadata of a tokenizer of either kind."""

    tokens: Annotated[list[StrictStr], Field(min_length=1)] = Field(alias="tokenizer.ggml.tokens")
    kinds: list[_Kind] = Field(alias="tokenizer.ggml.token_type")
    scores: list[FiniteFloat] | None = Field(None, alias="tokenizer.ggml.scores")
    merges: list[StrictStr] | None = Field(None, alias="tokenizer.ggml.merges")
    bos: StrictInt | None = Field(None, alias="tokenizer.ggml.bos_token_id")
    eos: StrictInt | None = Field(None, alias="tokenizer.ggml.eos_token_id")
    unknown: StrictInt | None = Field(None, alias="tokenizer.ggml.unknown_token_id")
    begins: StrictBool | None = Field(None, alias="tokenizer.ggml.add_bos_token")
    adds_space: StrictBool = Field(True, alias="tokenizer.ggml.add_space_prefix")


def tokenizer_of(metadata: JsonObject, path: Path) -> Tokenizer | None:
    """The tokenizer in the metadata of a GGUF file; None if they contain none.

    Raises:
        UserError: its kind is unknown, or it is incomplete or damaged.
    """
    if not any(name.startswith(_KEY) for name in metadata):
        return None
    kind, cut = metadata.get(_KEY + "model"), metadata.get(_KEY + "pre", "default")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{path}: a tokenizer of the kind {kind!r} is not supported")
    if kind == "gpt2" and cut not in [*_WORDS]:
        raise UserError(
            f"{path}: the pre-tokenizer {cut!r} is not supported; {', '.join(_WORDS)} are"
        )
    values = validated(_Vocabulary, metadata, str(path))
    _check_lengths(values, path)
    name = f"the tokenizer in {path}"
    if kind == "llama":
        special = SpecialTokens(begins=values.begins is not False)
        return SentencePieceTokenizer(_sentencepiece(values, path), name, special)
    begins = cut in _WHOLE_WORDS if values.begins is None else values.begins
    begin_ids = (_id(values, "bos", None, path),) if begins else ()
    text = json.dumps(_byte_level_bpe(values, cut, path), ensure_ascii=False)
    return JsonTokenizer(text, begin_ids, _id(values, "eos", None, path), name)


def _check_lengths(values: _Vocabulary, path: Path) -> None:
    count = len(values.tokens)
    for key, found in (("token_type", values.kinds), ("scores", values.scores)):
        if found is not None and len(found) != count:
            raise UserError(
                f"{path}: {_KEY}{key} has {len(found):,} values for {count:,} tokens: copy it again"
            )
    if len(set(values.tokens)) < count:
        raise UserError(f"{path}: a token occurs twice in {_KEY}tokens: copy it again")


def _id(values: _Vocabulary, name: str, default: int | None, path: Path) -> int:
    """The id of a special token: "bos", "eos" or "unknown"."""
    found = getattr(values, name)
    number = default if found is None else found
    if number is None:
        raise UserError(f"{path} lacks the key {_KEY}{name}_token_id: convert it again")
    if not 0 <= number < len(values.tokens):
        raise UserError(
            f"{path}: {_KEY}{name}_token_id is {number}, of {len(values.tokens):,} tokens: "
            "convert it again"
        )
    return int(number)


def _byte_level_bpe(values: _Vocabulary, cut: str, path: Path) -> JsonObject:
    """The content of a tokenizer.json; `cut` is the name of its pre-tokenizer."""
    if values.merges is None:
        raise UserError(f"{path} lacks the key {_KEY}merges: convert it again")
    merges = [merge.split(" ", 1) for merge in values.merges]
    whole = next((pair for pair in merges if len(pair) < 2), None)
    if whole is not None:
        raise UserError(f"{path}: {_KEY}merges holds {whole[0]!r}, not a pair: copy it again")
    tokens, kinds = values.tokens, values.kinds
    splits = [
        {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
        for words in _WORDS[cut]
    ]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == _CONTROL,
            }
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if cut in _COMPOSED else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*splits, {**bytes_only, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**bytes_only, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut in _WHOLE_WORDS,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _sentencepiece(values: _Vocabulary, path: Path) -> bytes:
    """The bytes of a tokenizer.model."""
    if values.scores is None:
        raise UserError(f"{path} lacks the key {_KEY}scores: convert it again")
    unknown, bos, eos = (
        _id(values, name, default, path)
        for name, default in (("unknown", 0), ("bos", 1), ("eos", 2))
    )
    model = proto.ModelProto()
    for number, (token, score, kind) in enumerate(
        zip(values.tokens, values.scores, values.kinds, strict=True)
    ):
        # Old files mark the begin and end tokens as plain ones.
        ends = number in (bos, eos) and kind in (_PLAIN, _USER_DEFINED)
        model.pieces.add(piece=token, score=score, type=_CONTROL if ends else kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(values.tokens)
    trainer.byte_fallback = True
    trainer.pad_id = -1
    for name, number in (("unk", unknown), ("bos", bos), ("eos", eos)):
        setattr(trainer, f"{name}_id", number)
        setattr(trainer, f"{name}_piece", values.tokens[number])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = values.adds_space
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return bytes(model.SerializeToString())
