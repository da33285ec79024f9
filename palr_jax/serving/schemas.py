"""Requests and answers of the HTTP API, as OpenAPI describes them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from palr_jax.data.catalog import By


def _named(value: Any) -> Any:
    """Ids are often numbers: they are taken as the text they are written as."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Name = Annotated[StrictStr, BeforeValidator(_named)]
Names = list[Name]
_BY = Field(description="what items are named by")


class _Request(BaseModel):
    """A request with a field that is unknown is refused: it may be misspelt."""

    model_config = ConfigDict(extra="forbid")


class RecommendRequest(_Request):
    """The best unseen items for each history."""

    histories: list[Names] = Field(
        description="items of each user, oldest first", examples=[[["Toy Story (1995)"]]]
    )
    k: StrictInt = Field(default=10, description="items of a slate")
    by: Annotated[By, _BY] = "title"
    candidates: list[Names] | None = Field(
        default=None, description="of each user, to be ranked instead of the retriever's"
    )
    exclude: list[Names] | None = Field(
        default=None, description="of each user, items that are not to be recommended"
    )
    explain: StrictBool = Field(default=False, description="say why; costs about 20 times as much")
    new_titles: StrictBool = Field(
        default=False, description="candidates that no item has are ranked by their text"
    )
    details: StrictBool = Field(
        default=False, description="also the prompt, the profile and the retriever's order"
    )


class RankRequest(_Request):
    """Log-probabilities of candidates by the ranker alone."""

    history: Names = Field(description="items, oldest first", examples=[["Toy Story (1995)"]])
    candidates: Names = Field(
        description="items to rank, also such that the history holds",
        examples=[["Heat (1995)", "Babe (1995)"]],
    )
    by: Annotated[By, _BY] = "title"
    new_titles: StrictBool = Field(
        default=False, description="candidates that no item has are ranked by their text"
    )


class Document(BaseModel):
    """A document as some clients send it."""

    text: StrictStr


class RerankRequest(BaseModel):
    """The form that vLLM, Cohere and Jina share; what only one of them knows is ignored."""

    model: str | None = Field(default=None, description="is not looked at")
    query: StrictStr | list[StrictStr] = Field(
        description="a history: one title a line, oldest first, or a list of titles",
        examples=["Toy Story (1995)\nBabe (1995)"],
    )
    documents: list[StrictStr | Document] = Field(
        description="titles; such that no item has are ranked by their text",
        examples=[["Heat (1995)", "A title that nobody has seen (2031)"]],
    )
    top_n: StrictInt | None = Field(default=None, description="results; by default all")
    return_documents: StrictBool = False


class Reason(BaseModel):
    """A part of the prompt, and by how much log P of the item falls without it."""

    title: str
    lift: float


class Explanation(BaseModel):
    """What speaks for an item."""

    profile: str
    profile_lift: float
    items: list[Reason]


class Item(BaseModel):
    """One item of a slate."""

    rank: int
    item_id: str
    title: str
    score: float = Field(description="probability among the candidates")
    ranker_score: float = Field(description="probability by the ranker alone")
    retriever_rank: int | None = Field(description="from 1; null for own candidates")
    explanation: Explanation | None = None


class Proposal(BaseModel):
    """A candidate in the retriever's order."""

    item_id: str
    title: str
    score: float = Field(description="probability by the retriever")


class Details(BaseModel):
    """How a slate came about."""

    profile: str
    prompt: str
    retriever: list[Proposal] | None


class Slate(BaseModel):
    """What one history gets."""

    items: list[Item]
    details: Details | None = None


class RecommendResponse(BaseModel):
    """One slate a history."""

    model: str
    slates: list[Slate]
    seconds: float


class Ranked(BaseModel):
    """A candidate and its log-probability."""

    item_id: str
    title: str
    logp: float


class RankResponse(BaseModel):
    """The candidates, best first."""

    model: str
    ranking: list[Ranked]
    seconds: float


class RerankResult(BaseModel):
    """A document, by its place in the request."""

    index: int
    relevance_score: float = Field(description="probability among the documents")
    document: Document | None = None


class RerankResponse(BaseModel):
    """The documents, best first."""

    id: str
    model: str
    results: list[RerankResult]


class FoundItem(BaseModel):
    """An item of the catalog."""

    item_id: str
    title: str
    categories: list[str]
    interactions: int = Field(description="in the training data")


class ItemsResponse(BaseModel):
    """Items whose titles match a query, the best match first."""

    items: list[FoundItem]


class UserResponse(BaseModel):
    """A user of the data, with all items, oldest first."""

    user_id: str
    items: list[FoundItem]


class UsersResponse(BaseModel):
    """Users of the data."""

    users: list[str]


class Info(BaseModel):
    """The run that is served, and its limits."""

    model: str
    dataset: str
    items: int
    users: int
    retriever: str
    candidates: int
    step: int
    limits: dict[str, float]


class ErrorBody(BaseModel):
    """What is wrong with a request."""

    field: str | None = Field(description="of the request, as histories[0][2]")
    message: str
    nearest: list[str] = Field(default_factory=list, description="names that may have been meant")


class Error(BaseModel):
    """Every answer that is no success."""

    error: ErrorBody


Health = dict[Literal["status"], str]
