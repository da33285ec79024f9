"""A step over several devices: what they find, added up, and what they send each other."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.planning.hlo import collectives
from palr_jax.ragged import Ragged
from palr_jax.retrieval import step
from palr_jax.retrieval.config import LossKind, RetrieverConfig
from palr_jax.retrieval.item_tables import retriever_shardings
from palr_jax.retrieval.loop import cut
from palr_jax.retrieval.losses import NO_TARGET, Loss
from palr_jax.retrieval.rows import NEXT_ITEM, HistoryRows
from palr_jax.retrieval.sasrec import SASRec
from palr_jax.retrieval.sequential import Sequential
from palr_jax.trees import PyTree

ITEMS, DEVICES = 30, 4
CONFIG = RetrieverConfig(
    dim=8, length=6, dropout=0.2, batch_size=8, item_features="words", devices=DEVICES
)
MESHES = (MeshConfig(fsdp=4), MeshConfig(data=2, fsdp=2))


def sasrec(config: RetrieverConfig = CONFIG, items: int = ITEMS) -> Sequential:
    return Sequential(SASRec, NEXT_ITEM, config, items, 0)


def batch() -> HistoryRows:
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows([rng.integers(0, ITEMS, rng.integers(3, 9)) for _ in range(8)])
    made = NEXT_ITEM.training(histories, ITEMS, CONFIG.length, CONFIG.batch_size, 0, 0)
    rows = cut(made, CONFIG.batch_size)[0]
    target_RT = rows.target_RT.copy()
    target_RT[:2] = NO_TARGET  # the first device has none
    return replace(rows, target_RT=target_RT)


def parameters() -> step.Params:
    """Fresh ones with features, whose map is no zero."""
    retriever = sasrec()
    retriever.use_features(np.random.default_rng(1).normal(size=(ITEMS, 20)))
    params = retriever._params
    return params | {"feature_map_RD": params["feature_map_RD"] + 0.1}


def scaled(tree: PyTree, factor: float) -> PyTree:
    return jax.tree.map(lambda x: x * factor, tree)


@pytest.mark.parametrize("kind", ["cross_entropy", "sampled_softmax", "gbce"])
def test_devices_add_up_what_each_finds(kind: LossKind) -> None:
    loss, key, rows, params = Loss(kind, 5), jax.random.key(7), batch(), parameters()
    graph = sasrec()._graph
    alone = jax.jit(jax.value_and_grad(functools.partial(step._loss, graph, loss)))
    parts = []
    for device, mine in enumerate(cut(rows, len(rows.item_RT) // DEVICES)):
        count = (mine.target_RT != NO_TARGET).sum()
        share = float(count / (rows.target_RT != NO_TARGET).sum())
        found = alone(params, mine, jax.random.fold_in(key, device))
        parts.append(scaled(jax.device_get(found), share))
    expected = jax.tree.map(lambda *of_devices: sum(of_devices), *parts)
    results = []
    for mesh in MESHES if kind == "cross_entropy" else MESHES[1:]:
        shards = Shards(make_mesh(mesh, jax.devices()[:DEVICES]))
        placed = jax.device_put(params, retriever_shardings(params, shards))
        over_devices = jax.jit(step._over_devices(graph, loss, shards))
        results.append(jax.device_get(over_devices(placed, shards.spread(rows), key)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), results[0], expected
    )
    # How they are arranged changes no bit.
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])


def moved(loss: LossKind) -> int:
    """Elements of the largest array that devices send each other in a step."""
    config = replace(CONFIG, loss=loss, item_features="none", dim=64, fsdp=2)
    shards = Shards(make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:DEVICES]))
    lowered, _, _ = sasrec(config, 20_000).lowered_step(shards)
    found = collectives(lowered.compile().as_text() or "", DEVICES)
    assert found
    return int(max(np.prod(shape) for one in found for shape in one.shapes))


def test_sampled_losses_move_only_the_items_that_they_compare() -> None:
    assert moved("cross_entropy") >= 20_000 * 64
    assert moved("sampled_softmax") < 20_000 * 64 / 4
