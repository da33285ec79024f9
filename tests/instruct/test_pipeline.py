import json
from itertools import islice

import numpy as np
import pytest

from palr_jax.instruct.pipeline import Packing, batches
from tests.instruct.test_examples import make_maker


@pytest.fixture
def dataset(catalog, train, writer, instruct_config):
    maker = make_maker(catalog, train, writer, instruct_config, 0.5)
    return maker, batches(maker, np.arange(12), Packing(rows=3, length=900, label_length=200))


def test_rows_hold_whole_examples_and_label_places(dataset) -> None:
    maker, data = dataset
    expected = {
        tuple(np.concatenate([e.prompt_T, e.label_M]).tolist())
        for e in (maker.example(user, epoch) for user in range(12) for epoch in range(24))
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
                # The label is predicted from the token before it, and its end is not read.
                prompt = tokens[: len(tokens) - len(label) + 1]
                assert (*prompt.tolist(), *label.tolist()) in expected
                places = batch["position_BT"][row][index[mine]]
                np.testing.assert_array_equal(places, len(prompt) - 1 + np.arange(len(label)))
                found += 1
    assert found > 20


def test_every_epoch_visits_every_user_once_in_a_new_order(dataset) -> None:
    maker, _ = dataset
    visits: list[tuple[int, int]] = []

    class Recorder:
        seed = maker.seed

        def example(self, user: int, epoch: int):
            visits.append((epoch, user))
            return maker.example(user, epoch)

    iterator = iter(batches(Recorder(), np.arange(12), Packing(3, 900, 200)))
    next(iterator)
    orders = [[user for at, user in visits if at == epoch] for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(12))
    assert orders[0] != orders[1] != orders[2]


def test_a_restored_iterator_gives_the_same_batches(dataset) -> None:
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
