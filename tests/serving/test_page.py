"""The page in a real browser: Debian's Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from palr_jax.serving.service import Settings
from tests.browser import browser, needs_browser, prefer_colours, resize
from tests.serving.conftest import Served, serving

pytestmark = needs_browser
MARKUP = "<img src=x onerror=document.title='broken'> (2031)"


class Page:
    """What a user does and sees."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, width: int = 1280) -> "Page":
        resize(self.driver, width)
        self.driver.get(self.url)
        self.until("!document.getElementById('query').disabled")
        return self

    def until(self, condition: str) -> None:
        WebDriverWait(self.driver, 60).until(
            lambda driver: driver.execute_script(f"return {condition}"), condition
        )

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def texts(self, css: str) -> list[str]:
        script = f"return [...document.querySelectorAll({css!r})].map((one) => one.textContent)"
        return list(self.driver.execute_script(script))

    def search(self, text: str) -> None:
        self.find("#query").send_keys(text)
        self.until("document.querySelectorAll('#found li:not(.none)').length > 0")

    def add(self, text: str) -> None:
        before = len(self.texts("#history .text"))
        self.find("#query").send_keys(text, Keys.ENTER)
        self.until(f"document.querySelectorAll('#history li').length === {before + 1}")
        self.settled()

    def settled(self) -> None:
        """Waits for the answer to what the history is now."""
        self.until(
            "document.getElementById('results').getAttribute('aria-busy') === 'false' && "
            "document.querySelectorAll('#slate .head').length > 0"
        )

    def slate(self) -> list[str]:
        return self.texts("#slate .name")


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with browser() as made:
        yield made


@pytest.fixture
def page(driver: webdriver.Chrome, served: Served) -> Iterator[Page]:
    yield Page(driver, served.url)
    # A policy that refuses something of the page, or a script that fails, is told here.
    severe = [one["message"] for one in driver.get_log("browser") if one["level"] == "SEVERE"]
    assert [line for line in severe if "422" not in line] == []


def test_search_add_and_recommend(page: Page, served: Served) -> None:
    page.open()
    assert page.texts("#popular button")
    page.find("body").send_keys("/")
    assert page.driver.switch_to.active_element == page.find("#query")
    page.search("story, 4")
    page.find("#query").send_keys(Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ESCAPE)
    assert not page.find("#found").is_displayed()
    page.find("#query").clear()
    page.add("Story, 41")
    page.add("Story, 5 (")
    assert page.texts("#history .text") == ["Story, 41 (1991)", "Story, 5 (1955)"]
    page.until("document.querySelector('#prompt').textContent.includes('Story, 5 (1955)')")
    page.settled()
    (right,) = served.recommender.recommend([["Story, 41 (1991)", "Story, 5 (1955)"]])
    assert page.slate() == [item.title for item in right]
    assert page.texts("#proposals li:not(.below)")
    assert "ms" in page.find("#time").text


def test_the_order_is_changed_with_keys_and_by_dragging(page: Page) -> None:
    page.open()
    for name in ("Story, 1 (", "Story, 2 (", "Story, 3 ("):
        page.add(name)
    grips = page.driver.find_elements(By.CSS_SELECTOR, "#history .grip")
    grips[2].send_keys(Keys.ARROW_UP)
    order = ["Story, 1 (1951)", "Story, 3 (1953)", "Story, 2 (1952)"]
    assert page.texts("#history .text") == order
    grips = page.driver.find_elements(By.CSS_SELECTOR, "#history .grip")
    ActionChains(page.driver).click_and_hold(grips[0]).move_by_offset(0, 20).move_to_element(
        grips[2]
    ).move_by_offset(0, 25).release().perform()
    assert page.texts("#history .text") == [*order[1:], order[0]]
    page.find("#history li:nth-child(2) .off").click()
    assert page.texts("#history .text") == [order[1], order[0]]
    page.find("#clear").click()
    assert page.find("#start").is_displayed()
    page.until("!document.getElementById('empty').hidden")


