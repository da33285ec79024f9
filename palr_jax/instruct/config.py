"""Settings of the instruction data and of user profiles."""

import dataclasses
import string
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class ProfileConfig:
    """How the profile sentence of a user is made.

    Attributes:
        kind: keywords, from the categories of the user's training items; llm, by a LLaMA that
            is asked for keywords (paper, Figure 2); none leaves it out.
        answer: for llm, categories: it chooses among the categories of the items it is shown;
            free: it writes what it likes, and where no keyword can be read from its answer, the
            profile is that of `keywords`. Small models rarely answer a free request.
        keywords: how many keywords at most.
        weights: for llm, a LLaMA that follows instructions: what `ranker.weights` takes.
        batch_size: for llm, users at a time.
        new_tokens: for free answers, the longest in tokens.
    """

    kind: Literal["keywords", "llm", "none"] = "keywords"
    answer: Literal["categories", "free"] = "categories"
    keywords: Annotated[int, Field(ge=1, le=1_000)] = 3
    weights: str | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 8
    new_tokens: Annotated[int, Field(ge=8, le=100_000)] = 64

    def __post_init__(self) -> None:
        if self.kind == "llm" and not self.weights:
            raise ValueError("kind llm needs a LLaMA: name it in profile.weights")


@dataclass(frozen=True)
class TemplateConfig:
    """The wording of instructions; by default close to the paper's (section 2.2 and Figure 2).

    A part may use {count} (number of items to recommend), {kind} and {verb} (`instruct.item_kind`
    and `instruct.verb`); `profile` may also use {keywords}. Every part is a line; an empty part is
    left out.

    Attributes:
        recommend: the instruction of the task Recommend.
        recommend_retrieval: the instruction of the task Recommend_Retrieval.
        profile: the sentence about what the user likes.
        history: precedes the history items.
        candidates: precedes the candidates.
        answer: precedes the label.
    """

    recommend: str = "Recommend {count} other {kind} based on the user's history."
    recommend_retrieval: str = (
        "Recommend {count} other {kind} based on the user's history from the candidate list."
    )
    profile: str = "The user enjoys {keywords} {kind}."
    history: str = "The user {verb} these {kind}:"
    candidates: str = "The candidate {kind} are:"
    answer: str = "Recommendations:"

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            known = {"count", "kind", "verb"} | ({"keywords"} if entry.name == "profile" else set())
            try:
                parsed = list(string.Formatter().parse(getattr(self, entry.name)))
            except ValueError as error:
                raise ValueError(f"{entry.name}: {error}; write {{{{ for a brace") from None
            for _, name, form, conversion in parsed:
                if name is None:
                    continue
                choices = ", ".join(f"{{{word}}}" for word in sorted(known))
                if name not in known:
                    raise ValueError(f"{entry.name}: unknown field {{{name}}}; known are {choices}")
                if form or conversion:
                    written = f"{{{name}{f'!{conversion}' if conversion else ''}:{form}}}"
                    raise ValueError(
                        f"{entry.name}: {written} has a format or conversion; use {choices}"
                    )


@dataclass(frozen=True)
class InstructConfig:
    """The instruction data (paper, section 2.2).

    Attributes:
        user_share: share of the users that the ranker is tuned on; it never sees the others.
        history: maximum number of history items in a prompt.
        label: maximum number of items in a label, and the length of a slate.
        candidates: maximum number of candidates in a prompt.
        enrich_history: shorter histories are filled up to this number of items (at most `history`)
            from the user's 3-hop affinity (user → item → user → item); 0 disables it.
        enrich_label: the same for labels.
        swap: probability that a label item is swapped with a random history item.
        category_negatives: share of the negatives that share a category with the history or a
            target; the rest are co-watched with them.
        retriever_negatives: share of the negatives that are top items of a retriever for the
            history, trained on the other users; 0 trains no such retriever.
        prompt: candidates is the paper's Recommend_Retrieval, with instruction, profile and the
            list of candidates; history holds the user's items only, and the next item continues
            the list, so that many moments of a user share one prompt. It has no profile, which
            would leak the targets, as it summarises all training items.
        candidate_order: order of the list in a prompt: shuffled, or by the retriever's rank.
        moments: moments of a user's training items at which the retriever proposes candidates.
        held_out: what the retriever of the moments is not trained on. users: all items of the
            tuning users, split into `folds` parts; time: the newest `moments` training items of
            the tuning users.
        folds: number of retrievers for held_out users, each trained without one part of the tuning
            users.
        missed: a moment whose target is not among the candidates: skip it, or insert the target
            instead of the last candidate.
        item_kind: plural noun of the items in the instructions.
        verb: what users do with items, in the past tense.
        item_style: an item is written as its title, or as `ID (title)` for titles that are not
            unique or not informative.
        template: the wording.
        title_tokens: maximum length of an item text in tokens; longer titles are cut.
        length: maximum length of a prompt with its label in tokens; the oldest history items are
            dropped to fit.
    """

    user_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    history: Annotated[int, Field(ge=1, le=100_000)] = 20
    label: Annotated[int, Field(ge=1, le=1_000)] = 10
    candidates: Annotated[int, Field(ge=10, le=100_000)] = 50
    enrich_history: Annotated[int, Field(ge=0, le=100_000)] = 3
    enrich_label: Annotated[int, Field(ge=0, le=1_000)] = 3
    swap: Share = 0.05
    category_negatives: Share = 0.5
    retriever_negatives: Share = 0.0
    prompt: Literal["candidates", "history"] = "candidates"
    candidate_order: Literal["shuffled", "retriever"] = "shuffled"
    moments: Annotated[int, Field(ge=1)] = 8
    held_out: Literal["users", "time"] = "users"
    folds: Annotated[int, Field(ge=1)] = 1
    missed: Literal["skip", "insert"] = "skip"
    item_kind: str = "movies"
    verb: str = "watched"
    item_style: Literal["title", "id_title"] = "title"
    template: TemplateConfig = field(default_factory=TemplateConfig)
    title_tokens: Annotated[int, Field(ge=8, le=10_000)] = 32
    length: Annotated[int, Field(ge=64, le=1_000_000)] = 1024

    def __post_init__(self) -> None:
        if self.retriever_negatives:
            self.check_held_out()
        if self.label > self.candidates:
            raise ValueError(
                f"label ({self.label}) must be at most candidates ({self.candidates}), "
                "which hold all items of the label"
            )

    def check_held_out(self) -> None:
        """Checks that some users remain to train the retriever of the moments on.

        Raises:
            ValueError: no users remain.
        """
        if self.held_out == "users" and self.folds == 1 and self.user_share == 1:
            raise ValueError(
                "held_out users: the retriever of the moments is trained on the users that the "
                "ranker is not tuned on: lower user_share below 1, raise folds, or set held_out "
                "time"
            )
