"""The LLaMA of a ranker before it is tuned."""

from pathlib import Path

import jax
import pytest

from palr_jax.config import RankerConfig
from palr_jax.errors import UserError
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ranking.base_model import make_model
from tests.llm.variants import VARIANTS, write_checkpoint


def test_prompts_longer_than_a_sliding_window_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VARIANTS["mistral-window"])
    config = RankerConfig(weights=str(tmp_path))
    shards = Shards(make_mesh(MeshConfig(), jax.devices()[:1]))
    assert make_model(config, 64, 100, 0, shards).config.sliding_window == 100
    with pytest.raises(UserError, match=r"reads 100 tokens at most \(its sliding_window\): lower"):
        make_model(config, 64, 101, 0, shards)
