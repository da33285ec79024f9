import numpy as np
import pytest

from palr_jax.errors import UserError
from palr_jax.parallel.chips import CHIPS, Coordinate, chip_of, parse_topology


def test_a_name_gives_chips_and_shape() -> None:
    topology = parse_topology("v5p:4x4x8")
    assert (topology.chip, topology.shape, topology.chips) == (CHIPS["v5p"], (4, 4, 8), 128)
    assert parse_topology("8xh100:8").chips == 64
    assert parse_topology("2xv5e:16x16").slices == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100:100000000", "100,000,000 chips, but the limit is 4,096"),
        ("h100:100000", "100,000 chips, but the limit is 4,096"),
        ("9999x" + "v5e:16x16", "2,559,744 chips, but the limit is 16,384"),
        ("v5e:" + "9" * 5_000, "not of the form"),
        ("v5e", "not of the form"),
        ("v5e:4x", "not of the form"),
        ("v7:4x4", "v7 is not one of v4, v5e, v5p, v6e, h100, l4"),
        ("v5e:16", "a v5e has 2 axes, as in v5e:4x4"),
        ("v5p:4x4", "a v5p has 3 axes, as in v5p:4x4x4"),
        ("v5e:0x4", "has 2 axes"),
        ("0xv5e:4x4", "has 2 axes"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value)


def grid(*shape: int) -> list[Coordinate]:
    return [(0, *place) for place in np.ndindex(*shape)]


def test_a_ring_takes_in_from_both_sides_and_a_line_from_one() -> None:
    link = CHIPS["v5e"].link_bandwidth
    # No axis of 4x4 is a ring; both axes of 16x16 are.
    assert parse_topology("v5e:4x4").bandwidth(grid(4, 4)) == 2 * link
    assert parse_topology("v5e:4x4").bandwidth(grid(4, 1)) == link
    assert parse_topology("v5e:16x16").bandwidth(grid(1, 16)) == 2 * link
    assert parse_topology("v5e:16x16").bandwidth(grid(1, 8)) == link
    assert parse_topology("v5e:16x16").bandwidth(grid(16, 16)) == 4 * link
    assert parse_topology("v5e:8x16").bandwidth(grid(8, 16)) == 3 * link
    cube = parse_topology("v5p:4x4x4")
    assert cube.bandwidth(grid(4, 4, 4)) == 6 * cube.chip.link_bandwidth


def test_beyond_the_interconnect_the_network_carries() -> None:
    for name in ("8xh100:8", "2xv5e:16x16"):
        topology = parse_topology(name)
        rest = (0,) * (len(topology.shape) - 1)
        assert topology.bandwidth([(0, 0, *rest), (0, 1, *rest)]) == topology.chip.link_bandwidth
        assert topology.bandwidth([(0, 0, *rest), (1, 0, *rest)]) == topology.chip.network_bandwidth


def test_balance_of_each_chip_is_that_of_its_kind() -> None:
    """Operations per byte of memory: 150 to 600 in every accelerator of this decade."""
    for chip in CHIPS.values():
        assert 150 < chip.flops / chip.hbm_bandwidth < 600
        assert chip.link_bandwidth < chip.hbm_bandwidth
        assert chip.network_bandwidth < chip.link_bandwidth


def test_devices_are_known_by_the_name_that_jax_gives_them() -> None:
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("TPU v5") is CHIPS["v5p"]
    assert chip_of("cpu") is None