def test_a_user_of_the_data_and_why(page: Page, served: Served) -> None:
    page.open()
    user = str(served.recommender.prepared.split.user_ids[3])
    page.find("#user").send_keys(user, Keys.ENTER)
    page.settled()
    assert page.texts("#history .text") == served.recommender.history_of(user)
    page.find("#slate .head").click()
    page.until("document.querySelectorAll('.why .reason').length > 0")
    assert page.find("#slate .head").get_attribute("aria-expanded") == "true"
    (slate,) = served.recommender.recommend([served.recommender.history_of(user)], explain=True)
    why = slate[0].explanation
    assert why is not None
    shown = page.texts(".why .reason > :first-child")
    assert shown[: len(why.items)] == [title for title, _ in why.items]
    page.find("#slate .head").send_keys(Keys.ENTER)
    assert not page.driver.find_elements(By.CSS_SELECTOR, ".why")
    page.find("#user").send_keys("-nobody", Keys.ENTER)
    page.until("!document.getElementById('field-error').hidden")
    assert "is not in the data" in page.find("#field-error").text


def test_own_candidates_and_an_unseen_title(page: Page) -> None:
    page.open()
    page.add("Story, 8 (")
    page.find("#own summary").click()
    page.find("#candidates").send_keys(f"Story, 20 (1970)\n{MARKUP}\n")
    page.until("document.querySelectorAll('#slate .head').length === 2")
    assert {*page.slate()} == {"Story, 20 (1970)", MARKUP}
    assert page.texts("#slate .new") == ["unseen"]
    assert page.driver.title == "PALR"
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#slate img")
    page.find("#candidates").send_keys("Story, 20 (1970)\n")
    page.until("!document.getElementById('field-error').hidden")
    assert "twice" in page.find("#field-error").text


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.open(width)
    page.add("Story, 11 (")
    page.find("#slate .head").click()
    page.until("document.querySelectorAll('.why').length === 1")
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
    buttons = page.driver.find_elements(By.CSS_SELECTOR, "button")
    sizes = [one.size for one in buttons if one.is_displayed()]
    assert min(size["height"] for size in sizes) >= 24  # WCAG 2.2, target size


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_both_themes(page: Page, scheme: str) -> None:
    prefer_colours(page.driver, scheme)
    page.open()

    def lightness(css: str, what: str) -> float:
        script = f"return getComputedStyle(document.querySelector({css!r})).{what}"
        parts = page.driver.execute_script(script).split("(")[1].rstrip(")").split(",")[:3]
        linear = [(float(x) / 255 + 0.055) ** 2.4 / 1.055**2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for css in ("h2", "#history-title", ".start p", "#empty-text", ".chips button"):
        pair = sorted((lightness(css, "color"), lightness(".card", "backgroundColor")))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4.5  # WCAG 2.2, AA
    assert (lightness("body", "backgroundColor") < 0.2) == (scheme == "dark")
    page.find("#theme").click()
    assert (lightness("body", "backgroundColor") < 0.2) == (scheme == "light")
    page.driver.execute_script("localStorage.clear()")


def test_the_documentation_of_the_api(page: Page) -> None:
    page.driver.get(f"{page.url}/docs")
    page.until("document.querySelectorAll('.card').length > 8")
    assert "POST/v1/recommend" in page.texts("h2")
    assert any("curl" in text and "histories" in text for text in page.texts("pre"))


def test_a_server_that_wants_a_key_and_then_is_gone(driver: webdriver.Chrome, world: Path) -> None:
    with serving(world / "runs/tiny", Settings(max_batch=1, api_keys=("secret",))) as served:
        page = Page(driver, served.url)
        driver.get(served.url)
        page.until("document.getElementById('key-dialog').open")
        page.find("#key").send_keys("secret", Keys.ENTER)
        page.until("!document.getElementById('query').disabled")
        page.add("Story, 9 (")
        there = page.slate()
    page.find("#k").send_keys("5")
    page.until("!document.getElementById('banner').hidden")
    assert "does not answer" in page.find("#banner").text
    assert page.find("#retry").is_displayed()
    assert page.slate() == there  # what was there stays
    driver.get_log("browser")
