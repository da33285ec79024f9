from pathlib import Path

import pytest

from palr_jax.errors import UserError
from palr_jax.io.paths import path_of


def test_a_leading_tilde_is_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/runs") == tmp_path / "runs"
    assert path_of("runs/~x") == Path("runs/~x")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "'' is not a path"),
        ("a\0b", "is not a path"),
        ("a\ud800", "is not a path"),
        ("~nosuchuser/x", "'~nosuchuser/x': unknown user"),
        ("s3://bucket/x", "neither a path nor of the form gs://BUCKET/PATH"),
    ],
)
def test_what_is_no_path_is_one_line(text: str, problem: str) -> None:
    with pytest.raises(UserError) as error:
        path_of(text)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
