"""The `profile` and `instruct` sections of a config: what instructions hold."""

import dataclasses
import string
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]

# Names of candidates with `answer: letter`: each is a token of its own in the usual vocabularies.
LETTERS = string.ascii_uppercase + string.ascii_lowercase


@dataclass(frozen=True)
class ProfileConfig:
    """How the profile sentence of a user is made.

    Attributes:
        kind: source of the keywords: keywords takes the categories of the user's training items;
            llm asks a LLaMA (paper, Figure 2); none leaves the sentence out.
        answer: what the LLaMA of kind llm may answer: categories lets it choose among the
            categories of the items it is shown; free lets it write any text, and falls back on
            kind keywords if no keyword can be read from it, as is usual for small models.
        keywords: most keywords in a sentence.
        weights: an instruction-tuned LLaMA for kind llm, in any form that `ranker.weights` takes.
        batch_size: users per batch, for kind llm.
        new_tokens: longest free answer in tokens, for kind llm.
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
    """The wording of instructions; the defaults follow the paper (section 2.2 and Figure 2).

    A part may use {count} (items to recommend), {kind} and {verb} (`instruct.item_kind` and
    `instruct.verb`), and `profile` also {keywords}. Each part ends with a line break; an empty part
    is left out.

    Attributes:
        recommend: instruction of the task Recommend.
        recommend_retrieval: instruction of the task Recommend_Retrieval.
        profile: sentence about the user's preferences.
        history: line before the history items.
        candidates: line before the candidates.
        answer: line before the label.
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
        user_share: share of the users whose training items the ranker is tuned on; the others
            are new to it.
        history: most history items in a prompt.
        label: most items in a label, and the length of a slate.
        candidates: most candidates in a prompt.
        enrich_history: length to which shorter histories are filled (at most `history`) with items
            of the user's 3-hop affinity (user → item → user → item); 0 disables it.
        enrich_label: length to which shorter labels are filled in the same way; 0 disables it.
        swap: probability that a label item is swapped with a random history item.
        category_negatives: share of the negatives that share a category with the history or a
            target; the others were consumed by the same users.
        retriever_negatives: share of the negatives that are the top items of a retriever for the
            history, trained on the other users; 0 trains none.
        prompt: content of PALR_v2's prompts: candidates is the paper's Recommend_Retrieval with
            instruction, profile and candidate list; history is the list of the user's items alone,
            which the next item continues, so that several moments of a user share one prompt. It
            has no profile, which would summarise the targets too.
        candidate_order: order of the candidates in the prompts that PALR_v2 is tuned on by
            finetune.objective candidates: shuffled; the retriever's; or ranks, the retriever's
            with its rank as a number before each.
        answer: what names the next item in the answer: its title; or a letter, by which the
            candidates are listed, as in LlamaRec (Yue et al. 2023), for prompt candidates.
        moments: newest training items of a user for which a retriever proposes candidates.
        held_out: training data withheld from that retriever: users withholds the tuning users,
            in `folds` parts; time withholds the newest `moments` training items of the tuning
            users.
        folds: number of retrievers for held_out users, each trained on all users but one part of
            the tuning users.
        missed: treatment of a moment whose target is not among the candidates: skip it, or insert
            the target instead of the last candidate.
        item_kind: plural noun for the items in the instructions.
        verb: verb for what users do with items, in the past tense.
        item_style: text of an item: its title, or `ID (title)` if titles say little.
        template: the wording.
        title_tokens: longest item text in tokens; longer titles are cut.
        length: longest prompt with its label in tokens; the oldest history items are dropped to
            fit.
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
    candidate_order: Literal["shuffled", "retriever", "ranks"] = "shuffled"
    answer: Literal["title", "letter"] = "title"
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
            ValueError: no user remains.
        """
        if self.held_out == "users" and self.folds == 1 and self.user_share == 1:
            raise ValueError(
                "held_out users: the retriever of the moments is trained on the users that the "
                "ranker is not tuned on: lower user_share below 1, raise folds, or set held_out "
                "time"
            )
