"""The schema of configs/*.yaml, read and checked in one place."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from palr_jax.data.config import DataConfig
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig, ProfileConfig
from palr_jax.llm.config import LoRAConfig
from palr_jax.retrieval.config import Model, RetrieverConfig
from palr_jax.sharding import MeshConfig
from palr_jax.training.config import FinetuneConfig

Positive = Annotated[int, Field(ge=1)]
# The two rankers of the paper: tuned on Recommend alone, and on both tasks.
Variant = Literal["PALR_v1", "PALR_v2"]


@dataclass(frozen=True)
class SizeConfig:
    """The shape of a ranker that is trained from scratch.

    Attributes:
        dim: width.
        num_layers: layers.
        num_heads: query heads of dim / num_heads each.
        num_kv_heads: key and value heads.
        ffn_dim: width of the feed-forward layers.
        vocab_size: of the tokenizer that is trained on the catalog.
    """

    dim: Positive = 128
    num_layers: Positive = 4
    num_heads: Positive = 4
    num_kv_heads: Positive = 2
    ffn_dim: Positive = 352
    vocab_size: Annotated[int, Field(ge=512)] = 4096

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"dim ({self.dim}) must be an even multiple of num_heads ({self.num_heads})"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )


@dataclass(frozen=True)
class RankerConfig:
    """Which LLaMA ranks.

    Attributes:
        weights: a Hugging Face folder, a GGUF file or what `palr import-weights` has written;
            without it a small model is trained.
        dtype: of the frozen weights beneath adapters; what is trained is always float32.
        tokenizer: a SentencePiece `tokenizer.model`, a Hugging Face `tokenizer.json`, or a folder
            with one of them; by default the one in `weights`.
        size: the shape of the small model, unused with `weights`.
        lora: adapters to train on frozen weights; without them all weights are trained.
        variants: PALR_v1 is tuned on the task Recommend alone, PALR_v2 on both tasks.
        retrieval_share: share of Recommend_Retrieval examples in the data of PALR_v2.
    """

    weights: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    tokenizer: str | None = None
    size: SizeConfig = field(default_factory=SizeConfig)
    lora: LoRAConfig | None = None
    variants: tuple[Variant, ...] = ("PALR_v1", "PALR_v2")
    retrieval_share: Annotated[float, Field(gt=0, le=1)] = 0.7

    def __post_init__(self) -> None:
        if self.dtype != "float32" and not (self.weights and self.lora):
            raise ValueError(
                f"dtype {self.dtype} is for weights that stay as they are: set weights and lora"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """How rankers are evaluated.

    Attributes:
        decoding: of PALR_v2: score ranks all candidates in one forward pass, generate writes
            the slate item by item as the paper does, the best token first; beam writes the best
            item, sample draws tokens. PALR_v1 always writes.
        temperature: of sample: logits are divided by it.
        shuffles: in how many random orders of its candidates a user is ranked; probabilities are
            the means, at as many times the cost. 0 is the retriever's order alone.
        width: hypotheses of an item when PALR_v1 writes; 1 takes the best token at every branch.
        batch_size: users at a time.
        bootstrap: resamples of the users for the confidence intervals.
    """

    decoding: Literal["score", "generate", "beam", "sample"] = "score"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    shuffles: Annotated[int, Field(ge=0)] = 0
    width: Positive = 1
    batch_size: Positive = 32
    bootstrap: Annotated[int, Field(ge=100)] = 10_000


@dataclass(frozen=True)
class Config:
    """Everything one run needs.

    Attributes:
        name: the run directory is <runs>/<name>.
        runs: the folder of run directories, on disk or in a bucket (gs://BUCKET/FOLDER).
        seed: of everything random.
        data: the interactions.
        retriever: who proposes the candidates.
        tuned: per model, values over those of `retriever` when that model is chosen.
        profile: the profile sentence.
        instruct: the instruction data.
        ranker: the LLaMA.
        finetune: its training.
        evaluate: the comparison.
        mesh: the devices that tuning and ranking are divided over; it changes no result, so a run
            may go on with another.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]*[\w-][\w.-]*$")]
    runs: str = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataConfig = field(default_factory=DataConfig)
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    tuned: dict[Model, dict[str, Any]] = field(default_factory=dict)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    instruct: InstructConfig = field(default_factory=InstructConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for model, values in self.tuned.items():
            _check_keys(values, "tuned", RetrieverConfig, f"{model}.")
            try:
                TypeAdapter(RetrieverConfig).validate_python({**values, "model": model})
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(["tuned", model, *map(str, first["loc"])])
                raise UserError(f"{where}: {first['msg']}, not {first['input']!r}") from None
        if self.finetune.length < self.instruct.length:
            raise ValueError(
                f"finetune.length ({self.finetune.length}) must be at least "
                f"instruct.length ({self.instruct.length})"
            )
        if self.finetune.mode == "lora" and self.ranker.lora is None:
            raise ValueError("finetune.mode lora trains adapters: set ranker.lora")
        if self.finetune.mode == "full":
            # So that a config with adapters can be tuned without them by this one key.
            object.__setattr__(self, "ranker", replace(self.ranker, lora=None))


def load_config(path: Path, overrides: dict[str, str]) -> Config:
    """Reads a YAML config and puts command-line values over it.

    Args:
        path: the YAML file.
        overrides: dotted key → value as text, for example {"retriever.model": "popularity"}.

    Raises:
        UserError: the file is missing or not YAML; a key is unknown; a value is of the wrong
            type or out of range.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no config: it must map keys to values, as configs/*.yaml do")
    _check_keys(raw, str(path))
    _choose_tuned(raw, overrides)
    for key, text in overrides.items():
        _put(raw, key, _scalar(key, text))
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Checks a nested dict against the schema; `where` stands in error messages.

    Raises:
        UserError: as `load_config`.
    """
    _check_keys(raw, where)
    try:
        return TypeAdapter(Config).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        known = dict(_leaves(Config))
        # Behind the path of the key, pydantic names the branch of a union it tried.
        path = [str(part) for part in first["loc"]]
        while path and ".".join(path) not in known and not _is_section(".".join(path), known):
            path.pop()
        message = first["msg"].removeprefix("Value error, ")
        given = f", not {first['input']!r}" if first["type"] != "value_error" else ""
        key = f"{'.'.join(path)}: " if path else ""
        raise UserError(f"{where}: {key}{message[0].lower()}{message[1:]}{given}") from None


def option_keys() -> list[tuple[str, str]]:
    """The dotted keys that the command line can set, each with its default as text."""
    return [(key, default) for key, default in _leaves(Config) if key != "name"]


def to_dict(config: Config) -> dict[str, Any]:
    """A config as nested plain data, as it stands in YAML."""
    return typing.cast(dict[str, Any], TypeAdapter(Config).dump_python(config, mode="json"))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the most similar known word, or some of them if none is similar."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"it can be {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"


def _leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """All dotted keys below a config dataclass with their defaults, sections before their keys."""
    for entry in dataclasses.fields(schema):
        section, optional = _section(typing.get_type_hints(schema)[entry.name])
        default = entry.default if entry.default is not dataclasses.MISSING else ""
        if section is None or optional:
            yield f"{prefix}{entry.name}", "null" if default is None else str(default)
        if section is not None:
            yield from _leaves(section, f"{prefix}{entry.name}.")


def _section(hint: Any) -> tuple[type | None, bool]:
    """The dataclass that a field holds (None for a plain value), and whether it may be null."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option):
            return typing.cast(type, option), len(options) > 1
    return None, False


def _is_section(key: str, known: dict[str, str]) -> bool:
    return any(name.startswith(f"{key}.") for name in known)


def _check_keys(raw: dict[str, Any], where: str, schema: type = Config, prefix: str = "") -> None:
    names = {entry.name for entry in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key, value in raw.items():
        if key not in names:
            raise UserError(f"{where}: unknown key {prefix}{key}; {nearest(str(key), names)}")
        section, _ = _section(hints[key])
        if section is not None and isinstance(value, dict):
            _check_keys(value, where, section, f"{prefix}{key}.")


def _choose_tuned(raw: dict[str, Any], overrides: dict[str, str]) -> None:
    """Puts the tuned values of the chosen retriever into its section, under the command line's."""
    section, tuned = raw.get("retriever", {}), raw.get("tuned", {})
    if isinstance(section, dict) and isinstance(tuned, dict):
        model = overrides.get("retriever.model", section.get("model"))
        raw["retriever"] = {**section, **(tuned.get(model) or {})}


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(raw.get(section), dict):
            raw[section] = {}
        raw = raw[section]
    raw[last] = value


def _scalar(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--{key}: {text!r} is not a YAML value: quote it") from None
