"""Checkpoints as Hugging Face folders: `config.json`, safetensors, a tokenizer."""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, StrictStr

from palr_jax.errors import UserError
from palr_jax.llm.checkpoints import safetensors_file
from palr_jax.llm.checkpoints.hf_config import read_config, to_hf
from palr_jax.llm.checkpoints.small_files import read_object, validated
from palr_jax.llm.checkpoints.stored import Stored
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.tokenizers.tokenizer import Tokenizer, load_tokenizer

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Larger checkpoints are written as several files.
_SHARD_BYTES = 5_000_000_000


class _Index(BaseModel):
    """Which file holds which tensor."""

    weight_map: dict[StrictStr, StrictStr]


def open_folder(folder: Path) -> tuple[LlamaConfig, dict[str, Stored]]:
    """The shape of a model and its tensors, which are read lazily.

    Raises:
        UserError: a file is missing, damaged or a pickle, or the config needs a feature that Llama
            does not support.
    """
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(f"{folder} is a PEFT adapter: name the model that it adapts")
    if not (folder / _SINGLE).exists():
        refuse_pickles(folder)
    config = read_config(folder / "config.json")
    tensors: dict[str, Stored] = {}
    for file in _files(folder):
        found, _ = safetensors_file.read_header(file)
        twice = tensors.keys() & found.keys()
        if twice:
            raise UserError(
                f"{folder}: tensor {min(twice)} is in two files: keep the files of one model"
            )
        tensors |= found
    return config, tensors


def refuse_pickles(path: Path) -> None:
    """Refuses a pickle, or a folder that holds pickles but no safetensors.

    Raises:
        UserError: `path` is one; the message says how to convert it.
    """
    if path.is_dir():
        pickles = sorted(file for pattern in _PICKLES for file in path.glob(pattern))
        if not pickles or any(path.glob("*.safetensors")):
            return
        path = pickles[0]
    raise UserError(
        f"{path} is a pickle, which can run any code when it is opened; if you trust it, convert "
        "it: transformers' AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
    )


def is_pickle(path: Path) -> bool:
    """Whether a file is a PyTorch pickle, by its name."""
    return any(path.match(pattern) for pattern in _PICKLES)


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder; None if it has none.

    Raises:
        UserError: the tokenizer cannot be read.
    """
    if not any((folder / name).exists() for name in ("tokenizer.model", "tokenizer.json")):
        return None
    return load_tokenizer(folder)


def write_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes the files of a tokenizer, in a format that transformers reads too."""
    if tokenizer is None:
        return
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)


def write_config(config: LlamaConfig, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes `config.json`."""
    content = to_hf(config)
    if tokenizer is not None:
        content = to_hf(config, tokenizer.begin_ids, tokenizer.eos_id)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(tensors: Iterable[tuple[str, Stored]], folder: Path) -> None:
    """Writes safetensors; several files with an index if one would be too large."""
    shards: list[list[tuple[str, Stored]]] = [[]]
    size = 0
    for name, tensor in tensors:
        if shards[-1] and size + tensor.nbytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, tensor))
        size += tensor.nbytes
    names = [_SINGLE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        where = {name: file for file, shard in zip(names, shards, strict=True) for name, _ in shard}
        total = sum(tensor.nbytes for shard in shards for _, tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file, shard in zip(names, shards, strict=True):
        safetensors_file.write_file(folder / file, shard, {"format": "pt"})


def _files(folder: Path) -> list[Path]:
    """The files that hold the model: those in the index, else `model.safetensors`, else all."""
    if (folder / _INDEX).exists():
        index = validated(_Index, read_object(folder / _INDEX), str(folder / _INDEX))
        names = sorted(set(index.weight_map.values()))
        odd = [name for name in names if Path(name).name != name or not name.isprintable()]
        if odd or not names:
            raise UserError(
                f"{folder / _INDEX} names {odd[0]!r}, not a file in its folder: copy it again"
                if odd
                else f"{folder / _INDEX} names no file: copy it again"
            )
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {len(names)} files are missing "
                f"({missing[0]}): copy the whole folder"
            )
        return [folder / name for name in names]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file: name a Hugging Face model folder")
    return files
