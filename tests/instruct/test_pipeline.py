import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import grain
import numpy as np
import pytest

from palr_jax.data.catalog import Catalog
from palr_jax.instruct import pipeline
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.examples import ExampleMaker
from palr_jax.instruct.packing import Example, Packing
from palr_jax.instruct.pipeline import _PackedWindows, batches
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.ragged import Ragged
from tests.instruct.test_examples import make_maker

Dataset = tuple[ExampleMaker, grain.IterDataset[dict[str, np.ndarray]]]


@pytest.fixture
def dataset(
    catalog: Catalog, train: Ragged, writer: PromptWriter, instruct_config: InstructConfig
) -> Dataset:
    maker = make_maker(catalog, train, writer, instruct_config, 0.5)
    return maker, batches(maker, np.arange(12), Packing(rows=3, length=900, label_length=200))


def test_rows_hold_whole_examples_and_label_positions(dataset: Dataset) -> None:
    maker, data = dataset
    expected = {
        tuple(np.concatenate([e.prompt_T, e.label_M]).tolist())
        for e in (maker.example(user, epoch) for user in range(12) for epoch in range(90))
    }
    found = 0
    for batch in islice(iter(data), 4):
        assert {name: array.shape for name, array in batch.items()} == {
            "tokens_BT": (3, 900), "position_BT": (3, 900), "segment_BT": (3, 900),
            "target_BM": (3, 200), "target_index_BM": (3, 200), "weight_BM": (3, 200),
        }  # fmt: skip
        for row in range(3):
            segments = batch["segment_BT"][row]
            index = batch["target_index_BM"][row]
            counts = batch["weight_BM"][row] == 1
            for segment in range(1, segments.max() + 1):
                tokens = batch["tokens_BT"][row][segments == segment]
                mine = counts & (segments[index] == segment)
                label = batch["target_BM"][row][mine]
                # The label is predicted from the token before it; its end token is not read.
                prompt = tokens[: len(tokens) - len(label) + 1]
                assert (*prompt.tolist(), *label.tolist()) in expected
                places = batch["position_BT"][row][index[mine]]
                np.testing.assert_array_equal(places, len(prompt) - 1 + np.arange(len(label)))
                found += 1
    assert found > 20


def test_every_epoch_visits_every_user_once_in_a_new_order(dataset: Dataset) -> None:
    maker, _ = dataset
    visits: list[tuple[int, int]] = []

    class Recorder:
        seed = maker.seed

        def example(self, user: int, epoch: int) -> Example:
            visits.append((epoch, user))
            return maker.example(user, epoch)

        def pack(
            self, examples: Sequence[Example], packing: Packing, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            return maker.pack(examples, packing, rng)

    iterator = iter(batches(Recorder(), np.arange(12), Packing(3, 900, 200)))
    next(iterator)
    orders = [[user for at, user in visits if at == epoch] for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(12))
    assert orders[0] != orders[1] != orders[2]


def test_a_restored_iterator_gives_the_same_batches(dataset: Dataset) -> None:
    _, data = dataset
    iterator = iter(data)
    next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = list(islice(iterator, 4))
    restored = iter(data)
    restored.set_state(state)
    for one, two in zip(expected, islice(restored, 4), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def rows_of(batch: dict[str, np.ndarray]) -> list[bytes]:
    rows = range(len(batch["tokens_BT"]))
    return [b"".join(batch[name][row].tobytes() for name in sorted(batch)) for row in rows]


def test_four_processes_make_the_rows_of_one(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WINDOW", 100)
    maker, _ = dataset
    packing = Packing(rows=1, length=900, label_length=200)
    windows = [_PackedWindows(maker, np.arange(12), packing)[window] for window in range(4)]
    expected = [len(window["tokens_RT"]) for window in windows]
    alone = iter(batches(maker, np.arange(12), packing))
    one = [row for _ in range(sum(expected)) for row in rows_of(next(alone))]
    shared: list[bytes] = []
    for process in range(4):
        mine = iter(batches(maker, np.arange(12), packing, process, 4))
        shared += [row for _ in range(expected[process]) for row in rows_of(next(mine))]
    assert one == shared
    assert len(set(one)) > 0.9 * len(one)  # a user with two items has one example for ever


def test_a_stop_anywhere_changes_nothing(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WINDOW", 100)
    _, data = dataset
    iterator = iter(data)
    states, expected = [json.dumps(iterator.get_state())], []
    for _ in range(60):  # several windows
        expected.append(rows_of(next(iterator)))
        states.append(json.dumps(iterator.get_state()))
    windows = {json.loads(state)["parent"]["next_index"] for state in states}
    assert len(windows) > 2
    again = iter(data)
    for stop in np.random.default_rng(0).permutation(59)[:20]:
        again.set_state(json.loads(states[stop]))
        assert [rows_of(next(again)) for _ in range(2)] == expected[stop : stop + 2]


def test_the_seed_decides_the_rows(
    catalog: Catalog, train: Ragged, writer: PromptWriter, instruct_config: InstructConfig
) -> None:
    maker = make_maker(catalog, train, writer, instruct_config, 0.5)
    packing = Packing(rows=3, length=900, label_length=200)
    first = rows_of(next(iter(batches(maker, np.arange(12), packing))))
    other = replace(maker, seed=4)
    assert first != rows_of(next(iter(batches(other, np.arange(12), packing))))
