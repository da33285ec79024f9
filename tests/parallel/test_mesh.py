"""A run on eight devices gives the result of a run on one."""

import json
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from flax import nnx

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.packing import Packing
from palr_jax.instruct.pipeline import batches
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.axes import check_divides
from palr_jax.llm.checkpoints.weights import draw
from palr_jax.llm.config import LlamaConfig, LoRAConfig
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Rules, Shards, make_mesh
from palr_jax.ragged import Ragged
from palr_jax.training import loop, metrics
from palr_jax.training.config import FinetuneConfig
from palr_jax.training.feed import check_rows
from tests.instruct.test_examples import make_maker

STREAMS = 2
CONFIG = FinetuneConfig(
    steps=8, batch_size=8, streams=STREAMS, length=400, label_length=80,
    learning_rate=1e-2, save_every=8, log_every=1, warmup_steps=2, remat="full",
)  # fmt: skip
SHAPE = LlamaConfig(
    vocab_size=600, dim=32, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=8, ffn_dim=64,
    max_length=400,
)  # fmt: skip
LORA = LoRAConfig(rank=4, dropout=0.1)
MESHES = {
    "8x1": MeshConfig(data=8),
    "4x2": MeshConfig(data=4, fsdp=2),
    "2x2x2": MeshConfig(data=2, fsdp=2, tensor=2),
    "1x8": MeshConfig(fsdp=8),
}

Streams = list[grain.IterDataset[dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def streams(
    catalog: Catalog, train: Ragged, writer: PromptWriter, instruct_config: InstructConfig
) -> Streams:
    maker = make_maker(catalog, train, writer, instruct_config, 0.5)
    packing = Packing(CONFIG.batch_size // STREAMS, CONFIG.length, CONFIG.label_length)
    return [batches(maker, np.arange(12), packing, number, STREAMS) for number in range(STREAMS)]


def losses(
    streams: Streams, mesh: MeshConfig, lora: LoRAConfig | None, folder: Path
) -> list[float]:
    shards = Shards(make_mesh(mesh, jax.devices()[: mesh.devices]))
    model = draw(SHAPE, lora, 0, shards)
    metrics = folder / "metrics.jsonl"
    loop.finetune(model, streams, CONFIG, shards, folder / "steps", metrics, "tiny")
    for leaf in jax.tree.leaves(nnx.state(model.layers, nnx.Param)):
        if leaf.ndim == 3:  # all but the norms
            assert leaf.addressable_shards[0].data.size * mesh.fsdp <= leaf.size
    return [json.loads(line)["loss"] for line in metrics.open()]


@pytest.fixture(scope="module")
def alone(streams: Streams, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses on one device."""
    return losses(streams, MeshConfig(), LORA, tmp_path_factory.mktemp("one"))


# The other two are those of the run that resumes on another mesh.
@pytest.mark.parametrize("name", ["8x1", "2x2x2"])
def test_losses_are_those_of_one_device(
    streams: Streams, alone: list[float], tmp_path: Path, name: str
) -> None:
    assert alone[-1] < alone[0] - 0.1
    found = losses(streams, MESHES[name], LORA, tmp_path)
    np.testing.assert_allclose(found, alone, rtol=2e-5)


def test_all_weights_in_parts_of_a_batch_are_trained_alike_on_a_mesh(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = FinetuneConfig(**{**vars(CONFIG), "steps": 4, "accumulate": 2})
    monkeypatch.setattr("tests.parallel.test_mesh.CONFIG", parts)
    expected = losses(streams, MeshConfig(), None, tmp_path / "one")
    found = losses(streams, MeshConfig(data=1, fsdp=2, tensor=2), None, tmp_path / "mesh")
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_a_run_goes_on_on_a_mesh_of_another_shape(
    streams: Streams, alone: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = FinetuneConfig(**{**vars(CONFIG), "save_every": 4})
    monkeypatch.setattr("tests.parallel.test_mesh.CONFIG", half)
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "_finite", _stop_after_5)
        with pytest.raises(KeyboardInterrupt):
            losses(streams, MESHES["1x8"], LORA, tmp_path)
    found = losses(streams, MESHES["4x2"], LORA, tmp_path)
    np.testing.assert_allclose(found, alone, rtol=2e-5)


def _stop_after_5(step: int, metrics: dict[str, jax.Array]) -> float:
    if step == 5:
        raise KeyboardInterrupt
    return float(metrics["loss"])


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers() -> None:
    shards = Shards(make_mesh(MESHES["4x2"]))
    config = FinetuneConfig(batch_size=36, accumulate=3)
    with pytest.raises(UserError, match=r"\(36\) in 3 parts leaves 12 rows .* data 4 x fsdp 2 = 8"):
        check_rows(config, shards)
    check_rows(FinetuneConfig(batch_size=48, accumulate=3), shards)


def test_a_model_that_does_not_divide_is_refused_with_the_numbers() -> None:
    shards = Shards(make_mesh(MESHES["2x2x2"]))
    odd = LlamaConfig(**{**vars(SHAPE), "num_heads": 3, "num_kv_heads": 3})
    with pytest.raises(UserError, match="query heads, 3, cannot be divided by tensor, 2"):
        check_divides(odd, shards)
    check_divides(SHAPE, shards)


def test_a_mesh_takes_all_devices() -> None:
    with pytest.raises(
        UserError, match="data 3 x fsdp 1 x tensor 1 is 3 devices, but 8 are available"
    ):
        make_mesh(MeshConfig(data=3))


def test_rules_put_one_axis_of_the_mesh_on_one_axis_of_an_array() -> None:
    rules = Rules()
    assert rules.spec("embed", "heads") == jax.P("fsdp", "tensor")
    with pytest.raises(ValueError, match="the mesh axis fsdp divides two of the axes"):
        rules.spec("batch", "embed")
    with pytest.raises(ValueError, match="no rule for the axis hats"):
        rules.spec("hats")
