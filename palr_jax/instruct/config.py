"""What instructions say and how many of them there are."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class ProfileConfig:
    """How the profile sentence of a user is made.

    Attributes:
        kind: keywords, from the categories of the user's training items; none leaves it out.
        keywords: how many keywords at most.
    """

    kind: Literal["keywords", "none"] = "keywords"
    keywords: Annotated[int, Field(ge=1)] = 3


@dataclass(frozen=True)
class InstructConfig:
    """The instruction data (paper, section 3.3).

    Attributes:
        user_share: share of the users whose training items the ranker is tuned on; all others
            are new to it.
        history: most history items in a prompt.
        label: most items in a label, and the length of a slate.
        candidates: most candidates in a prompt.
        category_negatives: share of the negatives that share a category with a target; the rest
            are co-watched with the user's items.
        item_kind: plural noun of the items in the instructions.
        verb: what users do with items, in the past tense.
        item_style: an item is written as its title, or as `ID (title)` where titles say little.
        title_tokens: longest item text in tokens; longer titles are cut.
        length: longest prompt with its label in tokens; the oldest history items give way.
    """

    user_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    history: Annotated[int, Field(ge=1)] = 20
    label: Annotated[int, Field(ge=1)] = 10
    candidates: Annotated[int, Field(ge=10)] = 50
    category_negatives: Share = 0.5
    item_kind: str = "movies"
    verb: str = "watched"
    item_style: Literal["title", "id_title"] = "title"
    title_tokens: Annotated[int, Field(ge=8)] = 32
    length: Annotated[int, Field(ge=64)] = 1024
