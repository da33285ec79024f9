import gc
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax.data.split import Split, leave_one_out
from palr_jax.errors import UserError
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.processes import Terminated
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ragged import Ragged
from palr_jax.retrieval import loop, sequential
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.losses import Loss
from palr_jax.retrieval.rows import NEXT_ITEM
from palr_jax.retrieval.sasrec import SASRec
from palr_jax.retrieval.sequential import Sequential
from palr_jax.retrieval.step import Params, Rates, initial_state, retriever_step

NUM_ITEMS = 12
CONFIG = RetrieverConfig(
    dim=16, num_blocks=1, num_heads=2, length=8, dropout=0.1, learning_rate=0.01, averaging=0.8,
    batch_size=4, max_epochs=4, patience=4,
)  # fmt: skip


def circular_split() -> Split:
    """Users who go round the catalog: the next item is the last one plus one."""
    rng = np.random.default_rng(0)
    rows = [
        (rng.integers(NUM_ITEMS) + np.arange(rng.integers(4, 11))) % NUM_ITEMS for _ in range(40)
    ]
    return leave_one_out(Ragged.from_rows(rows), np.arange(40).astype(str), NUM_ITEMS)


SPLIT = circular_split()


def sasrec(config: RetrieverConfig = CONFIG, seed: int = 0) -> Sequential:
    return Sequential(SASRec, NEXT_ITEM, config, NUM_ITEMS, seed)


def trained(directory: Path) -> dict[str, Any]:
    """All arrays of the last checkpoint."""
    params = sasrec()._params
    like = {"best": params, "state": loop.RetrieverState.initial(params)}
    with loop.Checkpoints(directory / "checkpoints") as checkpoints:
        saved = checkpoints.load_latest(like)
    assert saved is not None
    return saved[1]


def over_devices(devices: int) -> Sequential:
    return sasrec(replace(CONFIG, dropout=0.0, devices=devices))


