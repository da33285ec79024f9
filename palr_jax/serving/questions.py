"""A question about one history, and its answer.

Shapes: C candidates, H history items in a prompt.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.ranking.explain import Lifts


@dataclass(frozen=True)
class Question:
    """One history and the items to rank for it; equal questions have equal answers.

    Attributes:
        history: item indices, oldest first.
        candidates: distinct item indices to rank; None for the retriever's candidates.
        exclude: item indices outside the history that must not be proposed.
        fresh: titles that no item of the run has; they are numbered after its last item.
        explain: whether the answer explains the ranking.
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
        items_C: their item indices; empty if no item is left to propose.
        logp_C: log-probability by retriever and ranker together; by the ranker alone if the
            question names the candidates.
        ranker_C: log-probability by the ranker alone.
        retriever_C: scores by the retriever; None if the question names the candidates.
        profile: the sentence about the user.
        prompt: the text that the ranker read.
        lifts: what the parts of the prompt add, if an explanation was requested.
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
        """Indices into `items_C`, best candidate first."""
        return np.argsort(-self.logp_C, kind="stable")
