"""The `finetune` section of a config."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from palr_jax.llm.config import Remat

Positive = Annotated[int, Field(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of the ranker.

    Attributes:
        objective: loss of PALR_v2: tokens is the cross-entropy of the label's tokens, as in the
            paper; candidates is -log P(next item) over the retriever's candidates, the probability
            that `evaluate.decoding: score` ranks by. Tokens that the candidates force cost nothing
            in it: it is a softmax over the tokens that may follow (MSL, Wang et al. 2025).
        prior_dropout: share of moments without the retriever's prior, for objective candidates, so
            that the ranker also learns to rank without it.
        text_loss: weight of each token of a prompt's text, relative to a moment, for objective
            candidates. It teaches a small model to write histories, which reduces overfitting; 0
            disables it.
        validation_share: share of the tuning users that are held out, for objective candidates.
            Their loss selects the checkpoint and stops training early.
        validate_every: steps between two validations.
        patience: validations without a lower loss before training stops.
        mode: lora trains the adapters of `ranker.lora` on frozen weights, full trains all weights;
            null does what `ranker.lora` says. A mode that contradicts `ranker.lora` is refused.
        seed: seed of the ranker's parameters, examples and dropout; null takes that of the run.
            Rankers of several seeds can share one retriever.
        steps: optimizer steps.
        batch_size: packed rows per step.
        streams: independent streams of rows that a batch is composed of. A process makes the
            streams whose rows its devices hold, so use at least one per process. The number of
            streams changes which rows are in a batch, the number of processes does not.
        accumulate: parts that a batch is computed in, one after the other: the same step in the
            memory of one part.
        remat: activations that the backward pass recomputes: none, all but the outputs of products
            with weights (dots), or all but the inputs of layers (full). With mesh.fsdp > 1, none
            acts as dots: gathered weights are not stored.
        length: tokens per row; at least `instruct.length`.
        label_length: most label tokens per row; logits are computed for these alone.
        moments: most moments per row, for objective candidates. Of a user with more moments
            (`instruct.moments`), each epoch draws this many consecutive ones.
        learning_rate: peak learning rate of AdamW; a cosine schedule ends at a tenth of it.
        warmup_steps: steps of linear warm-up.
        weight_decay: weight decay of AdamW.
        clip_norm: global norm that gradients are clipped to.
        save_every: steps between two checkpoints.
        keep: newest checkpoints that are kept, in addition to the one with the lowest mean loss
            since the checkpoint before it.
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
