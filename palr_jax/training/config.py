"""Settings of fine-tuning."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from palr_jax.llm.config import Remat

Positive = Annotated[int, Field(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of the ranker.

    Attributes:
        objective: loss of PALR_v2. tokens is the cross-entropy of the label's tokens, as in the
            paper. candidates is -log P(next item) over the retriever's candidates, the probability
            that `decoding: score` ranks by: at each token the softmax is over the tokens that can
            continue a candidate (MSL, Wang et al. 2025), so forced tokens have no loss.
        prior_dropout: objective candidates only: share of moments whose prior is replaced by a
            uniform one, so that the ranker also learns to rank without it.
        text_loss: objective candidates only: weight of a token of a prompt's text, relative to a
            moment's 1. It teaches a small model to write histories, so that it overfits less in
            ranking; 0 disables it.
        validation_share: objective candidates only: share of the tuning users that are held out.
            Their loss selects the checkpoint and stops training early.
        validate_every: steps between two validations.
        patience: validations without a lower loss before training stops.
        mode: lora trains the adapters of ranker.lora and freezes the weights; full trains all
            weights and makes no adapters. The default is lora if ranker.lora is set.
        seed: seed of the ranker's parameters and examples; by default that of the run. Rankers with
            different seeds can share one retriever.
        steps: optimizer steps.
        batch_size: packed rows per step.
        streams: number of row streams that a batch is concatenated from. A process makes only the
            streams whose rows its devices hold, so use more streams for more processes. The number
            of streams decides which rows are in a batch; the number of processes does not.
        accumulate: number of parts that a batch is computed in, one after the other; the update is
            the same and needs the memory of one part.
        remat: what the backward pass recomputes instead of storing: nothing (none), all but the
            products with weights (dots), or everything but the input of each layer (full). With
            fsdp > 1, none acts as dots: gathered weights are not stored.
        length: tokens per row; at least instruct.length.
        label_length: maximum number of label tokens per row; only these get logits.
        moments: objective candidates only: maximum number of moments per row.
        learning_rate: peak of AdamW's cosine schedule, which ends at a tenth of it.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's weight decay.
        clip_norm: gradients are scaled down to this global norm.
        save_every: steps between two checkpoints.
        keep: number of newest checkpoints to keep, in addition to the one with the lowest mean loss
            since its predecessor.
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
