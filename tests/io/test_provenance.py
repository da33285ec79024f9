"""A result is reused for the inputs it was made from, and for no others."""

from pathlib import Path

import pytest

from palr_jax.errors import UserError
from palr_jax.io.provenance import changed, claim, fingerprint, recorded

INPUTS = {"model": "sasrec", "dim": 8, "loss": None, "rates": [0.1, 2.0]}


def test_fingerprint_ignores_the_order_of_keys_only() -> None:
    value = {"a": 1, "b": [1, 2]}
    assert fingerprint(value) == fingerprint({"b": [1, 2], "a": 1})
    for other in ({"a": 2, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1}):
        assert fingerprint(other) != fingerprint(value)


def test_fingerprints_are_those_of_existing_runs() -> None:
    """They name folders and are kept in stages.json: another hash would discard finished work."""
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}) == "fc10ba9755cfc69c"
    assert fingerprint(["words", True]) == "462a9dd07e3fc745"


def test_a_first_claim_is_recorded_and_later_ones_get_the_record(tmp_path: Path) -> None:
    file = tmp_path / "new" / "inputs.json"
    assert recorded(file) is None
    assert claim(file, INPUTS) == INPUTS
    before = file.read_bytes()
    found = claim(file, INPUTS | {"dim": 16})
    assert changed(INPUTS, found) == []
    assert changed(INPUTS | {"dim": 16, "new": 1}, found) == ["dim", "new"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        '{"model": "sasrec", "dim": 8, "loss": null, "rates": [0.1, 2.0], "data": "0f"}',
        # Before the setting `loss` existed, its default was the only loss.
        '{\n  "rates": [0.1, 2],\n  "dim": 8,\n  "model": "sasrec"\n}\n',
    ],
)
def test_records_of_earlier_versions_still_hold(tmp_path: Path, text: str) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(text)
    assert not changed(INPUTS, claim(file, INPUTS))
    assert file.read_text() == text


@pytest.mark.parametrize("text", ["", "[1]", "7", '{"model": '])
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"inputs\.json .*delete it and run again") as caught:
        claim(file, INPUTS)
    assert "\n" not in str(caught.value)
