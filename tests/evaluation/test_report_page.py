"""report.html in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import browser, needs_browser, prefer_colours, resize
from tests.evaluation.report_fixture import NAMES, page, results

pytestmark = needs_browser

# Elements that reach beyond the page, and text that reaches beyond its cell.
WIDE = """return [...document.querySelectorAll("body *")].filter((one) => !one.closest(".scroll") &&
  !one.closest("svg") && one.getBoundingClientRect().right > innerWidth).map((one) => one.outerHTML)
"""
# The least contrast between a text and what is behind it (WCAG 2.1: 4.5 for text).
CONTRAST = r"""
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function pixel(colours) {
  canvas.clearRect(0, 0, 1, 1);
  for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
function light(colours) {
  const [r, g, b] = pixel(colours).map((value) => value / 255)
    .map((value) => value <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
}
let least = [99, ""];
for (const one of document.querySelectorAll("body *")) {
  if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
  const behind = [];
  for (let above = one; above; above = above.parentElement)
    behind.unshift(getComputedStyle(above).backgroundColor);
  const style = getComputedStyle(one);
  const [a, b] = [light(behind), light([one.closest("svg") ? style.fill : style.color])].sort();
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < least[0]) least = [ratio, one.outerHTML.slice(0, 200)];
}
return least;
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(results()), "utf-8")
    with browser() as driver:
        driver.get(path.as_uri())
        yield driver
        logged = [one["message"] for one in driver.get_log("browser")]
        assert logged == []  # a refusal by the page's policy, or a script that fails


def column(driver: webdriver.Chrome, number: int) -> list[str]:
    script = "return [...document.querySelector('.sortable').tBodies[0].rows].map((row) => "
    return list(driver.execute_script(f"{script} row.cells[{number}].textContent)"))


def test_the_table_is_sorted_by_clicks_and_by_keys(opened: webdriver.Chrome) -> None:
    resize(opened, 1280)
    rows = results()["rows"]
    head = opened.find_element(By.XPATH, "(//table[@class='sortable'])[1]//th[button='NDCG@10']")
    button = head.find_element(By.TAG_NAME, "button")
    by_value = sorted(rows, key=lambda row: row["NDCG@10"], reverse=True)
    descending = [row["model"] for row in by_value]
    button.click()
    assert column(opened, 0) == descending
    assert head.get_attribute("aria-sort") == "descending"
    assert opened.find_element(By.ID, "said").get_attribute("textContent") == (
        "sorted by NDCG@10, descending"
    )
    button.send_keys(Keys.ENTER)
    assert column(opened, 0) == descending[::-1]
    assert head.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.SPACE)
    assert column(opened, 0) == list(NAMES)
    assert head.get_attribute("aria-sort") is None


def test_empty_cells_stay_last(opened: webdriver.Chrome) -> None:
    heads = opened.find_elements(By.CSS_SELECTOR, ".sortable th[scope=col] button")
    last = next(i for i, head in enumerate(heads) if "popularity" in head.text)
    for _ in range(2):
        heads[last].click()
        assert [bool(text) for text in column(opened, last)] == [True, True, False, False]
    heads[last].click()


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_nothing_is_wider_than_the_page(opened: webdriver.Chrome, width: int) -> None:
    resize(opened, width)
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.execute_script(script) == 0
    assert opened.execute_script(WIDE) == []
    for name in ("lift", "heat"):  # the pictures need no scrolling
        script = f"return [...document.querySelectorAll('.{name}')].map((one) => "
        widths = opened.execute_script(f"{script} one.scrollWidth - one.clientWidth)")
        assert max(widths) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_dark(opened: webdriver.Chrome, scheme: str) -> None:
    resize(opened, 1280)
    prefer_colours(opened, scheme)
    ratio, element = opened.execute_script(CONTRAST)
    assert ratio >= 4.5, element
    ground = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(15, 17, 23)") == (scheme == "dark")


def test_titles_with_markup_are_shown_as_text(opened: webdriver.Chrome) -> None:
    assert opened.title.startswith("PALR on <img")
    assert opened.find_elements(By.CSS_SELECTOR, "main img") == []
