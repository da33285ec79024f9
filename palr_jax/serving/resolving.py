"""Converts requests to questions, and answers to responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.data.catalog import By, Catalog, normal_title
from palr_jax.errors import UserError
from palr_jax.ranking.explain import explanation
from palr_jax.recommender import Recommender
from palr_jax.serving import schemas
from palr_jax.serving.limits import FieldError, Limits
from palr_jax.serving.questions import Answer, Question


@dataclass(frozen=True)
class Names:
    """Finds the items that a request names.

    Attributes:
        recommender: of the run.
        limits: of a request.
        by: how items are named.
    """

    recommender: Recommender
    limits: Limits
    by: By

    def items(self, names: Sequence[str], field: str, most: int) -> tuple[int, ...]:
        """The items with these names.

        Raises:
            FieldError: too many names, or one that is not in the catalog.
        """
        self._check(names, field, most)
        return tuple(self._item(name, f"{field}[{n}]") for n, name in enumerate(names))

    def candidates(
        self, names: Sequence[str], field: str, new_titles: bool
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The items with these names; unknown titles are numbered after the last item.

        Returns:
            The items, and the titles that are new.

        Raises:
            FieldError: no names or too many, one that is not in the catalog, or a duplicate.
        """
        self._check(names, field, self.limits.candidates)
        if not names:
            raise FieldError(field, "no candidates: name some")
        if new_titles and self.by == "id":
            raise FieldError("new_titles", "a new item has no id: name items by their titles")
        items: list[int] = []
        fresh: dict[str, int] = {}
        count = len(self.recommender.catalog)
        for number, name in enumerate(names):
            item = self._known(name)
            if item is None and new_titles:
                title = normal_title(name)
                if not title:
                    raise FieldError(f"{field}[{number}]", "an empty title: give it a text")
                item = count + fresh.setdefault(title, len(fresh))
            elif item is None:
                item = self._item(name, f"{field}[{number}]")
            if item in items:
                raise FieldError(f"{field}[{number}]", "this candidate appears twice")
            items.append(item)
        return tuple(items), tuple(fresh)

    def _check(self, names: Sequence[str], field: str, most: int) -> None:
        if len(names) > most:
            raise FieldError(field, f"{len(names)} items: at most {most} are taken")
        for number, name in enumerate(names):
            if len(name) > self.limits.title:
                raise FieldError(
                    f"{field}[{number}]",
                    f"{len(name)} characters: at most {self.limits.title} are taken",
                )

    def _item(self, name: str, field: str) -> int:
        catalog = self.recommender.catalog
        try:
            return catalog.index_by(name, self.by)
        except UserError as error:
            near = catalog.nearest_ids(name) if self.by == "id" else catalog.nearest(name)
            raise FieldError(field, str(error), tuple(near)) from None

    def _known(self, name: str) -> int | None:
        """The item with a name, or None; does not search for similar names."""
        catalog = self.recommender.catalog
        return catalog.find_id(name) if self.by == "id" else catalog.find(name)


def recommend_questions(
    request: schemas.RecommendRequest, recommender: Recommender, limits: Limits
) -> list[Question]:
    """One question per history.

    Raises:
        FieldError: a field of the request cannot be answered.
    """
    count = len(request.histories)
    if not 1 <= count <= limits.histories:
        raise FieldError("histories", f"{count} histories: 1 to {limits.histories} are taken")
    for field in ("candidates", "exclude"):
        lists = getattr(request, field)
        if lists is not None and len(lists) != count:
            raise FieldError(field, f"{len(lists)} lists for {count} histories: give one for each")
    most = recommender.config.retriever.candidates
    if request.candidates is not None:
        most = limits.candidates
    if not 1 <= request.k <= most:
        raise FieldError("k", f"k is {request.k}: it goes from 1 to {most}")
    names = Names(recommender, limits, request.by)
    return [_question(request, names, number) for number in range(count)]


def _question(request: schemas.RecommendRequest, names: Names, number: int) -> Question:
    limits = names.limits
    history = names.items(request.histories[number], f"histories[{number}]", limits.history)
    exclude: tuple[int, ...] = ()
    if request.exclude is not None:
        exclude = names.items(request.exclude[number], f"exclude[{number}]", limits.exclude)
    banned = {*history, *exclude}
    if request.candidates is None:
        extra = tuple(sorted({*exclude} - {*history}))
        return Question(history, exclude=extra, explain=request.explain)
    field = f"candidates[{number}]"
    items, fresh = names.candidates(request.candidates[number], field, request.new_titles)
    left = tuple(item for item in items if item not in banned)
    if not left:
        raise FieldError(
            field, "no candidates are left: name some that are neither in the history nor excluded"
        )
    return Question(history, left, fresh=fresh, explain=request.explain)


