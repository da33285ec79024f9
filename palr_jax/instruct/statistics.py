"""A summary of the instruction data, and single examples as text.

Shapes: N examples.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.instruct.examples import ExampleMaker
from palr_jax.instruct.moments import MomentExample, MomentMaker
from palr_jax.instruct.packing import Example, Packing, best_fit
from palr_jax.instruct.pipeline import WINDOW, visit, window_examples
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged

# Maximum number of windows: enough for shares accurate to a tenth of a percent.
_MOST_WINDOWS = 10


@dataclass(frozen=True)
class Statistics:
    """Sizes and shares of the examples of one epoch, or of its first windows if it is long.

    Attributes:
        examples: number of examples measured.
        tokens_median: median number of tokens of an example, including its label.
        tokens_95: 95th percentile of the same.
        label: share of the tokens that are label tokens.
        padding: share of the slots of packed rows that are padding.
        enriched: share of the examples with items of the 3-hop affinity.
        swapped: share of the examples with items swapped between history and label.
    """

    examples: int
    tokens_median: float
    tokens_95: float
    label: float
    padding: float
    enriched: float
    swapped: float

    def __str__(self) -> str:
        """The statistics in one line."""
        return (
            f"{self.examples:,} examples of {self.tokens_median:,.0f} tokens (median; 95%: "
            f"{self.tokens_95:,.0f}), label tokens {self.label:.1%}, padding {self.padding:.1%}, "
            f"enriched {self.enriched:.1%}, swapped {self.swapped:.1%}"
        )


def measure(maker: ExampleMaker, users: np.ndarray, packing: Packing) -> Statistics:
    """Makes and packs the windows of an epoch, at most ten.

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


@dataclass(frozen=True)
class MomentStatistics:
    """Sizes of the examples with moments of one epoch.

    Attributes:
        examples: number of examples measured.
        tokens_median: median number of tokens of an example.
        moments: mean number of moments of an example.
        edges: mean number of edges of a moment, the alternatives on the path to its target.
        padding: share of the slots of packed rows that are padding.
    """

    examples: int
    tokens_median: float
    moments: float
    edges: float
    padding: float

    def __str__(self) -> str:
        """The statistics in one line."""
        return (
            f"{self.examples:,} examples of {self.tokens_median:,.0f} tokens (median) and "
            f"{self.moments:.1f} moments (mean), {self.edges:.1f} edges a moment, padding "
            f"{self.padding:.1%}"
        )


def measure_moments(maker: MomentMaker, users: np.ndarray, packing: Packing) -> MomentStatistics:
    """Makes and packs the first window of an epoch.

    Raises:
        UserError: an example does not fit even without history.
    """
    examples = list(visit(maker, users, 0, min(len(users), WINDOW)))
    tokens_N = np.array([len(example.tokens_T) for example in examples])
    count_N = np.array([len(example.moments) for example in examples])
    rows = int(best_fit(tokens_N, count_N, packing).max()) + 1
    edges = [len(moment.choices.token_E) for example in examples for moment in example.moments]
    return MomentStatistics(
        examples=len(examples),
        tokens_median=float(np.median(tokens_N)),
        moments=float(count_N.mean()),
        edges=float(np.mean(edges)),
        padding=float(1 - tokens_N.sum() / (rows * packing.length)),
    )


def moment_text(example: MomentExample, tokenizer: Tokenizer, items: Ragged) -> str:
    """An example as text, with the target of each moment between « and »."""
    parts, start = [], 0
    for moment in example.moments:
        target = tokenizer.decode(items[int(moment.item_S[moment.choices.target])]).strip()
        candidates = len(moment.item_S)
        rank = int((moment.prior_S > moment.prior_S[moment.choices.target]).sum()) + 1
        parts.append(tokenizer.decode(example.tokens_T[start : moment.index + 1]))
        parts.append(f"«{target}: {rank} of {candidates} by the retriever»\n")
        start = moment.index + 1 + len(moment.choices.fed_F)
    return "".join([*parts, tokenizer.decode(example.tokens_T[start:])])


def marked_text(example: Example, tokenizer: Tokenizer) -> str:
    """An example as text: the prompt, then the label tokens between « and »."""
    label = tokenizer.decode(example.label_M[:-1])
    return f"{tokenizer.decode(example.prompt_T)}«{label}<end>»"
