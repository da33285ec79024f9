"""The tests that the documentation names exist."""

import re

import pytest

from tests.locations import ROOT

NAMED = [
    (page.name, file, test)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text("utf-8"))
]


def test_tests_are_named() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize(("page", "file", "test"), sorted(set(NAMED)))
def test_a_test_that_a_page_names_exists(page: str, file: str, test: str) -> None:
    assert (ROOT / file).is_file(), page
    if test:
        assert f"def {test}(" in (ROOT / file).read_text("utf-8"), page
