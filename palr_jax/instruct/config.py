"""What instructions say and how many of them there are."""

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
    """The wording of instructions; by default the paper's (Table 1 and section 3.3).

    A part may use {count} (items to recommend), {kind} and {verb} (`instruct.item_kind` and
    `instruct.verb`), and `profile` also {keywords}. Every part ends its line; an empty one is
    left out.

    Attributes:
        recommend: the instruction of the task Recommend.
        recommend_retrieval: the instruction of the task Recommend_Retrieval.
        profile: the sentence about what the user likes.
        history: stands before the history items.
        candidates: stands before the candidates.
        answer: stands before the label.
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
                        f"{entry.name}: {written} says more than a name; use {choices}"
                    )


@dataclass(frozen=True)
class InstructConfig:
    """The instruction data (paper, section 3.3).

    Attributes:
        user_share: share of the users whose training items the ranker is tuned on; all others
            are new to it.
        history: most history items in a prompt.
        label: most items in a label, and the length of a slate.
        candidates: most candidates in a prompt.
        enrich_history: histories of fewer items are filled up to so many (but no more than
            `history`) with items of the user's 3-hop affinity (user → item → user → item); 0
            for none.
        enrich_label: the same for labels.
        swap: probability of a label item to change places with a random history item.
        category_negatives: share of the negatives that share a category with the history or a
            target; the rest are co-watched with them.
        retriever_negatives: share of the negatives that are the retriever's own top items for
            the history, made by one that is trained on the other users; 0 trains none.
        prompt: candidates is the paper's Recommend_Retrieval, with instruction, profile and the
            list of candidates; history holds the user's items alone, and the next item continues
            the list, so that many moments of a user share one prompt. It has no profile, which
            would sum up the targets with all other training items.
        candidate_order: of the list in a prompt: shuffled, or as the retriever ranks.
        moments: moments of a user's training items at which the retriever proposes candidates.
        held_out: what the retriever of the moments is not trained on: users, whole tuning users,
            in `folds` parts; time, the newest `moments` training items of the tuning users.
        folds: retrievers for held_out users, each trained on all users but a part of the tuning
            users.
        missed: of a moment whose target is not among the candidates: skip it, or insert the target
            in place of the last candidate.
        item_kind: plural noun of the items in the instructions.
        verb: what users do with items, in the past tense.
        item_style: an item is written as its title, or as `ID (title)` where titles say little.
        template: the wording.
        title_tokens: longest item text in tokens; longer titles are cut.
        length: longest prompt with its label in tokens; the oldest history items give way.
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
        """Checks that users remain to train the retriever of the moments on.

        Raises:
            ValueError: none do.
        """
        if self.held_out == "users" and self.folds == 1 and self.user_share == 1:
            raise ValueError(
                "held_out users: the retriever of the moments is trained on the users that the "
                "ranker is not tuned on: lower user_share below 1, raise folds, or set held_out "
                "time"
            )
