from dataclasses import replace

import pytest

from palr_jax.llm.checkpoints.shapes import SHAPES
from palr_jax.llm.config import LoRAConfig
from palr_jax.parallel.chips import CHIPS, parse_topology
from palr_jax.planning.hlo import Collective
from palr_jax.planning.roofline import (
    Seconds,
    Work,
    collective_seconds,
    hbm_bytes,
    mfu_bound,
    seconds,
    temporary_bytes,
    traffic_bytes,
)

WORK = Work(SHAPES["llama-7b"], LoRAConfig(rank=16), "none", 32, 1024, 128, flash=True)
FSDP = {"data": 1, "fsdp": 16, "tensor": 1}
POD = parse_topology("v5e:4x4")


def test_a_step_takes_as_long_as_its_slowest_part() -> None:
    parts = Seconds(compute=1.0, hbm=0.5, interconnect=2.0)
    assert (parts.step, parts.bound) == (2.0, "interconnect")


def test_without_remat_and_waiting_only_scores_are_computed_twice() -> None:
    parts = seconds(WORK, POD, FSDP, traffic=0.0)
    assert parts.bound == "compute"
    scores = 2 * WORK.pairs * WORK.config.num_layers * WORK.config.num_heads * WORK.config.head_dim
    expected = WORK.flops() / (WORK.flops() + scores)
    assert mfu_bound(WORK, POD, parts.step) == pytest.approx(expected)
    # 32 x 1,024 tokens of a 7B with adapters: 4 operations a parameter, on 16 chips of 197 TFLOP/s.
    products = 4 * 6.476e9 * 32 * 1024 / 16 / 197e12
    assert products < parts.compute < 1.1 * products


def test_full_remat_repeats_a_third_of_a_step_with_adapters() -> None:
    again = replace(WORK, remat="full")
    assert again.flops() == WORK.flops()
    assert 1.45 < again.executed_flops() / WORK.flops() < 1.55
    parts = seconds(again, POD, FSDP, traffic=0.0)
    assert mfu_bound(again, POD, parts.step) == pytest.approx(WORK.flops() / again.executed_flops())


def test_gathers_bring_every_weight_but_the_share_that_is_here_forward_and_backward() -> None:
    received = traffic_bytes(WORK, FSDP)
    weights = 2 * 6_476_005_376 * 2 + 2 * 32_000 * 4096 * 2
    assert received == {"fsdp": weights * 15 / 16, "tensor": 0.0, "data": 0.0}
    halves = traffic_bytes(WORK, {"data": 1, "fsdp": 8, "tensor": 2})
    assert halves["tensor"] > 0
    assert halves["fsdp"] < received["fsdp"]
    two = traffic_bytes(WORK, {"data": 2, "fsdp": 8, "tensor": 1})
    assert two["data"] < 0.01 * two["fsdp"]  # of adapters alone
    full = traffic_bytes(replace(WORK, lora=None), FSDP)
    assert full["fsdp"] == pytest.approx(received["fsdp"] + 2 * 6_476_005_376 * 15 / 16)


def test_memory_grows_with_rows_and_shrinks_with_remat() -> None:
    kept = [
        temporary_bytes(replace(WORK, remat=remat), FSDP)[1] for remat in ("full", "dots", "none")
    ]
    assert kept == sorted(kept)
    # The input of every layer, in bfloat16.
    assert kept[0] > 32 * 1024 * 4096 * 2
    assert temporary_bytes(replace(WORK, flash=False), FSDP)[1] > kept[2]


def test_scores_that_leave_the_chip_cost_memory_traffic() -> None:
    scores = hbm_bytes(replace(WORK, flash=False), FSDP) - hbm_bytes(WORK, FSDP)
    assert scores == pytest.approx(2 * 1024 * 1025 / 2 * 32 * 32 * 2 * 6 * 2)


def test_quantised_weights_are_read_and_gathered_as_they_are_stored() -> None:
    half = replace(WORK, weight_bytes=1.0)
    linears = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert hbm_bytes(WORK, FSDP) - hbm_bytes(half, FSDP) == pytest.approx(4 * linears)
    saved = traffic_bytes(WORK, FSDP)["fsdp"] - traffic_bytes(half, FSDP)["fsdp"]
    assert saved == pytest.approx(2 * linears * 15 / 16)


def test_collectives_take_their_bytes_over_the_links_of_their_group() -> None:
    coordinates = [(0, x, y) for x in range(4) for y in range(4)]
    link = CHIPS["v5e"].link_bandwidth
    one = Collective("all-gather", ((16,),), 1000, 3, (0, 1, 2, 3), "")
    assert collective_seconds([one], POD, coordinates) == 3000 / link
    assert collective_seconds([one, one], POD, coordinates) == 6000 / link
    whole = replace(one, group=tuple(range(16)))
    assert collective_seconds([whole], POD, coordinates) == 3000 / (2 * link)
    nothing = replace(one, bytes=0, group=(0,))
    assert collective_seconds([nothing], POD, coordinates) == 0
