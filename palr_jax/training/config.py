"""How long and how fast a ranker is tuned."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from palr_jax.llm.config import Remat

Positive = Annotated[int, Field(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of the ranker.

    Attributes:
        mode: lora trains the adapters of ranker.lora on frozen weights, full trains all weights
            and makes no adapters; by default lora if ranker.lora is set.
        steps: optimizer steps.
        batch_size: packed rows in a step.
        streams: of rows that a batch is put together from. A process makes the streams whose rows
            its devices hold, so that many processes want many; their number decides which rows
            are in a batch, that of the processes does not.
        accumulate: parts that a batch is run in, one after the other; the step is the same, and
            takes the memory of one part.
        remat: what the backward pass computes once more instead of keeping it: none, all but the
            products with weights (dots), or everything but the input of each layer (full). On a
            mesh with fsdp none is dots: weights that were put together are not kept.
        length: tokens in a row; at least instruct.length.
        label_length: label tokens in a row at most; logits are computed for these alone.
        learning_rate: peak of AdamW's cosine schedule, which ends at a tenth of it.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this global norm.
        save_every: steps between two checkpoints.
        keep: newest checkpoints that are kept, beside the one with the lowest mean loss since the
            checkpoint before it.
        log_every: steps between two lines in metrics.jsonl.
    """

    mode: Literal["lora", "full"] | None = None
    steps: Annotated[int, Field(ge=1, le=1_000_000_000)] = 200
    batch_size: Positive = 8
    streams: Positive = 1
    accumulate: Positive = 1
    remat: Remat = "none"
    length: Positive = 1024
    label_length: Positive = 384
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 20
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    save_every: Annotated[int, Field(ge=1, le=1_000_000_000)] = 50
    keep: Positive = 2
    log_every: Annotated[int, Field(ge=1, le=1_000_000_000)] = 10

    def __post_init__(self) -> None:
        for name, parts in (("accumulate", self.accumulate), ("streams", self.streams)):
            if self.batch_size % parts:
                raise ValueError(f"{name} ({parts}) must divide batch_size ({self.batch_size})")