def test_several_devices_learn_what_one_does(tmp_path: Path) -> None:
    alone, several = over_devices(1), over_devices(4)
    alone.fit(SPLIT, tmp_path / "one")
    several.fit(SPLIT, tmp_path / "four")
    for mine, other in zip(curve(tmp_path / "four"), curve(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(mine["loss"], other["loss"], rtol=1e-4)
    histories = SPLIT.histories("test")
    np.testing.assert_allclose(several.scores(histories), alone.scores(histories), atol=1e-2)
    # A model that was trained on several devices is loaded on one.
    again = over_devices(4)
    again.load(tmp_path / "four")
    np.testing.assert_array_equal(again.item_vectors(), several.item_vectors())
    np.testing.assert_allclose(again.scores(histories), several.scores(histories), atol=1e-5)
    listed, also = several.recommend(histories, 5), again.recommend(histories, 5)
    np.testing.assert_allclose(listed.score_UK, also.score_UK, atol=1e-5)
    assert (listed.item_UK == also.item_UK).mean() > 0.95
    few = histories.take([3, 1, 2])  # no multiple of the devices
    np.testing.assert_allclose(several.scores(few), again.scores(few), atol=1e-5)


def test_the_vectors_of_items_and_all_that_belongs_to_them_are_divided() -> None:
    shards = Shards(make_mesh(MeshConfig(fsdp=4), jax.devices()[:4]))
    state = initial_state(sasrec()._drawn_on(shards), shards)
    state, _ = retriever_step(
        sasrec()._graph, Loss("cross_entropy", 1), Rates(0.01, 0.1, 0.8), state,
        shards.spread(NEXT_ITEM.training(SPLIT.train, NUM_ITEMS, 8, 4, 0, 0)),
        jax.random.key(0), shards,
    )  # fmt: skip
    tables = [
        leaf
        for keys, leaf in jax.tree.leaves_with_path(state)
        if getattr(keys[-1], "key", None) == "item_ID"
    ]
    assert len(tables) == 4  # parameters, average, and two moments
    for leaf in tables:
        assert {part.data.shape for part in leaf.addressable_shards} == {(NUM_ITEMS + 1, 4)}


def test_training_over_devices_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_devices(4).fit(SPLIT, tmp_path / "whole")
    save = loop.Checkpoints.save

    def dies(self: loop.Checkpoints, step: int, *rest: Any) -> None:
        save(self, step, *rest)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Checkpoints, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        over_devices(4).fit(SPLIT, tmp_path / "stopped")
    monkeypatch.setattr(loop.Checkpoints, "save", save)
    over_devices(4).fit(SPLIT, tmp_path / "stopped")
    assert_same_training(tmp_path / "stopped", tmp_path / "whole")


def test_what_is_drawn_on_several_devices_is_what_one_draws() -> None:
    shards = Shards(make_mesh(MeshConfig(data=2, fsdp=4)))
    jax.tree.map(np.testing.assert_array_equal, sasrec()._drawn_on(shards), sasrec()._params)


def test_a_stopped_training_resumes_at_that_step(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = int(trained(whole)["state"].moments[0].count) // CONFIG.max_epochs
    asked = iter([False] * (steps + 2) + [True] * 9)  # once per step, and once per epoch
    with monkeypatch.context() as patched:
        patched.setattr(loop.Stop, "poll", lambda _: next(asked))
        with pytest.raises(
            Terminated, match="sasrec: stopped by SIGTERM, saved at step 3 of epoch 2"
        ):
            sasrec().fit(SPLIT, tmp_path)
    assert len(curve(tmp_path)) == 1
    sasrec().fit(SPLIT, tmp_path)
    assert_same_training(tmp_path, whole)


def test_a_training_stopped_between_epochs_keeps_the_epoch(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = int(trained(whole)["state"].moments[0].count) // CONFIG.max_epochs
    asked = iter([False] * steps + [True])
    with monkeypatch.context() as patched:
        patched.setattr(loop.Stop, "poll", lambda _: next(asked))
        with pytest.raises(Terminated, match="saved after epoch 1"):
            sasrec().fit(SPLIT, tmp_path)
    sasrec().fit(SPLIT, tmp_path)
    assert_same_training(tmp_path, whole)


def test_more_devices_than_exist_is_an_error(tmp_path: Path) -> None:
    config = replace(CONFIG, devices=16, batch_size=16)
    with pytest.raises(UserError, match="16 devices, but 8 are available"):
        sasrec(config).fit(SPLIT, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted training."""
    directory = tmp_path_factory.mktemp("whole")
    sasrec().fit(SPLIT, directory)
    return directory


def curve(directory: Path) -> list[dict[str, float]]:
    lines = (directory / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same_training(directory: Path, whole: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, trained(directory), trained(whole))
    for mine, theirs in zip(curve(directory), curve(whole), strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


def test_learns_what_follows_what(tmp_path: Path) -> None:
    config = replace(CONFIG, max_epochs=25, patience=25)
    retriever = sasrec(config)
    retriever.fit(SPLIT, tmp_path)
    rank_U = retriever.target_ranks(SPLIT.histories("test"), SPLIT.targets("test"))
    assert (rank_U == 1).mean() > 0.9
    losses = [line["loss"] for line in curve(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]


def stop_after(steps: int) -> Callable[..., object]:
    """Replaces the progress bar, and interrupts training in the middle of an epoch."""

    @contextmanager
    def stopping(*_: object) -> Iterator[Callable[..., None]]:
        left = steps

        def advance(**_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        yield advance

    return stopping


@pytest.mark.parametrize("epochs", [0, 3])
def test_goes_on_where_it_was_stopped(
    epochs: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = NEXT_ITEM.training(SPLIT.train, NUM_ITEMS, CONFIG.length, CONFIG.batch_size, 0, 0)
    steps = len(rows.item_RT) // CONFIG.batch_size
    assert steps > 2
    with monkeypatch.context() as patched:
        patched.setattr(loop, "progress", stop_after(epochs * steps + 2))
        with pytest.raises(KeyboardInterrupt):
            sasrec().fit(SPLIT, tmp_path)
    with pytest.raises(UserError, match="was stopped"):
        sasrec().load(tmp_path)
    retriever = sasrec()
    retriever.fit(SPLIT, tmp_path)
    assert_same_training(tmp_path, whole)
    jax.tree.map(np.testing.assert_array_equal, retriever._params, trained(whole)["best"])


def test_the_average_of_the_parameters_follows_them(whole: Path) -> None:
    state = trained(whole)["state"]
    averaged = jax.tree.leaves(
        jax.tree.map(lambda a, b: (a != b).any(), state.average, state.params)
    )
    assert all(averaged)


def test_a_finished_training_is_not_repeated(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "progress", stop_after(0))
    retriever = sasrec()
    retriever.fit(SPLIT, whole)
    jax.tree.map(np.testing.assert_array_equal, retriever._params, trained(whole)["best"])


def test_another_seed_gives_another_result(whole: Path, tmp_path: Path) -> None:
    sasrec(seed=1).fit(SPLIT, tmp_path)
    ours, theirs = trained(tmp_path)["best"], trained(whole)["best"]
    assert (ours["item_ID"] != theirs["item_ID"]).any()


def test_keeps_the_best_epoch_and_stops_when_none_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ndcg_values = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr(loop, "ndcg", lambda rank_U, k: np.array([next(ndcg_values)]))
    kept: list[Params] = []
    original = loop.copy

    def copy(tree: Params) -> Params:
        kept.append(original(tree))
        return original(tree)

    monkeypatch.setattr(loop, "copy", copy)
    retriever = sasrec(replace(CONFIG, max_epochs=9, patience=2))
    retriever.fit(SPLIT, tmp_path)
    assert [line["validation NDCG@10"] for line in curve(tmp_path)] == [0.1, 0.3, 0.2, 0.3]
    assert len(kept) == 2  # of epochs 1 and 2
    jax.tree.map(np.testing.assert_array_equal, retriever._params, kept[-1])
    found = trained(tmp_path)
    assert (found["best"]["item_ID"] != found["state"].average["item_ID"]).any()


def broken_after(steps: int, step: Callable[..., Any]) -> Callable[..., Any]:
    """A training step whose loss is NaN after `steps` runs."""

    def broken(*args: Any) -> Any:
        nonlocal steps
        steps -= 1
        state, loss = step(*args)
        return state, loss if steps >= 0 else jnp.nan

    return broken


def test_a_loss_that_is_no_number_stops_training_and_leaves_the_epochs_before(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = int(trained(whole)["state"].moments[0].count) // CONFIG.max_epochs
    with monkeypatch.context() as patched:
        patched.setattr(
            sequential, "retriever_step", broken_after(2 * steps + 3, sequential.retriever_step)
        )
        with pytest.raises(UserError, match=r"loss is nan in epoch 3, step 4: lower retriever\."):
            sasrec().fit(SPLIT, tmp_path)
    assert len(curve(tmp_path)) == 2
    sasrec().fit(SPLIT, tmp_path)
    assert_same_training(tmp_path, whole)


def test_a_learning_rate_out_of_all_proportion_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is (nan|inf) in epoch 1"):
        sasrec(replace(CONFIG, learning_rate=1e38)).fit(SPLIT, tmp_path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (partial(sasrec, replace(CONFIG, dim=8)), "dim 16, not 8"),
        (partial(sasrec, replace(CONFIG, learning_rate=0.02)), "learning_rate 0.01, not 0.02"),
        (partial(sasrec, seed=3), "seed 0, not 3"),
    ],
)
def test_a_directory_belongs_to_one_training(
    other: Callable[[], Sequential], named: str, whole: Path
) -> None:
    with pytest.raises(UserError, match=f"trained with {named}: delete"):
        other().fit(SPLIT, whole)
    with pytest.raises(UserError, match=f"trained with {named}: delete"):
        other().load(whole)


def test_a_directory_belongs_to_one_data_set(whole: Path) -> None:
    swapped = replace(SPLIT, validation_U=SPLIT.test_U)
    with pytest.raises(UserError, match="trained with data"):
        sasrec().fit(swapped, whole)


def test_candidates_are_no_matter_of_training(whole: Path) -> None:
    sasrec(replace(CONFIG, candidates=30)).load(whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints" / str(CONFIG.max_epochs)
    for file in newest.rglob("d/*"):
        file.write_bytes(b"")
    sasrec().fit(SPLIT, tmp_path)
    gc.collect()  # what Orbax left behind complains here and not in another test
    assert f"{newest} cannot be read" in capsys.readouterr().err
    assert_same_training(tmp_path, whole)


def test_a_history_longer_than_the_model_sees_counts_by_its_newest_items(whole: Path) -> None:
    retriever = sasrec()
    retriever.load(whole)
    long = Ragged.from_rows([[11, 10, 9, 8, 0, 1, 2, 3, 4, 5]])
    cut = Ragged.from_rows([long[0][-CONFIG.length :]])
    np.testing.assert_allclose(retriever.scores(long), retriever.scores(cut), atol=1e-6)
    top = retriever.recommend(long, 2)
    assert set(top.item_UK[0].tolist()) == {6, 7}  # all of the history is seen, not only its end


def test_the_company_of_longer_histories_changes_nothing(tmp_path: Path) -> None:
    """Rows are as wide as the longest history of a chunk needs."""
    config = replace(CONFIG, length=200, max_epochs=1)
    retriever = sasrec(config)
    retriever.fit(SPLIT, tmp_path)
    rows = [(np.arange(length) % NUM_ITEMS).tolist() for length in (1, 15, 16, 17, 30, 47, 70, 199)]
    together_UI = retriever.scores(Ragged.from_rows(rows))
    for row, score_I in zip(rows, together_UI, strict=True):
        alone_1I = retriever.scores(Ragged.from_rows([row]))
        np.testing.assert_allclose(alone_1I[0], score_I, atol=1e-5)


def test_an_empty_history_is_scored_by_what_users_begin_with(tmp_path: Path) -> None:
    rows = [[3, 5, 7, 1, 2], [3, 6, 8, 2, 1], [3, 9, 4, 0, 1]] * 10
    split = leave_one_out(Ragged.from_rows(rows), np.arange(30).astype(str), NUM_ITEMS)
    retriever = sasrec(replace(CONFIG, max_epochs=12, patience=12))
    retriever.fit(split, tmp_path)
    assert retriever.recommend(Ragged.from_rows([[]]), 1).item_UK.tolist() == [[3]]
