"""Requests and answers of the HTTP API, as OpenAPI describes them."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from palr_jax.data.catalog import By


def _named(value: object) -> object:
    """Converts numbers to text, as ids are often numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Name = Annotated[StrictStr, BeforeValidator(_named)]
Names = list[Name]
_BY = Field(description="how items are named: by title or by id")


class _Request(BaseModel):
    """The base of requests; an unknown field, which may be misspelt, is refused."""

    model_config = ConfigDict(extra="forbid")


class RecommendRequest(_Request):
    """A request for the best unseen items of each history."""

    histories: list[Names] = Field(
        description="items of each user, oldest first", examples=[[["Toy Story (1995)"]]]
    )
    k: StrictInt = Field(default=10, description="items of a slate")
    by: Annotated[By, _BY] = "title"
    candidates: list[Names] | None = Field(
        default=None, description="per history, items to rank instead of the retriever's candidates"
    )
    exclude: list[Names] | None = Field(
        default=None, description="per history, items that must not be recommended"
    )
    explain: StrictBool = Field(
        default=False, description="explain each item; scores one more prompt per history item"
    )
    new_titles: StrictBool = Field(
        default=False, description="rank titles that are not in the catalog by their text"
    )
    details: StrictBool = Field(
        default=False, description="include the prompt, the profile and the retriever's order"
    )


class RankRequest(_Request):
    """A request for log-probabilities of candidates by the ranker alone."""

    history: Names = Field(description="items, oldest first", examples=[["Toy Story (1995)"]])
    candidates: Names = Field(
        description="items to rank; items of the history are allowed",
        examples=[["Heat (1995)", "Babe (1995)"]],
    )
    by: Annotated[By, _BY] = "title"
    new_titles: StrictBool = Field(
        default=False, description="rank titles that are not in the catalog by their text"
    )


class Document(BaseModel):
    """A document as some clients send it."""

    text: StrictStr


class RerankRequest(BaseModel):
    """The form that vLLM, Cohere and Jina share; fields of only one of them are ignored."""

    model: str | None = Field(default=None, description="ignored")
    query: StrictStr | list[StrictStr] = Field(
        description="a history: one title per line, oldest first, or a list of titles",
        examples=["Toy Story (1995)\nBabe (1995)"],
    )
    documents: list[StrictStr | Document] = Field(
        description="titles; those that are not in the catalog are ranked by their text",
        examples=[["Heat (1995)", "A title that nobody has seen (2031)"]],
    )
    top_n: StrictInt | None = Field(default=None, description="number of results; by default all")
    return_documents: StrictBool = False


class Reason(BaseModel):
    """A history item, and the decrease of log P of the recommended item without it."""

    title: str
    lift: float


class Explanation(BaseModel):
    """Why an item is recommended."""

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
    """The inputs of a slate."""

    profile: str
    prompt: str
    retriever: list[Proposal] | None


class Slate(BaseModel):
    """The recommendations for one history."""

    items: list[Item]
    details: Details | None = None


class RecommendResponse(BaseModel):
    """One slate per history."""

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
    """A document, by its index in the request."""

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
    """The served run and the limits of a request."""

    model: str
    dataset: str
    items: int
    users: int
    retriever: str
    candidates: int
    step: int
    limits: dict[str, float]


class ErrorBody(BaseModel):
    """The reason why a request failed."""

    field: str | None = Field(description="path of the faulty field, such as histories[0][2]")
    message: str
    nearest: list[str] = Field(default_factory=list, description="names that may have been meant")


class Error(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorBody


Health = dict[Literal["status"], str]
