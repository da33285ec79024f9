import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax.dropout import drop_out

KEY = jax.random.key(2)


def test_the_mean_is_kept_and_values_fall_independently() -> None:
    dropped = np.asarray(drop_out(jnp.ones((4000, 40)), 0.25, KEY))
    assert set(np.unique(dropped)) == {0, np.float32(4 / 3)}
    # Along both axes, a sum of n terms of 0 or 4/3, each 4/3 with chance 3/4, has variance n / 3.
    for axis, terms, sums in ((1, 40, 4000), (0, 4000, 40)):
        total = dropped.sum(axis=axis)
        assert total.mean() == pytest.approx(terms, abs=5 * (terms / 3 / sums) ** 0.5)
        assert total.var() == pytest.approx(terms / 3, rel=5 * (2 / sums) ** 0.5)


def test_keys_drop_different_values() -> None:
    one, other = (drop_out(jnp.ones(10_000), 0.5, jax.random.key(n)) != 0 for n in (0, 1))
    assert jnp.mean(one == other) == pytest.approx(0.5, abs=0.025)


def test_the_shape_is_of_no_account() -> None:
    x = jax.random.normal(jax.random.key(0), (6, 5, 4))
    for shape in ((30, 4), (120,), (2, 3, 5, 4)):
        np.testing.assert_array_equal(
            drop_out(x.reshape(shape), 0.4, KEY).reshape(x.shape), drop_out(x, 0.4, KEY)
        )


def test_the_gradient_passes_where_values_do() -> None:
    x = jax.random.normal(jax.random.key(0), (50, 8))
    dropped, back = jax.vjp(lambda x: drop_out(x, 0.3, KEY), x)
    np.testing.assert_array_equal(back(x)[0], dropped)


@pytest.mark.parametrize(("rate", "key"), [(0.3, None), (0.0, KEY)])
def test_nothing_is_dropped_without_a_key_or_at_rate_0(rate: float, key: jax.Array | None) -> None:
    x = jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(drop_out(x, rate, key), x)


def test_half_precision_stays_so() -> None:
    assert drop_out(jnp.ones((3, 4), jnp.bfloat16), 0.5, KEY).dtype == jnp.bfloat16
