"""Collectives read from programs whose traffic is known beforehand."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from palr_jax.planning.hlo import collectives
from tests.planning.weight_moves import weight_moves

LAYERS, WIDTH, HIDDEN, ROWS = 5, 16, 48, 24


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def text_of(lowered: jax.stages.Lowered) -> str:
    text = lowered.compile().as_text()
    assert text is not None
    return text


def mapped(
    mesh: jax.sharding.Mesh,
    body: Callable[[jax.Array], jax.Array],
    spec: PartitionSpec,
    out: PartitionSpec,
) -> str:
    """The compiled text of a function that is run on every device's part of a [16, 48] array."""
    run = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False))
    sharded = jax.ShapeDtypeStruct((WIDTH, HIDDEN), jnp.float32, sharding=NamedSharding(mesh, spec))
    return text_of(run.lower(sharded))


ONE_DEVICE = PartitionSpec(("data", "fsdp"))
NOWHERE = PartitionSpec()
BYTES = 4 * WIDTH * HIDDEN


@pytest.mark.parametrize(
    ("kind", "body", "out", "received"),
    [
        # A chip holds an eighth and receives the others, once for a gather, twice for a sum.
        (
            "all-gather",
            lambda x: jax.lax.all_gather(x, ("data", "fsdp"), tiled=True),
            NOWHERE,
            BYTES * 7 // 8,
        ),
        ("all-reduce", lambda x: jax.lax.psum(
            x, ("data", "fsdp")), NOWHERE, BYTES * 7 // 32),
        ("collective-permute", lambda x: jax.lax.ppermute(
            x, "fsdp", [(0, 1), (1, 2), (2, 3), (3, 0)]), ONE_DEVICE, BYTES // 8),
        ("all-to-all", lambda x: jax.lax.all_to_all(
            x, "fsdp", 1, 0, tiled=True), ONE_DEVICE, BYTES // 8 * 3 // 4),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(
            x, "data", tiled=True), ONE_DEVICE, BYTES // 8 // 2),
    ],
)  # fmt: skip
def test_bytes_are_what_a_chip_takes_in(
    mesh: jax.sharding.Mesh,
    kind: str,
    body: Callable[[jax.Array], jax.Array],
    out: PartitionSpec,
    received: int,
) -> None:
    (one,) = collectives(mapped(mesh, body, ONE_DEVICE, out), 8)
    assert (one.kind, one.bytes, one.times) == (kind, received, 1)


@pytest.mark.parametrize(("axis", "group"), [("data", (0, 4)), ("fsdp", (0, 1, 2, 3))])
def test_groups_are_the_chips_along_an_axis(
    mesh: jax.sharding.Mesh, axis: str, group: tuple[int, ...]
) -> None:
    (one,) = collectives(mapped(mesh, lambda x: jax.lax.psum(x, axis), ONE_DEVICE, ONE_DEVICE), 8)
    assert one.group == group


def stacked_layers(
    mesh: jax.sharding.Mesh, weights: tuple[jax.Array, jax.Array], x_NI: jax.Array
) -> jax.Array:
    @partial(jax.checkpoint, prevent_cse=False)
    def layer(x_NI: jax.Array, up_and_down: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        up_IO, down_OI = up_and_down
        hidden_NO = jnp.tanh(x_NI @ up_IO)
        hidden_NO = jax.lax.with_sharding_constraint(
            hidden_NO, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        )
        return hidden_NO @ down_OI, None

    return jax.lax.scan(layer, x_NI, weights)[0].sum()


def test_a_scan_over_sharded_weights_gathers_each_layer_once_a_direction(
    mesh: jax.sharding.Mesh,
) -> None:
    on = partial(NamedSharding, mesh)
    up, down = (
        jax.ShapeDtypeStruct(
            (LAYERS, *shape), jnp.float32, sharding=on(PartitionSpec(None, "fsdp"))
        )
        for shape in [(WIDTH, HIDDEN), (HIDDEN, WIDTH)]
    )
    rows = jax.ShapeDtypeStruct(
        (ROWS, WIDTH), jnp.float32, sharding=on(PartitionSpec(("data", "fsdp")))
    )
    step = jax.jit(jax.grad(partial(stacked_layers, mesh), argnums=1))
    found = collectives(text_of(step.lower((up, down), rows)), 8)
    gathers = [one for one in found if one.kind == "all-gather"]
    assert {one.times for one in gathers} == {LAYERS}
    assert {one.bytes for one in gathers} == {4 * WIDTH * HIDDEN * 3 // 4}
    assert {one.group for one in gathers} == {(0, 1, 2, 3)}
    assert weight_moves(found, [(WIDTH, HIDDEN)]) == {(WIDTH, HIDDEN): 4 * LAYERS}


def test_gathering_all_layers_at_once_is_found_out(mesh: jax.sharding.Mesh) -> None:
    on = partial(NamedSharding, mesh)
    weights = jax.ShapeDtypeStruct(
        (LAYERS, HIDDEN, WIDTH), jnp.float32, sharding=on(PartitionSpec(None, "fsdp"))
    )
    whole = jax.jit(lambda x: x + 1, out_shardings=on(NOWHERE))
    found = collectives(text_of(whole.lower(weights)), 8)
    assert weight_moves(found, [(WIDTH, HIDDEN)]) == {(WIDTH, HIDDEN): LAYERS}


# As the TPU compiler writes it: no trip counts, an all-gather spread over two fusions, another that
# is under way while a loop runs, and a reduce-scatter written as an all-reduce.
TPU_TEXT = """
HloModule jit_step

%cond (p.0: (s32[], bf16[8,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  %p.0 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %constant.1), direction=LT
}

%part.1 (p.1: bf16[2,4]) -> bf16[8,4] {
  %all-gather.1 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(step)/while/body/dot_general" stack_frame_id=117}
}

%part.2 (p.2: bf16[2,4]) -> bf16[8,4] {
  %all-gather.2 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.2), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}, use_global_device_ids=true
}

%all-reduce-scatter.3 (p.3: f32[16]) -> f32[2] {
  %all-reduce.3 = f32[16]{0} all-reduce(%p.3), channel_id=8, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %dynamic-slice.3 = f32[2]{0} dynamic-slice(%all-reduce.3, %offset), dynamic_slice_sizes={2}
}

%part.3 (p.6: bf16[1,4]) -> bf16[8,4] {
  %all-gather.4 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.6), channel_id=10, replica_groups=[1,8]<=[8], dimensions={0}
}

%part.4 (p.7: bf16[1,4]) -> bf16[8,4] {
  %all-gather.5 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.7), channel_id=10, replica_groups=[1,8]<=[8], dimensions={0}
}

%body (p.4: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %fusion.5 = bf16[8,4]{1,0} fusion(%q), kind=kCustom, calls=%part.4
  %fusion.1 = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%part.1
  %fusion.2 = bf16[8,4]{1,0} fusion(%fusion.1), kind=kCustom, calls=%part.2
  %collective-permute-start.1 = (bf16[4,4]{1,0}, bf16[4,4]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=9, source_target_pairs={{0,4},{4,0},{1,5},{5,1}}
  ROOT %tuple = (s32[]{:T(128)}, /*index=1*/bf16[8,4]{1,0}) tuple(%next, %fusion.2)
}

ENTRY %main (p.5: bf16[2,4]) -> f32[2] {
  %while.1 = (s32[]{:T(128)}, /*index=1*/bf16[8,4]{1,0:T(8,128)(2,1)}) while(%init), condition=%cond, body=%body, metadata={op_name="jit(step)/while"}
  %fusion.4 = bf16[8,4]{1,0} fusion(%q), kind=kCustom, calls=%part.3
  ROOT %fusion.3 = f32[2]{0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.3
}
"""  # noqa: E501


def test_a_program_as_the_tpu_compiler_writes_it() -> None:
    gather, permute, scatter, once = collectives(TPU_TEXT, 8)
    assert (once.kind, once.times, once.bytes) == ("all-gather", 1, 2 * 8 * 4 * 7 // 8)
    assert (gather.kind, gather.times, gather.bytes) == ("all-gather", 3, 2 * 8 * 4 * 3 // 4)
    assert (gather.group, gather.name) == ((0, 1, 2, 3), "jit(step)/while/body/dot_general")
    assert (permute.times, permute.bytes, permute.group) == (3, 2 * 4 * 4, (0, 4))
    assert (scatter.kind, scatter.shapes) == ("reduce-scatter", ((16,),))
    assert (scatter.times, scatter.bytes) == (1, 4 * 16 * 7 // 8)


# Its program for two slices: the first iteration of the loop is peeled off and shares the
# loop's channel, where an all-gather of another kind's number may be met as well.
PEELED_TEXT = """
%cond (p.0: (s32[], bf16[8,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  %wide.loop_peel_cond_param.2 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%wide.loop_peel_cond_param.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %constant.1), direction=LT
}

%part.1 (p.1: bf16[2,4]) -> bf16[8,4] {
  %all-gather.1 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, use_global_device_ids=true
}

%body (p.4: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %fusion.1 = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%part.1
  ROOT %tuple = (s32[]{:T(128)}, /*index=1*/bf16[8,4]{1,0}) tuple(%next, %fusion.1)
}

ENTRY %main (p.5: bf16[2,4]) -> f32[2] {
  %all-gather.2 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.2), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, use_global_device_ids=true
  %reduce-scatter.1 = f32[4]{0} reduce-scatter(%p.5), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %while.1 = (s32[]{:T(128)}, /*index=1*/bf16[8,4]{1,0:T(8,128)(2,1)}) while(%init), condition=%cond, body=%body
  %send.1 = (f32[32,1,128]{2,1,0:T(1,128)}, u32[], token[]) send(%bitcast.1, %after-all.1), channel_id=7, is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""  # noqa: E501


def test_a_loop_whose_first_turn_is_peeled_off_and_a_sum_between_slices() -> None:
    total, gather, scatter = collectives(PEELED_TEXT, 8)
    assert (total.kind, total.group, total.bytes) == ("all-reduce", (0, 4), 32 * 128 * 4)
    assert (gather.kind, gather.times, gather.bytes) == ("all-gather", 3, 2 * 8 * 4 * 3 // 4)
    assert (scatter.kind, scatter.times) == ("reduce-scatter", 1)


def test_a_loop_without_a_bound_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="condition cond of a loop has no constant bound"):
        collectives(TPU_TEXT.replace("constant(3)", "parameter(1)"), 8)


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}", (0, 4)),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y'}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("replica_groups=mesh['x'=8] {'x':(2)2}", (0, 2)),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}", (0, 1, 2, 3)),
        ("replica_groups={}", (0, 1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_every_way_to_write_groups(groups: str, first: tuple[int, ...]) -> None:
    text = TPU_TEXT.replace("replica_groups=[1,8]<=[8]", groups)
    (scatter,) = [one for one in collectives(text, 8) if one.kind == "reduce-scatter"]
    assert scatter.group == first
