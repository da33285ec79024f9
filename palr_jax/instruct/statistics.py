"""What the instruction data looks like: in numbers, and as text.

Shapes: N examples.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.instruct.examples import Example, ExampleMaker
from palr_jax.instruct.packing import Packing, best_fit
from palr_jax.instruct.pipeline import WINDOW, window_examples
from palr_jax.llm.tokenizer import Tokenizer

# Windows that statistics look at: enough for shares to the tenth of a percent.
_MOST_WINDOWS = 10


@dataclass(frozen=True)
class Statistics:
    """Sizes and shares of the examples of one epoch, or of its beginning if it is long.

    Attributes:
        examples: that were looked at.
        tokens_median: tokens of an example, its label included.
        tokens_95: 95 of 100 examples have no more tokens.
        label: share of the tokens that are label tokens.
        padding: share of the places in packed rows that hold no token.
        enriched: share of the examples with items of the 3-hop affinity.
        swapped: share of the examples where history and label have exchanged items.
    """

    examples: int
    tokens_median: float
    tokens_95: float
    label: float
    padding: float
    enriched: float
    swapped: float

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.examples:,} examples of {self.tokens_median:,.0f} tokens (median; 95%: "
            f"{self.tokens_95:,.0f}), label tokens {self.label:.1%}, padding {self.padding:.1%}, "
            f"enriched {self.enriched:.1%}, swapped {self.swapped:.1%}"
        )


def measure(maker: ExampleMaker, users: np.ndarray, packing: Packing) -> Statistics:
    """Makes and packs the windows of an epoch, ten of them at most.

    Raises:
        UserError: an example does not fit even without history.
    """
    windows = min(-(-len(users) // WINDOW), _MOST_WINDOWS)
    tokens, labels, enriched, swapped = [], [], [], []
    rows = 0
    for window in range(windows):
        examples = window_examples(maker, users, window)
        label_N = np.array([len(example.label_M) for example in examples])
        token_N = np.array([len(example.prompt_T) for example in examples]) + label_N - 1
        rows += int(best_fit(token_N, label_N, packing).max()) + 1
        tokens.append(token_N)
        labels.append(label_N)
        enriched += [example.enriched for example in examples]
        swapped += [example.swapped for example in examples]
    all_N = np.concatenate(tokens)
    return Statistics(
        examples=len(all_N),
        tokens_median=float(np.median(all_N)),
        tokens_95=float(np.percentile(all_N, 95)),
        label=float(np.concatenate(labels).sum() / all_N.sum()),
        padding=float(1 - all_N.sum() / (rows * packing.length)),
        enriched=float(np.mean(enriched)),
        swapped=float(np.mean(swapped)),
    )


def marked_text(example: Example, tokenizer: Tokenizer) -> str:
    """An example as text: the prompt, then the label tokens between « and »."""
    label = tokenizer.decode(example.label_M[:-1])
    return f"{tokenizer.decode(example.prompt_T)}«{label}<end>»"
