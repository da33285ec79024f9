"""The instruction data of a whole run: what enters it, and how it is shown."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from palr_jax.config import Config, load_config
from palr_jax.data import prepare as preparing
from palr_jax.data.prepare import Prepared
from palr_jax.data.raw import items_table
from palr_jax.data.split import Split, leave_one_out
from palr_jax.errors import UserError
from palr_jax.instruct.examples import ExampleMaker
from palr_jax.instruct.negatives import Retrieved
from palr_jax.instruct.packing import Packing
from palr_jax.instruct.pipeline import batches, visit
from palr_jax.io.files import read_arrays, write_arrays
from palr_jax.ragged import Ragged
from palr_jax.retrieval.interface import TopK
from palr_jax.retrieval.models import MODELS
from palr_jax.run_directory import RunDirectory
from palr_jax.stages import run as stages
from palr_jax.stages.instruction_data import Instructions, load_instructions
from tests.llm.tokenizers.test_tokenizer import byte_level
from tests.stages.test_run import palr
from tests.world import CONFIG, write_world

MARK = "Xyzzy"
PAPER = {"enrich_history": 4, "enrich_label": 3, "swap": 0.3, "retriever_negatives": 0.5}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and the config paper.yaml, which uses everything there is."""
    write_world(tmp_path)
    config = json.loads(json.dumps(CONFIG))
    config["instruct"] |= PAPER
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def marked_run(folder: Path, config: Config) -> RunDirectory:
    """A run whose held-out items bear a mark in id, title and category, and stand nowhere else."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(40)[: rng.integers(3, 15)] for _ in range(30)]
    held = [[40 + 2 * user, 41 + 2 * user] for user in range(30)]
    sequences = Ragged.from_rows([np.append(row, two) for row, two in zip(rows, held, strict=True)])
    names = [f"Story {item}" for item in range(40)] + [f"{MARK} {item}" for item in range(60)]
    items = items_table(names, names, [(name.split()[0], "Both") for name in names])
    users = np.array([f"u{user}" for user in range(30)])
    run = RunDirectory(folder / "marked")
    preparing.save(Prepared(leave_one_out(sequences, users, 100), items), run.data)
    stages.profile(config, run)
    return run


def test_no_byte_of_the_data_comes_from_validation_or_test_items(here: Path) -> None:
    config = load_config(Path("paper.yaml"), {"instruct.user_share": "0.5"})
    run = marked_run(here, config)
    found = load_instructions(config, run)
    marked_tokens = [found.items.tokens[item].tolist() for item in range(40, 100)]
    packing = Packing(4, 400, 128)
    for maker in found.makers.values():
        assert isinstance(maker, ExampleMaker)
        assert not any(MARK.lower() in profile.lower() for profile in maker.profiles)
        for example in visit(maker, found.users, 0, 2000):
            text = found.tokenizer.decode([*example.prompt_T, *example.label_M])
            assert MARK not in text
            assert "Story" in text
        for batch in islice(iter(batches(maker, found.users, packing)), 20):
            for name in ("tokens_BT", "target_BM"):
                stream = batch[name].astype("<i4").tobytes()
                for row in marked_tokens:
                    assert np.array(row, "<i4").tobytes() not in stream
    last = found.makers["PALR_v2"]
    assert isinstance(last, ExampleMaker)
    for user in found.users:
        assert (last.nearby[user] < 40).all()


def retrieved_of(instructions: Instructions) -> Retrieved:
    maker = instructions.makers["PALR_v2"]
    assert isinstance(maker, ExampleMaker)
    assert maker.retrieved is not None
    return maker.retrieved


def test_the_retriever_of_negatives_learns_from_other_users_training_items_alone(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(Path("paper.yaml"), {"instruct.user_share": "0.5"})
    run = marked_run(here, config)
    splits: list[Split] = []
    asked: list[Ragged] = []
    real = MODELS["sasrec"]

    class Spy:
        def __init__(self, *arguments: Any) -> None:
            self._retriever = real(*arguments)

        def fit(self, split: Split, directory: Path) -> None:
            splits.append(split)
            self._retriever.fit(split, directory)

        def recommend(self, histories: Ragged, k: int) -> TopK:
            asked.append(histories)
            return self._retriever.recommend(histories, k)

    monkeypatch.setitem(MODELS, "sasrec", Spy)
    found = load_instructions(config, run)
    (split,), (histories,) = splits, asked
    train = preparing.load(run.data).split.train
    tuned = {f"u{user}" for user in found.users}
    assert set(split.user_ids) == {f"u{user}" for user in range(30)} - tuned
    for row, user in enumerate(split.user_ids):
        whole = [*split.train[row], split.validation_U[row]]
        assert whole == train[int(user[1:])].tolist()
        assert split.test_U[row] == whole[-1]
    retrieved = retrieved_of(found)
    place = 0
    for user in found.users:
        for moment in retrieved.moments[user]:
            assert histories[place].tolist() == train[user][:moment].tolist()
            assert not set(retrieved.items_PK[place]) & set(histories[place].tolist())
            place += 1
    assert place == len(histories) == len(retrieved.items_PK)
    # A second look trains nothing; another seed does.
    again = retrieved_of(load_instructions(config, run))
    np.testing.assert_array_equal(again.items_PK, retrieved.items_PK)
    assert (len(splits), len(asked)) == (1, 1)
    load_instructions(replace(config, seed=1), run)
    assert (len(splits), len(asked)) == (2, 2)
    prepared = preparing.load(run.data)
    preparing.save(replace(prepared, split=backwards(prepared.split)), run.data)
    load_instructions(config, run)
    assert (len(splits), len(asked)) == (3, 3)


def backwards(split: Split) -> Split:
    """The same with the training items in the opposite order."""
    rows = [split.train[user][::-1] for user in range(split.num_users)]
    return replace(split, train=Ragged.from_rows(rows))


@pytest.mark.parametrize("name", ["moments_P", "moments_U1", "items_PK", "scores_PK"])
def test_damaged_proposals_are_one_line(here: Path, name: str) -> None:
    config = load_config(Path("paper.yaml"), {"instruct.user_share": "0.5"})
    run = marked_run(here, config)
    load_instructions(config, run)
    (file,) = run.negatives.glob("*/negatives.npz")
    whole = read_arrays(file)
    for array in (None, whole[name][:-1], whole[name][..., None]):
        rest = {other: whole[other] for other in whole if other != name}
        write_arrays(file, **rest, **({} if array is None else {name: array}))
        with pytest.raises(UserError, match=r"cannot be read .*: delete it and run again"):
            load_instructions(config, run)


def test_everything_the_paper_has_runs_end_to_end(here: Path) -> None:
    assert palr("run", "--config", "paper.yaml") == 0
    rows = json.loads(Path("runs/tiny/results.json").read_text())["rows"]
    assert [row["model"] for row in rows][-2:] == ["PALR_v2", "PALR_v2 + SASRec"]
    # The negatives depend on the retriever, so the ranker does.
    config = load_config(Path("paper.yaml"), {})
    other = load_config(Path("paper.yaml"), {"retriever.dim": "16"})
    plain = replace(config, instruct=replace(config.instruct, retriever_negatives=0.0))
    assert stages.made_from("finetune", config) != stages.made_from("finetune", other)
    assert "retriever" not in stages.made_from("finetune", plain)


def test_a_hugging_face_tokenizer_serves_a_whole_run(here: Path) -> None:
    folder = here / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(byte_level())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    options = ["--ranker.tokenizer", "tokenizer", "--instruct.title_tokens", "40"]
    options += ["--instruct.length", "1500", "--finetune.length", "1500"]
    options += ["--finetune.label_length", "256", "--ranker.variants", "[PALR_v2]"]
    assert palr("run", "--config", "tiny.yaml", *options) == 0
    (folder / "tokenizer.json").unlink()  # the run directory keeps its own
    assert palr("recommend", "--run", "runs/tiny", "--user", "u3") == 0


def test_show_examples_prints_text_and_statistics(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("prepare", "profile"):
        assert palr(stage, "--config", "paper.yaml") == 0
    capsys.readouterr()
    template = "Seen by the user:"
    arguments = ["--config", "paper.yaml", "--instruct.template.history", template]
    profile = ["--instruct.template.profile", "Likes {keywords}."]
    assert palr("show-examples", *arguments, *profile) == 2  # profiles have another wording
    assert "run `palr profile` first" in capsys.readouterr().err
    assert palr("show-examples", *arguments, "--n", "3") == 0
    printed = capsys.readouterr().out
    assert printed.count("Seen by the user:\n") == 3
    assert printed.count("Recommendations:\n«") == printed.count("\n<end>»") == 3
    assert "PALR_v1: 1,024 examples of" in printed
    assert "PALR_v2: 1,024 examples of" in printed
    assert printed.rstrip().endswith(" titles cut")


def test_retriever_negatives_need_other_users(here: Path) -> None:
    with pytest.raises(UserError, match="lower user_share below 1"):
        load_config(Path("paper.yaml"), {"instruct.user_share": "1.0"})
    config = load_config(Path("paper.yaml"), {"instruct.user_share": "0.99"})
    run = marked_run(here, config)
    with pytest.raises(UserError, match=r"lower instruct.user_share \(0.99\)"):
        load_instructions(config, run)
