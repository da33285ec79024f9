import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cohere
import numpy as np
import pytest

from palr_jax.json_types import JsonObject
from palr_jax.serving.limits import Limits
from palr_jax.serving.service import Settings
from tests.serving.conftest import Served, serving

HISTORY = ["Story, 3 (1953)", "Story, 5 (1955)", "Story, 4 (1954)"]
OWN = ["Story, 20 (1970)", "Story, 31 (1981)", "Story, 8 (1958)"]
MARKUP = "<img src=x onerror=alert(1)> & co (2031)"


def post(served: Served, path: str, **body: object) -> JsonObject:
    answer = served.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def error(served: Served, path: str, status: int, **body: object) -> JsonObject:
    answer = served.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_slates_are_those_of_the_recommender(served: Served) -> None:
    histories = [HISTORY, [], HISTORY[:1]]
    found = post(served, "/v1/recommend", histories=histories, k=7, explain=True, details=True)
    alone = served.recommender.recommend(histories, 7, explain=True)
    for slate, right in zip(found["slates"], alone, strict=True):
        assert [item["title"] for item in slate["items"]] == [item.title for item in right]
        assert [item["item_id"] for item in slate["items"]] == [item.item_id for item in right]
        scores = [item["score"] for item in slate["items"]]
        np.testing.assert_allclose(scores, [item.score for item in right], atol=2e-5)
        ranks = {one["item_id"]: n for n, one in enumerate(slate["details"]["retriever"], 1)}
        for item, why in zip(slate["items"], right, strict=True):
            assert item["retriever_rank"] == ranks[item["item_id"]]
            assert why.explanation is not None
            named = [(one["title"], pytest.approx(one["lift"], abs=1e-4))
                     for one in item["explanation"]["items"]]  # fmt: skip
            assert named == [*why.explanation.items]
        assert sum(one["score"] for one in slate["details"]["retriever"]) == pytest.approx(1)
    assert HISTORY[0] in found["slates"][0]["details"]["prompt"]


def test_items_are_named_by_id_too(served: Served) -> None:
    by_title = post(served, "/v1/recommend", histories=[HISTORY], exclude=[OWN])
    by_id = post(served, "/v1/recommend", histories=[[3, "5", 4]], exclude=[[20, 31, 8]], by="id")
    assert by_id["slates"] == by_title["slates"]
    ranked = post(served, "/v1/rank", history=["3"], candidates=["20", "31"], by="id")["ranking"]
    right = served.recommender.rank(["3"], ["20", "31"], by="id")
    assert [one["item_id"] for one in ranked] == [item for item, _ in right]
    np.testing.assert_allclose([one["logp"] for one in ranked], [p for _, p in right], atol=1e-4)


def test_an_unseen_title_is_ranked_by_its_text(served: Served) -> None:
    body = {"histories": [HISTORY], "candidates": [[*OWN, MARKUP]]}
    told = error(served, "/v1/recommend", 422, **body)
    assert told["field"] == "candidates[0][3]"
    assert len(told["nearest"]) == 3
    items = post(served, "/v1/recommend", **body, new_titles=True)["slates"][0]["items"]
    assert {item["title"] for item in items} == {*OWN, MARKUP}
    more = served.recommender.with_items([MARKUP])
    right = {
        item.title: item.score for item in more.recommend([HISTORY], candidates=[[*OWN, MARKUP]])[0]
    }
    for item in items:
        assert item["score"] == pytest.approx(right[item["title"]], abs=2e-5)


