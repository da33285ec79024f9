"""Examples of both tasks as a pure function of (user, seed, epoch).

Shapes: M label tokens, H history items, L label items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.negatives import NegativeSampler, Retrieved
from palr_jax.instruct.packing import Example, Packing, pack
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class ExampleMaker:
    """Makes the instruction examples of the users that the ranker is tuned on.

    Attributes:
        train: training items per user, without validation and test items.
        profiles: one profile sentence per user.
        writer: writes the prompts.
        negatives: fills candidate lists.
        nearby: per user, items of its 3-hop affinity.
        retrieved: the retriever's top items at some moments of each user; examples then split only
            at these moments. None without retriever negatives.
        config: sizes and rates.
        retrieval_share: share of examples of the task Recommend_Retrieval (0 gives PALR_v1).
        seed: random seed of the run.
    """

    train: Ragged
    profiles: list[str]
    writer: PromptWriter
    negatives: NegativeSampler
    nearby: Ragged
    retrieved: Retrieved | None
    config: InstructConfig
    retrieval_share: float
    seed: int

    def example(self, user: int, epoch: int) -> Example:
        """The example of a user in an epoch: a random moment splits history from label."""
        rng = np.random.default_rng([self.seed, epoch, user])
        items = self.train[user]
        proposed = None
        if self.retrieved:
            now, proposed = self.retrieved.draw(rng, user)
        else:
            now = int(rng.integers(1, len(items)))
        history_H = items[max(0, now - self.config.history) : now]
        target_L = items[now : now + self.config.label]
        before, after = self._fill(rng, user, len(history_H), len(target_L))
        history_H = np.concatenate([before, history_H])
        target_L = np.concatenate([target_L, after])
        swapped = self._swap(rng, history_H, target_L)
        candidates = None
        if rng.random() < self.retrieval_share:
            negatives = self.negatives.draw(
                rng,
                anchors=np.concatenate([history_H, target_L]),
                excluded=np.concatenate([items, before, after]),
                count=self.config.candidates - len(target_L),
                retrieved=proposed,
            )
            # Shuffled, so that the order of the candidates does not reveal the targets.
            candidates = rng.permutation(np.concatenate([target_L, negatives]))
        label_M = self.writer.label(target_L)
        prompt = self.writer.prompt(history_H, self.profiles[user], candidates, len(label_M))
        return Example(prompt.tokens_T, label_M, bool(len(before) or len(after)), swapped)

    def pack(
        self, examples: Sequence[Example], packing: Packing, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Packs examples; see `palr_jax.instruct.packing.pack`."""
        return pack(examples, packing, rng)

    def _fill(
        self, rng: np.random.Generator, user: int, history: int, label: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items to put before a short history and after a short label."""
        config = self.config
        short_history = max(0, min(config.enrich_history, config.history) - history)
        short_label = max(0, min(config.enrich_label, config.label) - label)
        if not short_history + short_label:
            return _NO_ITEMS, _NO_ITEMS
        nearby = rng.permutation(self.nearby[user])
        return nearby[:short_history], nearby[short_history : short_history + short_label]

    def _swap(self, rng: np.random.Generator, history_H: np.ndarray, target_L: np.ndarray) -> bool:
        """Swaps some label items with random history items, in-place; returns whether any was."""
        if not self.config.swap:
            return False
        chosen = np.flatnonzero(rng.random(len(target_L)) < self.config.swap)[: len(history_H)]
        swapped = rng.permutation(len(history_H))[: len(chosen)]
        history_H[swapped], target_L[chosen] = target_L[chosen], history_H[swapped]
        return len(chosen) > 0


_NO_ITEMS = np.zeros(0, np.int32)


def tuning_users(train: Ragged, share: float, seed: int) -> np.ndarray:
    """The users that the ranker is tuned on, ascending, at least one (paper, section 2.2).

    A user needs two training items, one for the history and one to recommend.

    Raises:
        UserError: no user has two training items.
    """
    eligible = np.flatnonzero(train.lengths_R >= 2)
    if not len(eligible):
        raise UserError("no user has two training items: raise data.min_count to at least 4")
    count = min(len(eligible), max(1, round(share * len(train))))
    return np.sort(np.random.default_rng([seed, len(train)]).choice(eligible, count, replace=False))
