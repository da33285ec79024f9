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
        objective: of PALR_v2: tokens is the cross-entropy of the label's tokens, as in the paper;
            candidates is -log P(next item) over the retriever's candidates, the probability that
            `decoding: score` ranks by. Tokens that the candidates force cost nothing in it: it is
            the softmax over the tokens that may follow (MSL, Wang et al. 2025), with the
            candidates as what may be written.
        prior_dropout: of objective candidates: share of moments at which the prior says nothing,
            so that the ranker also learns to rank without it.
        text_loss: of objective candidates: weight of a token of a prompt's text beside the 1 of a
            moment. It teaches a small model to write histories, so that it overfits less in
            ranking; 0 leaves it out.
        validation_share: of objective candidates: share of the tuning users that are held out of
            tuning. Their loss chooses the checkpoint, and stops training early.
        validate_every: steps between two looks at held-out users.
        patience: looks without a lower loss before training stops.
        mode: lora trains the adapters of ranker.lora on frozen weights, full trains all weights
            and makes no adapters; by default lora if ranker.lora is set.
        seed: of the ranker's parameters and examples; by default that of the run. Rankers of
            several seeds can share one retriever.
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
        moments: of objective candidates: moments in a row at most.
        learning_rate: peak of AdamW's cosine schedule, which ends at a tenth of it.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this global norm.
        save_every: steps between two checkpoints.
        keep: newest checkpoints that are kept, beside the one with the lowest mean loss since the
            checkpoint before it.
        log_every: steps between two lines in metrics.jsonl.
    """

    objective: Literal["tokens", "candidates"] = "tokens"
    prior_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    text_loss: Annotated[float, Field(ge=0)] = 0.0
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validate_every: Positive = 50
    patience: Positive = 5
    mode: Literal["lora", "full"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    steps: Annotated[int, Field(ge=1, le=1_000_000_000)] = 200
    batch_size: Positive = 8
    streams: Positive = 1
    accumulate: Positive = 1
    remat: Remat = "none"
    length: Positive = 1024
    label_length: Positive = 384
    moments: Positive = 32
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
