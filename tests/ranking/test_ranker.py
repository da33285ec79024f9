"""Ranking over a mesh is ranking on one device."""

import jax
import numpy as np
import pytest

from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.checkpoints.weights import draw
from palr_jax.llm.config import LlamaConfig
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ragged import Ragged
from palr_jax.ranking.ranker import Ranker
from palr_jax.ranking.write import write_from_candidates, write_from_catalog
from tests.progress import silent


@pytest.fixture
def rankers(writer: PromptWriter, item_tokens: Ragged) -> list[Ranker]:
    shape = LlamaConfig(
        vocab_size=600, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, ffn_dim=32,
        max_length=500, tie_embeddings=False,
    )  # fmt: skip
    found = []
    for mesh in (MeshConfig(), MeshConfig(data=1, fsdp=2, tensor=2)):
        shards = Shards(make_mesh(mesh, jax.devices()[: mesh.devices]))
        found.append(Ranker(draw(shape, None, 0, shards), writer, item_tokens, 4, shards))
    return found


def test_scores_and_slates_over_a_mesh_are_those_of_one_device(
    rankers: list[Ranker], train: Ragged
) -> None:
    histories = train.take(np.arange(6))
    candidates_UC = np.array([np.setdiff1d(np.arange(30), histories[u])[:8] for u in range(6)])
    profiles = ["The user enjoys Drama movies."] * 6
    one, many = (r.score(histories, profiles, candidates_UC, silent) for r in rankers)
    np.testing.assert_allclose(np.exp(many).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-4)
    one, many = (
        write_from_candidates(r, histories, profiles, candidates_UC, 3, silent) for r in rankers
    )
    np.testing.assert_array_equal(one, many)
    one, many = (write_from_catalog(r, histories, profiles, 3, silent) for r in rankers)
    np.testing.assert_array_equal(one, many)