def test_the_shared_form_of_rerankers(served: Served) -> None:
    documents = [OWN[0], {"text": OWN[1]}, OWN[0].upper(), "A new one (2031)"]
    sent = {"model": "any", "query": "\n".join(HISTORY), "documents": documents,
            "top_n": 3, "return_documents": True, "max_tokens_per_doc": 7}  # fmt: skip
    found = post(served, "/v1/rerank", **sent)
    assert len(found["results"]) == 3
    scores = [one["relevance_score"] for one in found["results"]]
    assert scores == sorted(scores, reverse=True)
    whole = post(served, "/v2/rerank", **{**sent, "top_n": None})["results"]
    by_index = {one["index"]: one["relevance_score"] for one in whole}
    assert by_index[0] == by_index[2]
    assert sum(by_index[n] for n in (0, 1, 3)) == pytest.approx(1, abs=1e-5)
    more = served.recommender.with_items(["A new one (2031)"])
    right = dict(more.rank(HISTORY, [OWN[0], OWN[1], "A new one (2031)"]))
    assert by_index[3] == pytest.approx(np.exp(right["A new one (2031)"]), abs=1e-5)
    assert whole[0]["document"]["text"] in [*OWN, OWN[0].upper(), "A new one (2031)"]
    listed = post(served, "/v1/rerank", query=HISTORY, documents=OWN[:2])["results"]
    assert [one["index"] for one in listed] == [
        OWN.index(title) for title, _ in served.recommender.rank(HISTORY, OWN[:2])
    ]


