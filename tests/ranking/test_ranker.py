"""Ranking over a mesh is ranking on one device; several priors share a pass."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from palr_jax.decoding.candidate_head import CandidateHead, RankingLlama
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.checkpoints.weights import draw
from palr_jax.llm.config import LlamaConfig
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ragged import Ragged
from palr_jax.ranking.ranker import Ranker, log_prior
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


def test_several_priors_share_a_pass_and_score_as_each_alone(
    rankers: list[Ranker], train: Ragged
) -> None:
    histories, profiles = train.take(np.arange(6)), ["The user enjoys Drama movies."] * 6
    candidates_UC = np.array([np.setdiff1d(np.arange(30), histories[u])[:8] for u in range(6)])
    retriever_UC = np.random.default_rng(0).normal(size=candidates_UC.shape).astype(np.float32)
    priors = [log_prior(candidates_UC, scores) for scores in (None, retriever_UC)]
    for ranker in rankers:
        model = RankingLlama(ranker.model, CandidateHead(16, has_prior=True))
        ranker = replace(ranker, model=model)
        alone, both = (
            ranker.score(histories, profiles, candidates_UC, silent, scores)
            for scores in (None, retriever_UC)
        )
        assert np.abs(alone - both).max() > 0.1
        for orders in (0, 3):  # the prompts of this writer list the candidates
            found_UPC = ranker.score_under(
                histories, profiles, candidates_UC, np.stack(priors, axis=1), silent, orders
            )
            np.testing.assert_allclose(np.exp(found_UPC).sum(2), 1, rtol=1e-4)
            if not orders:
                np.testing.assert_allclose(found_UPC[:, 0], alone, rtol=1e-5)
                np.testing.assert_allclose(found_UPC[:, 1], both, rtol=1e-5)


def test_letters_name_positions_of_the_list(
    rankers: list[Ranker], train: Ragged, item_tokens: Ragged
) -> None:
    histories, profiles = train.take(np.arange(6)), [""] * 6
    candidates_UC = np.array([np.setdiff1d(np.arange(30), histories[u])[:8] for u in range(6)])
    ranker = rankers[0]
    config = replace(ranker.writer.config, answer="letter", length=500)
    ranker = replace(ranker, writer=PromptWriter(ranker.writer.tokenizer, item_tokens, config))
    given_UC = ranker.score(histories, profiles, candidates_UC, silent)
    np.testing.assert_allclose(np.exp(given_UC).sum(1), 1, rtol=1e-4)
    # An empty slot is not listed, so it takes no letter.
    gap_UC = np.insert(candidates_UC, 3, -1, axis=1)
    with_gap_UC = ranker.score(histories, profiles, gap_UC, silent)
    np.testing.assert_allclose(np.delete(with_gap_UC, 3, axis=1), given_UC, rtol=1e-4)
    assert np.isneginf(with_gap_UC[:, 3]).all()
    # A mean over one order is the score of that order, moved back.
    uniform_UPC = np.zeros((6, 1, 8), np.float32)
    mean_UC = ranker.score_under(
        histories, profiles, candidates_UC, uniform_UPC, silent, orders=1, seed=5
    )[:, 0]
    order_UC = np.random.default_rng(5).permuted(np.indices((6, 8))[1], axis=1)
    moved_UC = ranker.score(
        histories, profiles, np.take_along_axis(candidates_UC, order_UC, axis=1), silent
    )
    np.testing.assert_allclose(np.take_along_axis(mean_UC, order_UC, axis=1), moved_UC, rtol=1e-4)


def test_a_model_without_a_head_scores_alike_under_all_priors(
    rankers: list[Ranker], train: Ragged
) -> None:
    histories, profiles = train.take(np.arange(3)), [""] * 3
    candidates_UC = np.array([np.setdiff1d(np.arange(30), histories[u])[:8] for u in range(3)])
    prior_UPC = np.random.default_rng(0).normal(size=(3, 2, 8)).astype(np.float32)
    found_UPC = rankers[0].score_under(histories, profiles, candidates_UC, prior_UPC, silent)
    alone_UC = rankers[0].score(histories, profiles, candidates_UC, silent)
    np.testing.assert_array_equal(found_UPC[:, 0], alone_UC)
    np.testing.assert_array_equal(found_UPC[:, 1], alone_UC)
