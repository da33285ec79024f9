"""The schema of configs/*.yaml, read and checked in one place."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from palr_jax.data.config import DataConfig
from palr_jax.errors import UserError, shown
from palr_jax.instruct.config import InstructConfig, ProfileConfig
from palr_jax.io.strict_yaml import read_yaml
from palr_jax.llm.config import LoRAConfig
from palr_jax.parallel.config import MeshConfig
from palr_jax.retrieval.config import SEQUENTIAL, Model, RetrieverConfig
from palr_jax.training.config import FinetuneConfig

Positive = Annotated[int, Field(ge=1, le=1_000_000)]
_LONGEST = 1_000_000
_MOST_PARAMETERS = 10**12
# Where item vectors come from.
ItemVectorKind = Literal["retriever", "words", "language_model"]
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

    dim: Annotated[int, Field(ge=1, le=65_536)] = 128
    num_layers: Annotated[int, Field(ge=1, le=1_024)] = 4
    num_heads: Annotated[int, Field(ge=1, le=1_024)] = 4
    num_kv_heads: Annotated[int, Field(ge=1, le=1_024)] = 2
    ffn_dim: Annotated[int, Field(ge=1, le=262_144)] = 352
    vocab_size: Annotated[int, Field(ge=512, le=1_000_000)] = 4096

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
        layer = 4 * self.dim**2 + 3 * self.dim * self.ffn_dim
        parameters = self.num_layers * layer + self.vocab_size * self.dim
        if parameters > _MOST_PARAMETERS:
            raise ValueError(
                f"about {parameters:.1e} parameters, of at most {_MOST_PARAMETERS:.0e}: lower dim, "
                "num_layers or ffn_dim"
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
        prior: retriever puts the retriever's probabilities of the candidates into every choice of
            PALR_v2's trie, in training and inference; the LLaMA adds to them what it reads.
        reads: of PALR_v2: choices are the few tokens where the candidates' titles part, titles the
            whole text of every candidate behind the history, whose last state is mapped to a
            score.
        item_embeddings: item vectors that PALR_v2 gets, behind titles and in the scores of
            candidates: those of the retriever, of the words of titles, of what a language model
            makes of titles (language_model).
        title_weights: the language model of item_embeddings; what `weights` takes, and by default
            that.
    """

    weights: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    tokenizer: str | None = None
    size: SizeConfig = field(default_factory=SizeConfig)
    lora: LoRAConfig | None = None
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)] = ("PALR_v1", "PALR_v2")
    retrieval_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    prior: Literal["none", "retriever"] = "none"
    item_embeddings: tuple[ItemVectorKind, ...] = ()
    title_weights: str | None = None
    reads: Literal["choices", "titles"] = "choices"

    def __post_init__(self) -> None:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants names one twice ({', '.join(self.variants)})")
        if len(set(self.item_embeddings)) < len(self.item_embeddings):
            raise ValueError(f"item_embeddings names one twice ({', '.join(self.item_embeddings)})")
        if "language_model" in self.item_embeddings and not (self.title_weights or self.weights):
            raise ValueError("item_embeddings language_model needs one: name it in title_weights")
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
        users: how many users every row is over, drawn at random; null for all.
        controls: also rank with candidates in other orders, histories shuffled and titles
            exchanged, to show what carries the result.
        bootstrap: resamples of the users for the confidence intervals.
    """

    decoding: Literal["score", "generate", "beam", "sample"] = "score"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    shuffles: Annotated[int, Field(ge=0, le=1_000)] = 0
    width: Annotated[int, Field(ge=1, le=1_000)] = 1
    batch_size: Positive = 32
    users: Positive | None = None
    controls: bool = False
    bootstrap: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000


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

    # Pydantic applies it to the sections as well: NaN and infinity are no settings.
    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

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
            try:
                _check_keys(values, "tuned", RetrieverConfig, f"{model}.")
                TypeAdapter(RetrieverConfig).validate_python({**values, "model": model})
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(["tuned", model, *map(str, first["loc"])])
                raise ValueError(f"{where}: {first['msg']}, not {shown(first['input'])}") from None
            except UserError as error:
                raise ValueError(str(error)) from None
        if self.finetune.length < self.instruct.length:
            raise ValueError(
                f"finetune.length ({self.finetune.length}) must be at least "
                f"instruct.length ({self.instruct.length})"
            )
        if self.finetune.objective == "candidates":
            self._check_moments()
        elif self._has_head:
            raise ValueError(
                "ranker.prior, item_embeddings and reads: titles are learned by "
                "finetune.objective candidates: set it"
            )
        if self.finetune.mode == "lora" and self.ranker.lora is None:
            raise ValueError("finetune.mode lora trains adapters: set ranker.lora")
        if self.finetune.mode == "full":
            # So that a config with adapters can be tuned without them by this one key.
            object.__setattr__(self, "ranker", replace(self.ranker, lora=None))

    @property
    def ranker_seed(self) -> int:
        """The seed of the ranker's parameters and examples."""
        return self.seed if self.finetune.seed is None else self.finetune.seed

    @property
    def _has_head(self) -> bool:
        ranker = self.ranker
        return (
            ranker.prior == "retriever"
            or len(ranker.item_embeddings) > 0
            or ranker.reads == "titles"
        )

    def _check_moments(self) -> None:
        instruct, tuning = self.instruct, self.finetune
        instruct.check_held_out()
        if instruct.prompt == "history" and instruct.moments > tuning.moments:
            raise ValueError(
                f"finetune.moments ({tuning.moments}) must be at least instruct.moments "
                f"({instruct.moments}): those of a user stand in one row"
            )
        if "retriever" in self.ranker.item_embeddings:
            if self.retriever.model not in SEQUENTIAL:
                raise ValueError(
                    f"ranker.item_embeddings: {self.retriever.model} has no item vectors; "
                    f"retriever.model can be {', '.join(SEQUENTIAL)}"
                )
            if instruct.held_out == "users" and instruct.folds > 1:
                raise ValueError(
                    "ranker.item_embeddings: the vectors of several retrievers do not compare: set "
                    "instruct.held_out time or instruct.folds 1"
                )
        plain = self.evaluate.decoding == "score"
        if self._has_head and not plain:
            raise ValueError(
                f"evaluate.decoding {self.evaluate.decoding} knows no prior and no item vectors: "
                "set score"
            )
        if instruct.prompt == "history" and (not plain or self.evaluate.shuffles):
            raise ValueError(
                "instruct.prompt history lists no candidates: set evaluate.decoding score and "
                "evaluate.shuffles 0"
            )


