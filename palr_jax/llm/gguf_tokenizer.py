"""The tokenizer in the metadata of a GGUF file.

Two kinds belong to the LLaMA family: byte-level BPE (`gpt2`: LLaMA 3, SmolLM2), which becomes a
`tokenizer.json`, and SentencePiece (`llama`: LLaMA 1 and 2, Mistral), which becomes the
`tokenizer.model` that it once was.
"""

import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as proto

from palr_jax.errors import UserError
from palr_jax.llm.json_tokenizer import JsonTokenizer
from palr_jax.llm.sentencepiece_tokenizer import SentencePieceTokenizer
from palr_jax.llm.tokenizer import Tokenizer

# Token types of GGUF, the same numbers as SentencePiece's.
_CONTROL, _USER_DEFINED = 3, 4

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Expressions that cut a text before the merges, one after the other, by the name in
# `tokenizer.ggml.pre`.
_WORDS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2_WORDS,),
    "smollm": (r"\p{N}", _GPT2_WORDS),
    "llama-bpe": (_LLAMA3_WORDS,),
    "llama3": (_LLAMA3_WORDS,),
    "llama-v3": (_LLAMA3_WORDS,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
# LLaMA 3 takes a word that is in the vocabulary as it is, whatever the merges say.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")


def tokenizer_of(metadata: dict[str, Any], path: Path) -> Tokenizer | None:
    """The tokenizer that the metadata of a GGUF file describes; None where there is none.

    Raises:
        UserError: it is of an unknown kind or incomplete.
    """
    values = {
        name.removeprefix("tokenizer.ggml."): value
        for name, value in metadata.items()
        if name.startswith("tokenizer.ggml.")
    }
    if not values:
        return None
    kind = values.get("model")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{path}: a tokenizer of the kind {kind!r} is not supported")
    name = f"the tokenizer in {path}"
    try:
        if kind == "llama":
            return SentencePieceTokenizer(_sentencepiece(values), name)
        begin = values.get("add_bos_token", values.get("pre") in _WHOLE_WORDS)
        begin_ids = (int(values["bos_token_id"]),) if begin else ()
        text = json.dumps(_byte_level_bpe(values, path), ensure_ascii=False)
        return JsonTokenizer(text, begin_ids, int(values["eos_token_id"]), name)
    except KeyError as error:
        raise UserError(f"{path} lacks the key tokenizer.ggml.{error.args[0]}") from None


def _byte_level_bpe(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    cut = values.get("pre", "default")
    if cut not in _WORDS:
        raise UserError(
            f"{path}: the pre-tokenizer {cut!r} is not supported; {', '.join(_WORDS)} are"
        )
    tokens, kinds = values["tokens"], values["token_type"]
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
        "normalizer": None,
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
            "merges": [merge.split(" ", 1) for merge in values["merges"]],
        },
    }


def _sentencepiece(values: dict[str, Any]) -> bytes:
    """The bytes of a tokenizer.model."""
    model = proto.ModelProto()
    for token, score, kind in zip(
        values["tokens"], values["scores"], values["token_type"], strict=True
    ):
        model.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(values["tokens"])
    trainer.byte_fallback = True
    trainer.unk_id = int(values.get("unknown_token_id", 0))
    trainer.bos_id = int(values.get("bos_token_id", 1))
    trainer.eos_id = int(values.get("eos_token_id", 2))
    trainer.pad_id = -1
    for name, number in (("unk", trainer.unk_id), ("bos", trainer.bos_id), ("eos", trainer.eos_id)):
        setattr(trainer, f"{name}_piece", values["tokens"][number])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(values.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return bytes(model.SerializeToString())