@pytest.mark.parametrize("version", [cohere.Client, cohere.ClientV2])
def test_the_client_of_cohere_reranks(
    served: Served, version: type[cohere.Client] | type[cohere.ClientV2]
) -> None:
    client = version(api_key="none", base_url=served.url)
    found = client.rerank(model="any", query="\n".join(HISTORY), documents=OWN, top_n=2)
    right = served.recommender.rank(HISTORY, OWN)[:2]
    assert [OWN[one.index] for one in found.results] == [title for title, _ in right]
    for one, (_, logp) in zip(found.results, right, strict=True):
        assert one.relevance_score == pytest.approx(np.exp(logp), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "field", "message"),
    [
        ("recommend", {"histories": [["Stroy, 3 (1953)"]]}, "histories[0][0]", "nearest titles"),
        ("recommend", {"histories": [["999"]], "by": "id"}, "histories[0][0]", "nearest ids"),
        ("recommend", {"histories": []}, "histories", "1 to 64"),
        ("recommend", {"histories": [[]] * 65}, "histories", "65 histories"),
        ("recommend", {"histories": [["3"] * 501], "by": "id"}, "histories[0]", "at most 500"),
        ("recommend", {"histories": [["x" * 1001]]}, "histories[0][0]", "1001 characters"),
        ("recommend", {"histories": [[7.5]]}, "histories[0][0]", "string"),
        ("recommend", {"histories": "Heat"}, "histories", "list"),
        ("recommend", {}, "histories", "required"),
        ("recommend", {"histories": [[]], "k": 0}, "k", "from 1 to 20"),
        ("recommend", {"histories": [[]], "k": 21}, "k", "from 1 to 20"),
        ("recommend", {"histories": [[]], "k": 2.5}, "k", "integer"),
        ("recommend", {"histories": [[]], "kk": 2}, "kk", "unknown field"),
        ("recommend", {"histories": [[]], "by": "isbn"}, "by", "'title' or 'id'"),
        ("recommend", {"histories": [[]], "exclude": []}, "exclude", "0 lists for 1"),
        ("recommend", {"histories": [[]], "exclude": [["3"] * 65]}, "exclude[0]", "at most 64"),
        ("recommend", {"histories": [[]], "candidates": [[]]}, "candidates[0]", "name some"),
        ("recommend", {"histories": [HISTORY], "candidates": [HISTORY]}, "candidates[0]", "left"),
        ("recommend", {"histories": [[]], "candidates": [["Story, 8 (1958)"] * 2]},
         "candidates[0][1]", "twice"),
        ("recommend", {"histories": [[]], "candidates": [["a"] * 129]}, "candidates[0]", "at most"),
        ("recommend", {"histories": [[]], "candidates": [[" "]], "new_titles": True},
         "candidates[0][0]", "empty title"),
        ("rank", {"history": [], "candidates": ["1"], "by": "id", "new_titles": True},
         "new_titles", "has no id"),
        ("rerank", {"query": "Nothing", "documents": OWN}, "query[0]", "nearest titles"),
        ("rerank", {"query": "", "documents": []}, "documents", "name some"),
        ("rerank", {"query": "", "documents": OWN, "top_n": 0}, "top_n", "from 1"),
    ],
)  # fmt: skip
def test_errors_name_the_field(
    served: Served, path: str, body: JsonObject, field: str, message: str
) -> None:
    told = error(served, f"/v1/{path}", 422, **body)
    assert told["field"] == field
    assert message in told["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"histories": [[]]', b"[" * 100_000])
def test_a_body_that_is_no_json(served: Served, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = served.client.post("/v1/recommend", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["field"] == "body"


def test_a_body_that_is_too_large(served: Served) -> None:
    large = b'{"histories": [["' + b"x" * 10_000_000 + b'"]]}'
    announced = served.client.post("/v1/recommend", content=large)
    assert announced.status_code == 413
    assert "1,000,000 bytes" in announced.json()["error"]["message"]

    def parts() -> Iterator[bytes]:
        for start in range(0, 2_000_000, 100_000):
            yield large[start : start + 100_000]

    assert served.client.post("/v1/recommend", content=parts()).status_code == 413
    assert served.client.get("/healthz").status_code == 200


def test_paths_and_methods_that_are_unknown(served: Served) -> None:
    for path, status in (
        ("/v1/recommend", 405),
        ("/v1/nothing", 404),
        ("/static/..%2fapp.py", 404),
        ("/v1/users/nobody", 422),
    ):
        answer = served.client.get(path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


def test_titles_are_found_by_a_part_of_them(served: Served) -> None:
    def titles(query: str, count: int = 5) -> list[str]:
        found = served.client.get("/v1/items", params={"query": query, "count": count}).json()
        return [item["title"] for item in found["items"]]

    assert titles("story, 41")[0] == "Story, 41 (1991)"
    assert titles("1991 story") == ["Story, 41 (1991)", *titles("1991 story")[1:]]
    assert "Story, 41 (1991)" in titles("stroy, 41 (1991)")
    assert len(titles("")) == 5
    uses = [item["interactions"] for item in served.client.get("/v1/items").json()["items"]]
    assert uses == sorted(uses, reverse=True)
    assert served.client.get("/v1/items", params={"count": 1000}).status_code == 422


def test_users_of_the_data(served: Served) -> None:
    ids = served.client.get("/v1/users", params={"query": "u1", "count": 3}).json()["users"]
    assert len(ids) == 3
    assert all(user.startswith("u1") for user in ids)
    user = served.client.get(f"/v1/users/{ids[0]}").json()
    assert [item["title"] for item in user["items"]] == served.recommender.history_of(ids[0])


def test_everything_carries_a_strict_policy(served: Served) -> None:
    for path in ("/", "/docs", "/static/page.js", "/healthz", "/v1/nothing"):
        headers = served.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    page = served.client.get("/").text
    assert "http" not in page  # nothing from elsewhere
    assert "style=" not in page
    operations = served.client.get("/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/rank", "/v1/rerank", "/v1/items"} <= {*operations}


def test_what_prometheus_reads(served: Served) -> None:
    post(served, "/v1/recommend", histories=[HISTORY, HISTORY[:2]])
    text = served.client.get("/metrics").text
    assert 'palr_requests_total{route="/v1/recommend",status="200"}' in text
    assert 'palr_request_seconds_bucket{le="0.01",route="/v1/recommend"}' in text
    for line in ("palr_ready 1.0", "palr_queue_length 0.0", "palr_batch_size_count"):
        assert line in text


def test_a_client_that_goes_away_is_dropped(served: Served) -> None:
    def dropped() -> float:
        return served.service.metrics.registry.get_sample_value("palr_dropped_total") or 0.0

    before = dropped()
    host, port = served.url.removeprefix("http://").split(":")
    titles = served.recommender.catalog.titles
    bodies = [
        json.dumps({"histories": [[*titles[m : m + 9]]] * 8,
                    "explain": True}).encode() for m in range(12)
    ]  # fmt: skip
    sockets = []
    for body in bodies:
        one = socket.create_connection((host, int(port)))
        head = (
            "POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        one.sendall(head.encode() + body)
        sockets.append(one)
    for one in sockets:
        one.close()
    deadline = time.monotonic() + 30
    while dropped() == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert dropped() > before
    post(served, "/v1/recommend", histories=[HISTORY])


def test_many_at_once_get_the_right_answers_or_are_told_to_wait(served: Served) -> None:
    rng = np.random.default_rng(5)
    titles = np.array(served.recommender.catalog.titles)
    histories = [rng.permutation(titles)[: rng.integers(1, 30)].tolist() for _ in range(120)]
    right = served.recommender.recommend(histories, 5)

    def ask(number: int) -> None:
        for _ in range(200):
            answer = served.client.post(
                "/v1/recommend", json={"histories": [histories[number]], "k": 5}
            )
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
                time.sleep(0.05)
                continue
            items = answer.json()["slates"][0]["items"]
            scores = [item["score"] for item in items]
            np.testing.assert_allclose(scores, [one.score for one in right[number]], atol=2e-5)
            return
        raise AssertionError("the queue never had room")

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(ask, range(len(histories))))


def test_a_full_queue_says_when_to_ask_again(served: Served) -> None:
    batcher = served.service._batcher
    assert batcher is not None
    room, batcher._room = batcher._room, 4
    try:
        titles = served.recommender.catalog.titles
        histories = [[titles[number], titles[number + 9], OWN[0]] for number in range(5)]
        answer = served.client.post("/v1/recommend", json={"histories": histories})
    finally:
        batcher._room = room
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


def test_keys_and_origins(world: Path) -> None:
    limits = replace(Limits(), header_seconds=0.5, body_seconds=0.5)
    settings = Settings(
        max_batch=1,
        api_keys=("first", "second"),
        cors_origins=("https://shop.example",),
        limits=limits,
    )
    with serving(world / "runs/tiny", settings) as served:
        ask = {"histories": [HISTORY]}
        for headers in ({}, {"authorization": "Bearer third"}, {"authorization": "Basic first"}):
            answer = served.client.post("/v1/recommend", json=ask, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        known = {"authorization": "Bearer second", "origin": "https://shop.example"}
        answer = served.client.post("/v1/recommend", json=ask, headers=known)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        other = {**known, "origin": "https://evil.example"}
        answer = served.client.post("/v1/recommend", json=ask, headers=other)
        assert "access-control-allow-origin" not in answer.headers
        assert served.client.get("/healthz").status_code == 200
        assert served.client.get("/").status_code == 200
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\nauthorization: Bearer first\r\n"
                         b"content-length: 99\r\n\r\n{")  # fmt: skip
            assert b" 408 " in slow.recv(4096).splitlines()[0]
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /v1/rank HTTP/1.1\r\nhost:")
            assert b" 408 " in slow.recv(4096).splitlines()[0]


def test_nothing_was_compiled_after_the_start(served: Served) -> None:
    titles = list(served.recommender.catalog.titles)
    for length in range(0, 60, 7):
        history = titles[:length]
        post(served, "/v1/recommend", histories=[history], explain=length == 14)
    before = served.service._compilations.count
    for length in range(1, 60, 3):
        history = titles[length:]
        post(served, "/v1/recommend", histories=[history, history[1:]], exclude=[OWN, []])
        post(
            served, "/v1/rank", history=history, candidates=[*OWN, f"New {length}"], new_titles=True
        )
    assert served.service._compilations.count == before
