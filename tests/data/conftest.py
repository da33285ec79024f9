"""Shared helpers of the data tests."""

from collections.abc import Callable
from typing import Any

import pytest

from palr_jax.errors import UserError

Complaint = Callable[..., str]


@pytest.fixture
def complaint() -> Complaint:
    """Calls a function that must raise a UserError, and returns its message, which is one line."""

    def call(function: Callable[..., Any], *arguments: Any) -> str:
        with pytest.raises(UserError) as caught:
            function(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call
