"""The HTTP API and the page, as an ASGI application."""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import islice
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from palr_jax.errors import UserError
from palr_jax.ranking.ranker import NotNumbersError
from palr_jax.recommender import Recommender
from palr_jax.run_directory import VERSION
from palr_jax.serving import resolving, schemas
from palr_jax.serving.batcher import BusyError
from palr_jax.serving.catalog_search import CatalogSearch
from palr_jax.serving.guards import BodyLimits, Keys, Observed, SecurityHeaders
from palr_jax.serving.limits import FieldError
from palr_jax.serving.questions import Answer, Question
from palr_jax.serving.service import NotReadyError, Service, reason_of

_log = logging.getLogger("palr")
_Result = TypeVar("_Result")
_PAGE = files("palr_jax.serving") / "page"
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error, "description": text}
    for status, text in {
        400: "the body is not JSON",
        401: "an API key is required",
        408: "the body arrived too slowly",
        413: "the body is too large",
        422: "a field is invalid; the error names it",
        503: "not ready, or the queue is full: Retry-After says when to ask again",
    }.items()
}


class _GoneError(Exception):
    """The client has disconnected."""


def create_app(service: Service, started: Callable[[], None] = lambda: None) -> FastAPI:
    """The application around a service, which it starts and stops.

    Args:
        service: of a run.
        started: called once the service is ready or has failed.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def start() -> None:
            await service.start()
            started()

        task = asyncio.create_task(start())
        yield
        await service.stop()
        await task

    app = FastAPI(
        title="PALR", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Recommendations by a retriever and a LLaMA that ranks its candidates.",
    )  # fmt: skip
    _add_answers(app, service)
    _add_catalog(app, service)
    _add_health(app, service)
    _add_page(app)
    _add_errors(app)
    settings = service.settings
    if settings.api_keys:
        app.add_middleware(Keys, keys=settings.api_keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"], allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    limits = settings.limits
    app.add_middleware(BodyLimits, most=limits.body_bytes, seconds=limits.body_seconds)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Observed, metrics=service.metrics)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> schemas.Health:
        """Whether the process is alive; 500 once the server cannot recover."""
        if service.state == "failed":
            raise HTTPException(500, "failed")
        return {"status": "alive"}

    @app.get("/readyz", tags=["health"], responses={503: _ERRORS[503]})
    async def readyz() -> schemas.Health:
        """Whether the server is ready: the run is loaded and its programs are compiled."""
        if service.state == "compiling":
            raise NotReadyError(f"compiling: {service.progress:.0%}")
        if service.state != "ready":
            raise NotReadyError(service.state)
        return {"status": "ready"}

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(service.metrics_text(), media_type="text/plain; version=0.0.4")


def _add_answers(app: FastAPI, service: Service) -> None:
    limits = service.settings.limits

    @app.post("/v1/recommend", tags=["answers"], responses=_ERRORS)
    async def recommend(
        body: schemas.RecommendRequest, request: Request
    ) -> schemas.RecommendResponse:
        """The k best unseen items for each history."""
        start, recommender = time.monotonic(), service.recommender
        questions = await asyncio.to_thread(
            resolving.recommend_questions, body, recommender, limits
        )
        answers = await _answers(service, request, questions)
        slates = [
            resolving.slate(answer, question, recommender, body.k, body.details)
            for answer, question in zip(answers, questions, strict=True)
        ]
        return schemas.RecommendResponse(
            model=recommender.config.name, slates=slates, seconds=time.monotonic() - start
        )

    @app.post("/v1/rank", tags=["answers"], responses=_ERRORS)
    async def rank(body: schemas.RankRequest, request: Request) -> schemas.RankResponse:
        """The given candidates, best first, with log P(candidate | history) by the ranker alone."""
        start, recommender = time.monotonic(), service.recommender
        question = await asyncio.to_thread(resolving.rank_question, body, recommender, limits)
        (answer,) = await _answers(service, request, [question])
        return schemas.RankResponse(
            model=recommender.config.name,
            ranking=resolving.ranking(answer, question, recommender),
            seconds=time.monotonic() - start,
        )

    @app.post("/v2/rerank", tags=["answers"], responses=_ERRORS)
    @app.post("/v1/rerank", tags=["answers"], responses=_ERRORS)
    async def rerank(body: schemas.RerankRequest, request: Request) -> schemas.RerankResponse:
        """Documents by relevance to a query, in the form that vLLM, Cohere and Jina share."""
        recommender = service.recommender
        question, index_of_document = await asyncio.to_thread(
            resolving.rerank_question, body, recommender, limits
        )
        (answer,) = await _answers(service, request, [question])
        return _reranked(body, answer, index_of_document, recommender)


def _reranked(
    body: schemas.RerankRequest,
    answer: Answer,
    index_of_document: list[int],
    recommender: Recommender,
) -> schemas.RerankResponse:
    texts = resolving.document_texts(body)
    scores = [math.exp(answer.logp_C[index]) for index in index_of_document]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results = [
        schemas.RerankResult(
            index=index,
            relevance_score=scores[index],
            document=schemas.Document(text=texts[index]) if body.return_documents else None,
        )
        for index in order
    ]
    return schemas.RerankResponse(
        id=f"rerank-{uuid.uuid4()}", model=recommender.config.name, results=results
    )


def _add_catalog(app: FastAPI, service: Service) -> None:
    search: list[CatalogSearch] = []
    most = service.settings.limits.shown

    async def catalog_search() -> CatalogSearch:
        recommender = service.recommender
        if not search:
            search.append(await asyncio.to_thread(CatalogSearch, recommender))
        return search[0]

    Search = Annotated[CatalogSearch, Depends(catalog_search)]
    Count = Annotated[int, Query(ge=1, le=most)]

    def found(search: CatalogSearch, item: int) -> schemas.FoundItem:
        catalog = service.recommender.catalog
        return schemas.FoundItem(
            item_id=str(catalog.item_ids[item]),
            title=catalog.titles[item],
            categories=list(catalog.categories[item]),
            interactions=int(search.interactions_I[item]),
        )

    @app.get("/v1/items", tags=["catalog"], responses=_ERRORS)
    async def items(
        search: Search, query: Annotated[str, Query(max_length=300)] = "", count: Count = 10
    ) -> schemas.ItemsResponse:
        """Items by a part of their title; without a query, those with the most interactions."""
        numbers = await asyncio.to_thread(search.find, query, count)
        return schemas.ItemsResponse(items=[found(search, item) for item in numbers])

    @app.get("/v1/users", tags=["catalog"], responses=_ERRORS)
    async def users(
        query: Annotated[str, Query(max_length=300)] = "", count: Count = 10
    ) -> schemas.UsersResponse:
        """Users of the data whose id begins with the query."""
        ids = map(str, service.recommender.prepared.split.user_ids)
        matching = (user for user in ids if user.startswith(query))
        return schemas.UsersResponse(users=list(islice(matching, count)))

    @app.get("/v1/users/{user_id}", tags=["catalog"], responses=_ERRORS)
    async def user(user_id: str, search: Search) -> schemas.UserResponse:
        """A user of the data, with all their items, oldest first."""
        recommender = service.recommender
        try:
            ids = recommender.history_of(user_id, by="id")
        except UserError as error:
            raise FieldError("user_id", str(error)) from None
        numbers = [recommender.catalog.index_of_id(item_id) for item_id in ids]
        return schemas.UserResponse(
            user_id=user_id, items=[found(search, item) for item in numbers]
        )

    @app.get("/v1/info", tags=["catalog"], responses=_ERRORS)
    async def info() -> schemas.Info:
        """The served run, and the limits of a request."""
        recommender, limits = service.recommender, service.settings.limits
        return schemas.Info(
            model=recommender.config.name,
            dataset=recommender.config.data.source,
            items=len(recommender.catalog),
            users=recommender.prepared.split.num_users,
            retriever=recommender.config.retriever.model,
            candidates=recommender.config.retriever.candidates,
            step=recommender.step,
            limits={
                "histories": limits.histories,
                "history": limits.history,
                "candidates": limits.candidates,
                "exclude": limits.exclude,
            },
        )


def _add_page(app: FastAPI) -> None:
    def page(name: str) -> Response:
        return Response((_PAGE / name).read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    app.mount("/static", StaticFiles(packages=[("palr_jax.serving", "page")]))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _error(400, "body", f"the body is not JSON: {first['ctx']['error']}")
        return _error(422, _path(first["loc"]), _sentence(first))

    @app.exception_handler(FieldError)
    async def field(_: Request, error: FieldError) -> JSONResponse:
        return _error(422, error.field, str(error), error.nearest)

    @app.exception_handler(UserError)
    async def unanswerable(_: Request, error: UserError) -> JSONResponse:
        return _error(500 if isinstance(error, NotNumbersError) else 422, None, str(error))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        # FastAPI raises 400 for a body that it cannot parse.
        field = "body" if error.status_code == 400 else None
        return _error(error.status_code, field, str(error.detail))

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return _error(503, None, str(error), headers={"Retry-After": str(error.seconds)})

    @app.exception_handler(NotReadyError)
    async def not_ready(_: Request, error: NotReadyError) -> JSONResponse:
        return _error(503, None, str(error), headers={"Retry-After": "5"})

    @app.exception_handler(_GoneError)
    async def gone(_: Request, error: _GoneError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        _log.error("a request failed", exc_info=error)
        return _error(500, None, "the server failed; its log says why")


def _error(
    status: int,
    field: str | None,
    message: str,
    nearest: tuple[str, ...] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = schemas.Error(
        error=schemas.ErrorBody(field=field, message=message, nearest=list(nearest))
    )
    return JSONResponse(body.model_dump(), status, headers)


def _path(location: tuple[int | str, ...]) -> str:
    """Formats `("body", "histories", 0, 2)` as `histories[0][2]`."""
    parts = location[1:] if location and location[0] in ("body", "query", "path") else location
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "body"


def _sentence(error: Mapping[str, object]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field: see /docs"
    return str(error["msg"])


async def _answers(service: Service, request: Request, questions: list[Question]) -> list[Answer]:
    """The answers, unless the client disconnects first.

    Raises:
        UserError: a question cannot be answered.
    """
    outcomes = await _unless_gone(request, service.ask(questions))
    answers = []
    for outcome in outcomes:
        if isinstance(outcome, UserError):
            raise outcome
        answers.append(outcome)
    return answers


async def _unless_gone(request: Request, work: Awaitable[_Result]) -> _Result:
    """The result of the work, which is cancelled as soon as the client disconnects.

    Raises:
        _GoneError: the client disconnected.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _GoneError
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


__all__ = ["create_app", "reason_of"]