def rank_question(
    request: schemas.RankRequest, recommender: Recommender, limits: Limits
) -> Question:
    """The question of /v1/rank.

    Raises:
        FieldError: a field of the request cannot be answered.
    """
    names = Names(recommender, limits, request.by)
    history = names.items(request.history, "history", limits.history)
    items, fresh = names.candidates(request.candidates, "candidates", request.new_titles)
    return Question(history, items, fresh=fresh)


def rerank_question(
    request: schemas.RerankRequest, recommender: Recommender, limits: Limits
) -> tuple[Question, list[int]]:
    """The question of /v1/rerank, and the index of each document among its candidates.

    Equal documents get the same score.

    Raises:
        FieldError: a field of the request cannot be answered.
    """
    if request.top_n is not None and request.top_n < 1:
        raise FieldError("top_n", f"top_n is {request.top_n}: it goes from 1 on")
    names = Names(recommender, limits, "title")
    lines = request.query.splitlines() if isinstance(request.query, str) else request.query
    titles = [line for line in lines if normal_title(line)]
    history = names.items(titles, "query", limits.history)
    texts = document_texts(request)
    unique: dict[int | str, int] = {}
    for number, text in enumerate(texts):
        if not normal_title(text):
            raise FieldError(f"documents[{number}]", "an empty title: give it a text")
        unique.setdefault(_key(recommender.catalog, text), len(unique))
    first = {_key(recommender.catalog, text): text for text in reversed(texts)}
    items, fresh = names.candidates([first[key] for key in unique], "documents", new_titles=True)
    index_of_document = [unique[_key(recommender.catalog, text)] for text in texts]
    return Question(history, items, fresh=fresh), index_of_document


def document_texts(request: schemas.RerankRequest) -> list[str]:
    """The documents as texts."""
    return [one if isinstance(one, str) else one.text for one in request.documents]


def _key(catalog: Catalog, text: str) -> int | str:
    """The item with this title, or the new title; equal for all texts that name the same item."""
    item = catalog.find(text)
    return normal_title(text) if item is None else item


def slate(
    answer: Answer, question: Question, recommender: Recommender, k: int, details: bool
) -> schemas.Slate:
    """The k best items of an answer."""
    name = _namer(recommender, question.fresh)
    order_K = answer.order_C[:k]
    rank_C = None if answer.retriever_C is None else _ranks(answer.retriever_C)
    items = []
    for rank, index in enumerate(order_K, 1):
        item_id, title = name(int(answer.items_C[index]))
        items.append(
            schemas.Item(
                rank=rank,
                item_id=item_id,
                title=title,
                score=float(np.exp(answer.logp_C[index])),
                ranker_score=float(np.exp(answer.ranker_C[index])),
                retriever_rank=None if rank_C is None else int(rank_C[index]),
                explanation=_explained(answer, int(index), recommender),
            )
        )
    return schemas.Slate(items=items, details=_details(answer, name) if details else None)


def ranking(answer: Answer, question: Question, recommender: Recommender) -> list[schemas.Ranked]:
    """All candidates of an answer, best first."""
    name = _namer(recommender, question.fresh)
    ranked = []
    for index in answer.order_C:
        item_id, title = name(int(answer.items_C[index]))
        ranked.append(
            schemas.Ranked(item_id=item_id, title=title, logp=float(answer.logp_C[index]))
        )
    return ranked


def _explained(answer: Answer, index: int, recommender: Recommender) -> schemas.Explanation | None:
    if answer.lifts is None:
        return None
    why = explanation(answer.lifts, answer.profile, index, recommender.catalog.titles)
    return schemas.Explanation(
        profile=why.profile,
        profile_lift=why.profile_lift,
        items=[schemas.Reason(title=title, lift=lift) for title, lift in why.items],
    )


def _details(answer: Answer, name: Callable[[int], tuple[str, str]]) -> schemas.Details:
    proposals = None
    if answer.retriever_C is not None:
        proposals = []
        logp_C = answer.retriever_C - np.logaddexp.reduce(answer.retriever_C, initial=-np.inf)
        for index in np.argsort(-answer.retriever_C, kind="stable"):
            item_id, title = name(int(answer.items_C[index]))
            score = float(np.exp(logp_C[index]))
            proposals.append(schemas.Proposal(item_id=item_id, title=title, score=score))
    return schemas.Details(profile=answer.profile, prompt=answer.prompt, retriever=proposals)


def _ranks(scores_C: np.ndarray) -> np.ndarray:
    """The rank of each score, from 1."""
    rank_C = np.empty(len(scores_C), np.int64)
    rank_C[np.argsort(-scores_C, kind="stable")] = np.arange(1, len(scores_C) + 1)
    return rank_C


def _namer(recommender: Recommender, fresh: Sequence[str]) -> Callable[[int], tuple[str, str]]:
    """A function from an item to its id and title; new items as in `Recommender.with_items`."""
    catalog = recommender.catalog

    def name(item: int) -> tuple[str, str]:
        if item < len(catalog):
            return str(catalog.item_ids[item]), catalog.titles[item]
        number = item - len(catalog)
        return f"new-{number + 1}", fresh[number]

    return name
