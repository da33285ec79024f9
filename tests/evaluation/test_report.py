"""report.html as a document: self-contained, escaped, and readable without eyes."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from palr_jax.evaluation.pictures import axis_of, axis_text
from tests.evaluation.report_fixture import MARKUP, NAMES, page, results

VOID = {"meta", "br", "img", "link", "input", "line", "circle", "path", "polyline"}


class Document(HTMLParser):
    """The elements of a page with their ancestors, and the text of each."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1][0], data))

    def all(self, tag: str) -> list[tuple[dict[str, str | None], list[str]]]:
        return [(attributes, above) for name, attributes, above in self.elements if name == tag]


@pytest.fixture(scope="module")
def document() -> Document:
    return Document(page(results()))


def test_the_page_needs_nothing_from_outside(document: Document) -> None:
    for tag, attributes, _ in document.elements:
        assert tag not in ("link", "img", "iframe", "object", "use", "image")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    style = "".join(text for tag, text in document.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_titles_are_text(document: Document) -> None:
    assert not document.all("img")
    shown = [tag for tag, text in document.texts if MARKUP in text]
    assert {"title", "h1", "h3", "b", "td", "th", "dd", "pre", "span"} <= set(shown)


def test_every_table_says_what_it_shows_and_what_its_cells_are(document: Document) -> None:
    tables = document.all("table")
    assert len(document.all("caption")) == len(tables) >= 8
    for attributes, _ in document.all("th"):
        assert attributes["scope"] in ("row", "col", "colgroup")
    for attributes, _ in document.all("div"):
        if attributes.get("class") == "scroll wide":
            assert (attributes["role"], attributes["tabindex"]) == ("region", "0")
            assert attributes["aria-label"]


def test_every_picture_has_a_text(document: Document) -> None:
    outer = [(given, above) for given, above in document.all("svg") if "svg" not in above]
    named = [given["aria-label"] for given, _ in outer if given.get("role") == "img"]
    hidden = [given for given, _ in outer if given.get("aria-hidden") == "true"]
    assert len(named) + len(hidden) == len(outer)
    assert [str(name).split(".")[0] for name in named][1:] == ["Ranker: loss", "One point"]


def test_headings_and_links_lead_to_their_sections(document: Document) -> None:
    ids = [given["id"] for _, given, _ in document.elements if "id" in given]
    assert len(ids) == len(set(ids))
    for attributes, _ in document.all("a"):
        assert str(attributes["href"])[1:] in ids
    for attributes, _ in document.all("section"):
        assert attributes["aria-labelledby"] in ids
    levels = [int(tag[1]) for tag, _, _ in document.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_numbers_of_the_pictures_are_in_the_text(document: Document) -> None:
    given, text = results()["groups"], " ".join(text for _, text in document.texts)
    for rows in given["lift"].values():
        for row in rows:
            for lift in row["lift"].values():
                assert f"{lift['mean']:+.4f}".replace("0.", ".").replace("-", "−") in text
    for one in given["reliability"]["bins"]:
        assert f"{one['all']['candidates']:,}" in text
    for moved in (given["moves"]["models"][name] for name in NAMES[2:]):
        assert f"raised the test item of {moved['raised']}" in text


def test_a_group_of_few_users_has_no_interval() -> None:
    given = results()
    row = given["groups"]["lift"]["history"][0]
    row["lift"][NAMES[2]]["ci95"] = None
    assert "(too few users)" in page(given)


def test_a_run_without_palr_v2_has_no_ranks_and_no_reliability() -> None:
    given = results()
    del given["groups"]["moves"], given["groups"]["reliability"]
    text = page(given)
    assert "Lift by group" in text
    assert "Reliability" not in text


@pytest.mark.parametrize(
    "values", [(0, 1), (-0.3, 0.02), (5, 5), (0, 0), (1e-5, 3e-5), (1, 20_000), (-7, -3)]
)
def test_an_axis_holds_its_values_and_has_room_for_its_ticks(values: tuple[float, float]) -> None:
    axis = axis_of(values)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert 3 <= len(axis.ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    ends = [axis.at(value) for value in (axis.low, axis.high, axis.high + 1)]
    assert ends == pytest.approx([0, 100, 100])


def test_ticks_are_short() -> None:
    assert [axis_text(value) for value in (-0.02, 0, 0.3, 1.5, 20_000)] == [
        "−.02", "0", ".3", "1.5", "20,000",
    ]  # fmt: skip
