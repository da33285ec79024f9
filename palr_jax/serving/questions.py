"""What is asked about one history, and what is answered.

Shapes: C candidates, H history items in a prompt.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.ranking.explain import Lifts


@dataclass(frozen=True)
class Question:
    """One history and what is to be ranked for it; equal questions have equal answers.

    Attributes:
        history: item indices, oldest first.
        candidates: item indices to rank, none twice; None for those that the retriever proposes.
        exclude: item indices outside the history that are not to be proposed.
        fresh: titles that no item of the run has: they are numbered after its last item.
        explain: whether the answer says why.
    """

    history: tuple[int, ...]
    candidates: tuple[int, ...] | None = None
    exclude: tuple[int, ...] = ()
    fresh: tuple[str, ...] = ()
    explain: bool = False


@dataclass(frozen=True)
class Answer:
    """The candidates of one question, in the order of the retriever or of the question.

    Attributes:
        items_C: their item indices; empty where no item is left to propose.
        logp_C: log-probability by retriever and ranker together; by the ranker alone where the
            question names the candidates.
        ranker_C: log-probability by the ranker alone.
        retriever_C: scores by the retriever; None where the question names the candidates.
        profile: the sentence about the user.
        prompt: the text that the ranker read.
        lifts: what the parts of the prompt add, if that was asked.
    """

    items_C: np.ndarray
    logp_C: np.ndarray
    ranker_C: np.ndarray
    retriever_C: np.ndarray | None
    profile: str
    prompt: str
    lifts: Lifts | None = None

    @property
    def order_C(self) -> np.ndarray:
        """The candidates from the best on, as places in `items_C`."""
        return np.argsort(-self.logp_C, kind="stable")
