"""The choice of `pytest -m quick`."""

import pytest

from tests.conftest import SLOW
from tests.locations import ROOT


def test_every_slow_file_exists() -> None:
    assert [name for name in sorted(SLOW) if not (ROOT / name).is_file()] == []


def test_this_file_is_quick(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("quick") is not None
