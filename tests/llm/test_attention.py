"""The implementations of attention against one reference, forward and backward."""

import os
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax.llm import attention as rooms
from palr_jax.llm.attention import XLA, Attention, attend, attention_on

CPU = Attention("cpu")
SPLASH = Attention("splash", interpret=True)
LENGTH, HEADS, GROUPS, SIZE = 150, 4, 2, 16


Array = np.ndarray | jax.Array


def reference(q: Array, k: Array, v: Array, visible: np.ndarray) -> np.ndarray:
    """Attention in float64, one row, one head and one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for row, query, head in np.ndindex(q.shape[:3]):
        group = head // (q.shape[2] // k.shape[2])
        seen = np.flatnonzero(visible[row, query])
        if len(seen):
            score = k[row, seen, group] @ q[row, query, head] / np.sqrt(q.shape[-1])
            weight = np.exp(score - score.max())
            out[row, query, head] = weight @ v[row, seen, group] / weight.sum()
    return out


def draw(rows: int, length: int, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)

    def normal(heads: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(rows, length, heads, SIZE)), jnp.float32)

    return normal(HEADS), normal(GROUPS), normal(GROUPS)


def horizons(*rows: list[int]) -> jnp.ndarray:
    """Horizons of rows that hold examples of the given lengths, then padding."""
    out = np.full((len(rows), LENGTH), -1, np.int32)
    for row, lengths in enumerate(rows):
        ends = np.cumsum(lengths)
        out[row, : ends[-1]] = np.repeat(ends - 1, lengths)
    return jnp.asarray(out)


PACKED = horizons([70, 50, 20], [1, 149])


@pytest.mark.parametrize("attention", [XLA, CPU, SPLASH], ids=["xla", "cpu", "splash"])
def test_equals_the_definition(attention: Attention) -> None:
    q, k, v = draw(2, LENGTH)
    index = np.arange(LENGTH)
    visible = (index <= index[:, None]) & (index[:, None] <= np.asarray(PACKED)[:, None])
    real = np.asarray(PACKED) >= 0
    out = np.asarray(attend(q, k, v, PACKED, attention))
    np.testing.assert_allclose(out[real], reference(q, k, v, visible)[real], atol=1e-5)
    assert np.isfinite(out).all()


def test_tries_behind_a_prompt_are_seen_by_their_own_branch_alone() -> None:
    q, k, v = draw(1, LENGTH)
    rng = np.random.default_rng(1)
    horizon = np.maximum(np.arange(LENGTH), rng.integers(0, LENGTH, LENGTH))
    index = np.arange(LENGTH)
    visible = (index <= index[:, None]) & (index[:, None] <= horizon)
    out = attend(q, k, v, jnp.asarray(horizon[None]))
    np.testing.assert_allclose(out, reference(q, k, v, visible[None]), atol=1e-5)


@pytest.mark.parametrize("attention", [XLA, CPU, SPLASH], ids=["xla", "cpu", "splash"])
def test_packed_rows_equal_rows_of_one_example(attention: Attention) -> None:
    """Outputs and gradients, without padding."""
    lengths = [70, 50, 20]
    q, k, v = draw(1, LENGTH)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32)

    def loss(
        arrays: tuple[jax.Array, jax.Array, jax.Array], weight: jax.Array, horizon: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        out = attend(*arrays, horizon, attention)
        return jnp.where(horizon[..., None, None] >= 0, out * weight, 0).sum(), out

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    found = gradient((q, k, v), weight, PACKED[:1])
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        room = ((0, 0), (0, LENGTH - length), (0, 0), (0, 0))
        alone = [jnp.pad(x[:, part], room) for x in (q, k, v, weight)]
        expected = gradient(tuple(alone[:3]), alone[3], horizons([length]))
        for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one[:, part], two[:, :length], atol=1e-5)
        start += length
    for leaf in jax.tree.leaves(found[0]):
        assert not np.asarray(leaf)[:, start:].any()


@pytest.mark.parametrize("attention", [XLA, CPU], ids=["xla", "cpu"])
def test_gradients_equal_those_of_plain_softmax(attention: Attention) -> None:
    """Rows that take several blocks, against JAX's own attention and its own derivative."""
    q, k, v = draw(2, LENGTH)
    index = jnp.arange(LENGTH)
    visible = (index <= index[:, None]) & (index[:, None] <= PACKED[:, None])
    weight = jnp.where(PACKED[..., None, None] >= 0, draw(2, LENGTH, 3)[0], 0)

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attend(q, k, v, PACKED, attention) * weight).sum()

    def theirs(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (jax.nn.dot_product_attention(q, k, v, mask=visible[:, None]) * weight).sum()

    found = jax.grad(ours, argnums=(0, 1, 2))(q, k, v)
    for one, two in zip(found, jax.grad(theirs, argnums=(0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_splash_splits_rows_and_heads_over_a_mesh() -> None:
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2,
                         devices=jax.devices()[:4])  # fmt: skip
    over = Attention("splash", mesh, ("data",), "tensor", interpret=True)
    arrays = draw(2, LENGTH)

    def loss(arrays: tuple[jax.Array, jax.Array, jax.Array], attention: Attention) -> jax.Array:
        out = attend(*arrays, PACKED, attention)
        return (jnp.where(PACKED[..., None, None] >= 0, out, 0) ** 2).sum()

    expected = jax.jit(jax.value_and_grad(loss), static_argnums=1)(tuple(arrays), SPLASH)
    found = jax.jit(jax.value_and_grad(loss), static_argnums=1)(tuple(arrays), over)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_every_platform_has_its_own() -> None:
    assert [attention_on(name).kind for name in ("cpu", "gpu", "cuda", "tpu")] == [
        "cpu", "cudnn", "cudnn", "splash",
    ]  # fmt: skip
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:2])  # fmt: skip
    assert attention_on("cpu", mesh).kind == "xla"


def test_without_cudnn_the_reason_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    rooms._say_once.cache_clear()
    q, k, v = (x.astype(jnp.bfloat16) for x in draw(2, LENGTH))
    expected = attend(q, k, v, PACKED)
    for _ in range(2):
        np.testing.assert_array_equal(attend(q, k, v, PACKED, Attention("cudnn")), expected)
    assert capsys.readouterr().err == "attention by XLA instead of cuDNN: cuDNN is not detected.\n"


def test_cudnn_gets_the_whole_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments for cuDNN, computed by XLA: packed examples do not see one another."""
    asked = {}

    def instead(
        q: Array, k: Array, v: Array, *, mask: jax.Array, is_causal: bool, implementation: str
    ) -> jax.Array:
        asked["kind"] = implementation
        return plain(q, k, v, mask=mask, is_causal=is_causal)

    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    arrays = draw(2, LENGTH)
    out = attend(*arrays, PACKED, Attention("cudnn"))
    real = np.asarray(PACKED) >= 0
    np.testing.assert_allclose(
        np.asarray(out)[real], np.asarray(attend(*arrays, PACKED))[real], atol=1e-5
    )
    assert np.isfinite(np.asarray(out)).all()
    assert asked == {"kind": "cudnn"}


COMPILE_FOR_TPU = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from palr_jax.llm.attention import attend, attention_on

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = Mesh(np.array(devices).reshape(2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
attention = attention_on(devices[0].platform, mesh, ("data",), "tensor")

def loss(q, k, v, horizon):
    return attend(q, k, v, horizon, attention).astype(jnp.float32).sum()

for size, dtype in ((64, jnp.bfloat16), (128, jnp.bfloat16), (64, jnp.float32)):
    def array(*shape, dtype=dtype, spec=P("data", None, "tensor")):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    q, k = array(4, 704, 8, size), array(4, 704, 4, size)
    horizon = array(4, 704, dtype=jnp.int32, spec=P("data"))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, horizon).compile()
    print("kernels", compiled.as_text().count('custom_call_target="tpu_custom_call"'))
"""


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra tpu")
def test_the_tpu_compiler_takes_splash_forward_and_backward() -> None:
    environment = os.environ | {
        "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_FOR_TPU],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # Forward, gradient of the queries, gradient of keys and values.
    assert done.stdout.split("\n")[:-1] == ["kernels 3"] * 3
