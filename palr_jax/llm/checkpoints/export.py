"""Exports weights for other tools: a merged Hugging Face folder or a PEFT adapter."""

from pathlib import Path

from palr_jax.errors import UserError
from palr_jax.io.files import creating
from palr_jax.llm.checkpoints import huggingface, peft
from palr_jax.llm.checkpoints.weights import disassemble
from palr_jax.llm.config import LoRAConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.tokenizer import Tokenizer


def export_model(model: Llama, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes a model as a Hugging Face folder, with its adapters merged into the weights.

    Raises:
        UserError: the folder is not empty.
    """
    with creating(folder) as temporary:
        huggingface.write_tensors(disassemble(model), temporary)
        huggingface.write_tokenizer(tokenizer, temporary)
        huggingface.write_config(model.config, tokenizer, temporary)


def export_adapter(
    model: Llama, lora: LoRAConfig | None, base: str | None, tokenizer: Tokenizer, folder: Path
) -> None:
    """Writes the adapters of a model as a PEFT folder, together with the tokenizer.

    Raises:
        UserError: the model has no adapters, or its base is not available to others; the folder is
            not empty.
    """
    if lora is None:
        raise UserError(
            "this ranker was tuned as a whole (ranker.lora is null): leave out --adapter"
        )
    if base is None:
        raise UserError(
            "this ranker's base was drawn at random (ranker.weights is null), so its adapter is "
            "useless without it: leave out --adapter"
        )
    with creating(folder) as temporary:
        huggingface.write_tokenizer(tokenizer, temporary)
        peft.write_adapter(model, lora, _from_anywhere(base), temporary)


def _from_anywhere(base: str) -> str:
    """The base as an absolute path if it exists: PEFT takes other names for hub repositories."""
    if "://" in base or not Path(base).exists():
        return base
    return str(Path(base).absolute())
