"""The `evaluate` section of a config: how rankers are evaluated."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[int, Field(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class EvaluateConfig:
    """How rankers are evaluated.

    Attributes:
        decoding: how PALR_v2 ranks: score ranks all candidates in one forward pass; the others
            write the slate item by item, as the paper does: generate takes the most probable token
            at each choice, beam the most probable item, sample draws tokens. PALR_v1 always writes.
        temperature: divides the logits when decoding is sample.
        shuffles: random orders of the candidates that each user is ranked with; probabilities are
            averaged over them, at as many times the cost. 0 ranks once, in the retriever's order.
        width: beam width with which PALR_v1 writes an item; 1 is greedy.
        batch_size: users per batch.
        users: number of users that every row of the results covers, drawn at random; null covers
            all.
        controls: also rank with reordered candidates, shuffled histories and exchanged titles, to
            show what carries the result.
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