_SCHEMA = TypeAdapter(Config)


def load_config(path: Path, overrides: dict[str, str]) -> Config:
    """Reads a YAML config and puts command-line values over it.

    Args:
        path: the YAML file.
        overrides: dotted key → value as text, for example {"retriever.model": "popularity"}. A
            key that holds a text takes it as it is (`null` is none where there may be none), all
            others are read as YAML.

    Raises:
        UserError: the file is missing or not YAML; a key is unknown; a value is of the wrong
            type or out of range. What an override holds is put down to its option.
    """
    raw = _read_file(path)
    _check_keys(raw, str(path))
    values = {key: _value(key, text) for key, text in overrides.items()}
    _choose_tuned(raw, values)
    for key, value in values.items():
        _put(raw, key, value)
    return _parse(raw, str(path), tuple(overrides))


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Checks a nested dict against the schema; `where` stands in error messages.

    Raises:
        UserError: as `load_config`.
    """
    return _parse(raw, where, ())


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no config: it must map keys to values, as configs/*.yaml do")
    return raw


def _parse(raw: dict[str, Any], where: str, options: tuple[str, ...]) -> Config:
    """The config of a nested dict into which the values of `options` were put."""
    _check_keys(raw, where)
    try:
        return _SCHEMA.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        known = dict(_leaves(Config))
        # Behind the path of the key, pydantic names the branch of a union it tried.
        path = [str(part) for part in first["loc"]]
        while path and ".".join(path) not in known and not _is_section(".".join(path), known):
            path.pop()
        key = ".".join(path)
        message = first["msg"].removeprefix("Value error, ")
        says_it = first["type"] in ("value_error", "missing")
        given = "" if says_it else f", not {shown(first['input'])}"
        said = f"{message[0].lower()}{message[1:]}{given}"
        raise UserError(f"{_blamed(key, where, options)}: {said}") from None


def _blamed(key: str, where: str, options: tuple[str, ...]) -> str:
    """Whose a wrong value is: of an option, or of a file beside options that may be to blame."""
    holders = [option for option in options if key == option or key.startswith(f"{option}.")]
    if holders:
        return f"--{holders[-1]}: {key}" if holders[-1] != key else f"--{key}"
    below = [option for option in options if not key or option.startswith(f"{key}.")]
    file = f"{where} with {', '.join(f'--{option}' for option in below)}" if below else where
    return f"{file}: {key}" if key else file


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
        if isinstance(value, str):
            _check_text(value, f"{where}: {prefix}{key}")
        section, _ = _section(hints[key])
        if section is not None and isinstance(value, dict):
            _check_keys(value, where, section, f"{prefix}{key}.")


def _check_text(text: str, where: str) -> None:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where}: {shown(text)} holds a character that no file or text can")


def _choose_tuned(raw: dict[str, Any], options: dict[str, Any]) -> None:
    """Puts the tuned values of the chosen retriever into its section, under the command line's."""
    section, tuned = raw.get("retriever", {}), raw.get("tuned", {})
    if isinstance(section, dict) and isinstance(tuned, dict):
        model = options.get("retriever.model", section.get("model"))
        chosen = tuned.get(model) if isinstance(model, str) else None
        if isinstance(chosen, dict):
            raw["retriever"] = {**section, **chosen}


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(raw.get(section), dict):
            raw[section] = {}
        raw = raw[section]
    raw[last] = value


def _value(key: str, text: str) -> Any:
    """The value of an option: its text as it is if that is what the key holds, else as YAML."""
    _check_text(text, f"--{key}")
    kinds = _kinds(_hint(key))
    if kinds <= {str, type(None)}:
        return None if text == "null" and type(None) in kinds else text
    return read_yaml(text, f"--{key}: {shown(text)}")


def _hint(key: str) -> Any:
    """The type of the field with this dotted key."""
    schema: type | None = Config
    hint: Any = None
    for name in key.split("."):
        hints = typing.get_type_hints(schema) if schema is not None else {}
        if name not in hints:
            raise UserError(f"--{key}: unknown key {key}; {nearest(name, hints)}")
        hint = hints[name]
        schema, _ = _section(hint)
    return hint


def _kinds(hint: Any) -> set[type]:
    """The plain types that a hint allows; those of a literal are those of its values."""
    if typing.get_origin(hint) is Literal:
        return {type(value) for value in typing.get_args(hint)}
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return set().union(*map(_kinds, typing.get_args(hint)))
    return {typing.get_origin(hint) or hint}
