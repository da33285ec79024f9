"""Examples of both tasks as a pure function of (user, seed, epoch).

Shapes: T tokens, M label tokens.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.negatives import NegativeSampler
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class Example:
    """One instruction with its answer.

    Attributes:
        prompt_T: int32, token ids of the prompt.
        label_M: int32, token ids of the answer, the end token last.
    """

    prompt_T: np.ndarray
    label_M: np.ndarray


@dataclass(frozen=True)
class ExampleMaker:
    """Makes the instruction examples of the users that the ranker is tuned on.

    Attributes:
        train: training items per user; validation and test items never come here.
        profiles: one profile sentence per user.
        writer: writes the prompts.
        negatives: fills candidate lists.
        config: sizes.
        retrieval_share: share of examples of the task Recommend_Retrieval (0 gives PALR_v1).
        seed: of the run.
    """

    train: Ragged
    profiles: list[str]
    writer: PromptWriter
    negatives: NegativeSampler
    config: InstructConfig
    retrieval_share: float
    seed: int

    def example(self, user: int, epoch: int) -> Example:
        """The example of a user in an epoch: a random moment splits history from label."""
        rng = np.random.default_rng([self.seed, epoch, user])
        items = self.train[user]
        now = int(rng.integers(1, len(items)))
        history = items[max(0, now - self.config.history) : now]
        targets = items[now : now + self.config.label]
        candidates = None
        if rng.random() < self.retrieval_share:
            candidates = self._candidates(rng, history, targets, items)
        label_M = self.writer.label(targets)
        prompt_T = self.writer.prompt(history, self.profiles[user], candidates, len(label_M))
        return Example(prompt_T, label_M)

    def _candidates(
        self, rng: np.random.Generator, history: np.ndarray, targets: np.ndarray, items: np.ndarray
    ) -> np.ndarray:
        """All targets and hard negatives, shuffled so that their order says nothing."""
        anchors = np.concatenate([history, targets])
        negatives = self.negatives.draw(rng, anchors, items, self.config.candidates - len(targets))
        return rng.permutation(np.concatenate([targets, negatives]))


def tuning_users(train: Ragged, share: float, seed: int) -> np.ndarray:
    """The users that the ranker is tuned on, ascending, at least one (paper, section 4.1).

    A user needs two training items, one to know and one to recommend.

    Raises:
        UserError: no user has two.
    """
    able = np.flatnonzero(train.lengths_R >= 2)
    if not len(able):
        raise UserError("no user has two training items: raise data.min_count to at least 4")
    count = min(len(able), max(1, round(share * len(train))))
    return np.sort(np.random.default_rng([seed, len(train)]).choice(able, count, replace=False))
