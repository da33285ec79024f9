"""The schema of a config: its sections, and the rules that hold between them."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from palr_jax.config.evaluate import EvaluateConfig
from palr_jax.config.keys import check_keys
from palr_jax.config.ranker import RankerConfig
from palr_jax.data.config import DataConfig
from palr_jax.errors import UserError, shown
from palr_jax.instruct.config import LETTERS, InstructConfig, ProfileConfig
from palr_jax.json_types import JsonObject
from palr_jax.parallel.config import MeshConfig
from palr_jax.retrieval.config import SEQUENTIAL, Model, RetrieverConfig
from palr_jax.training.config import FinetuneConfig


@dataclass(frozen=True)
class Config:
    """Everything that one run needs.

    Attributes:
        name: name of the run; its directory is RUNS/NAME.
        runs: folder of all run directories, on disk or in a bucket (gs://BUCKET/FOLDER).
        seed: seed of everything random.
        data: the interactions.
        retriever: the model that proposes candidates.
        retriever_presets: values of the `retriever` section for each model, used for the model
            that is chosen; values that the section or the command line sets win over them.
        profile: the profile sentences.
        instruct: the instruction data.
        ranker: the LLaMA.
        finetune: its training.
        evaluate: the comparison.
        mesh: the devices that fine-tuning and ranking are divided over; it does not change
            results, so a run may resume with another mesh.
    """

    # Pydantic applies it to the sections as well: no setting may be NaN or infinite.
    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[\w.-]*[\w-][\w.-]*$")]
    runs: str = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataConfig = field(default_factory=DataConfig)
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    retriever_presets: dict[Model, JsonObject] = field(default_factory=dict)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    instruct: InstructConfig = field(default_factory=InstructConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for model, values in self.retriever_presets.items():
            _check_preset(model, values)
        if self.finetune.length < self.instruct.length:
            raise ValueError(
                f"finetune.length ({self.finetune.length}) must be at least "
                f"instruct.length ({self.instruct.length})"
            )
        if self.finetune.objective == "candidates":
            self._check_moments()
        elif self.ranker.has_head:
            raise ValueError(
                "ranker.prior, item_embeddings and reads: titles are learned by "
                "finetune.objective candidates: set it"
            )
        elif self.instruct.candidate_order != "shuffled":
            raise ValueError(
                f"instruct.candidate_order {self.instruct.candidate_order} needs the retriever's "
                "candidates in training: set finetune.objective candidates"
            )
        if self.instruct.candidate_order == "ranks" and self.evaluate.shuffles:
            raise ValueError(
                "evaluate.shuffles puts the candidates in random orders, in which their numbers "
                "are not the retriever's ranks: set it to 0, or instruct.candidate_order shuffled"
            )
        if self.instruct.answer == "letter":
            self._check_letters()
        if self.finetune.mode == "lora" and self.ranker.lora is None:
            raise ValueError("finetune.mode lora trains adapters: set ranker.lora")
        if self.finetune.mode == "full" and self.ranker.lora is not None:
            raise ValueError("finetune.mode full trains no adapters: set ranker.lora null as well")

    @property
    def ranker_seed(self) -> int:
        """The seed of the ranker's parameters, examples and dropout."""
        return self.seed if self.finetune.seed is None else self.finetune.seed

    def _check_letters(self) -> None:
        instruct, ranker = self.instruct, self.ranker
        needed = {
            "instruct.prompt candidates": instruct.prompt == "candidates",
            "finetune.objective candidates": self.finetune.objective == "candidates",
            "evaluate.decoding score": self.evaluate.decoding == "score",
            "ranker.variants [PALR_v2]": ranker.variants == ("PALR_v2",),
            "ranker.reads choices": ranker.reads == "choices",
        }
        missing = [setting for setting, is_met in needed.items() if not is_met]
        if missing:
            raise ValueError(f"instruct.answer letter: set {', '.join(missing)}")
        if self.retriever.candidates > len(LETTERS):
            raise ValueError(
                f"instruct.answer letter names at most {len(LETTERS)} candidates: lower "
                f"retriever.candidates ({self.retriever.candidates})"
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
        is_scored = self.evaluate.decoding == "score"
        if self.ranker.has_head and not is_scored:
            raise ValueError(
                f"evaluate.decoding {self.evaluate.decoding} uses no prior and no item vectors: "
                "set score"
            )
        if instruct.prompt == "history" and (not is_scored or self.evaluate.shuffles):
            raise ValueError(
                "instruct.prompt history lists no candidates: set evaluate.decoding score and "
                "evaluate.shuffles 0"
            )


def to_dict(config: Config) -> JsonObject:
    """A config as nested plain data, in the form that YAML holds."""
    plain: JsonObject = TypeAdapter(Config).dump_python(config, mode="json")
    return plain


def _check_preset(model: Model, values: dict[str, object]) -> None:
    """Raises a ValueError if values of the `retriever` section are not valid for a model."""
    where = f"retriever_presets.{model}"
    if "model" in values:
        raise ValueError(f"{where}.model: the key of a preset is its model: remove this one")
    try:
        check_keys(values, "retriever_presets", RetrieverConfig, f"{model}.")
        TypeAdapter(RetrieverConfig).validate_python({**values, "model": model})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([where, *map(str, first["loc"])])
        raise ValueError(f"{path}: {first['msg']}, not {shown(first['input'])}") from None
    except UserError as error:
        raise ValueError(str(error)) from None
