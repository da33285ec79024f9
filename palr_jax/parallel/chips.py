"""Published figures of accelerator chips, and the topologies that connect them.

A topology is named as in XLA: the chip, a colon and the chips along each axis, `v5e:4x4` or
`v5p:4x4x8`; for GPUs the number in a machine, `h100:8`. The number of slices or machines that the
data-centre network connects is a prefix: `2xv5e:16x16`, `8xh100:8`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from palr_jax.errors import UserError, shown

GB, GIB = 10**9, 2**30
# The largest pod has 8,960 chips. CPU devices simulate GPUs, and more of them take minutes.
_MOST_TPUS, _MOST_GPUS = 16_384, 4_096

# Coordinate of a chip: its slice or machine, then its index along each axis.
Coordinate = tuple[int, ...]


@dataclass(frozen=True)
class Chip:
    """One accelerator chip.

    Attributes:
        hbm_bytes: memory in bytes.
        flops: peak of bfloat16 products in operations per second.
        hbm_bandwidth: memory bandwidth in bytes per second.
        link_bandwidth: bytes per second of one interconnect link in one direction; of all links of
            a chip if a switch connects the chips (NVLink).
        wraps_at: an axis whose length is a multiple of this is a ring; 0 if a switch connects the
            chips.
        network_bandwidth: bytes per second of a chip's share of the data-centre network.
        axes: number of axes of its topologies.
        kinds: JAX's names of the chip (`device_kind`).
    """

    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    wraps_at: int
    network_bandwidth: float
    axes: int
    kinds: tuple[str, ...]

    @property
    def is_gpu(self) -> bool:
        """Whether the chip is a GPU: a switch connects the chips, and they run CUDA."""
        return self.wraps_at == 0


# Google's pages on each TPU version and NVIDIA's data sheets of the H100 SXM and of the L4 (dense,
# not sparse; the L4 is connected by PCIe 4.0).
# A TPU page states the bandwidth of all links in both directions: the v5e's 400 GB/s are four links
# of 50 GB/s each way. The share of the network is that of a host's network cards or of a pod.
CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1228 * GB, 50 * GB, 4, 3.1 * GB, 3, ("TPU v4",)),
    "v5e": Chip(16 * GIB, 197e12, 819 * GB, 50 * GB, 16, 3.1 * GB, 2, ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(95 * GIB, 459e12, 2765 * GB, 100 * GB, 4, 6.25 * GB, 3, ("TPU v5", "TPU v5p")),
    "v6e": Chip(
        32 * GIB, 918e12, 1638 * GB, 100 * GB, 16, 12.5 * GB, 2, ("TPU v6 lite", "TPU v6e")
    ),
    "h100": Chip(80 * GB, 989e12, 3350 * GB, 450 * GB, 0, 50 * GB, 1, ("NVIDIA H100 80GB HBM3",)),
    "l4": Chip(24 * GB, 121e12, 300 * GB, 32 * GB, 0, 1.6 * GB, 1, ("NVIDIA L4",)),
}


@dataclass(frozen=True)
class Topology:
    """Chips and how they are connected.

    Attributes:
        name: the name that was parsed.
        chip: the kind of chip.
        slices: number of parts that the data-centre network connects.
        shape: chips along each axis of a slice.
    """

    name: str
    chip: Chip
    slices: int
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return self.slices * math.prod(self.shape)

    def bandwidth(self, coordinates: Sequence[Coordinate]) -> float:
        """Upper bound of the bytes per second that each chip of a group receives from the others.

        The group uses one link per axis that it extends along, or two if it covers an axis that is
        a ring.

        Args:
            coordinates: the coordinates of the group's chips.
        """
        chip = self.chip
        if len({slice_ for slice_, *_ in coordinates}) > 1:
            return chip.network_bandwidth
        if chip.is_gpu:
            return chip.link_bandwidth
        links = 0
        for axis, length in enumerate(self.shape, 1):
            covered = len({coordinate[axis] for coordinate in coordinates})
            closed = covered == length and length % chip.wraps_at == 0
            links += (covered > 1) + closed
        return links * chip.link_bandwidth


def parse_topology(name: str) -> Topology:
    """Parses the name of a topology.

    Raises:
        UserError: the chip is unknown, the shape has another number of axes, or the topology has
            more chips than any real one.
    """
    match = re.fullmatch(r"(?:(\d{1,12})x)?([a-z]\w*):(\d{1,12}(?:x\d{1,12})*)", name)
    if not match:
        raise UserError(
            f"topology {shown(name)} is not of the form v5e:4x4, v5p:4x4x8, 2xv5e:16x16 or h100:8"
        )
    slices, kind = int(match[1] or 1), match[2]
    chip = CHIPS.get(kind)
    if chip is None:
        raise UserError(f"topology {name}: chip {kind} is not one of {', '.join(CHIPS)}")
    shape = tuple(int(length) for length in match[3].split("x"))
    if len(shape) != chip.axes or 0 in (slices, *shape):
        example = "x".join("8" if chip.axes == 1 else "4" for _ in range(chip.axes))
        raise UserError(f"topology {name}: a {kind} has {chip.axes} axes, as in {kind}:{example}")
    topology, most = Topology(name, chip, slices, shape), _MOST_GPUS if chip.is_gpu else _MOST_TPUS
    if topology.chips > most:
        raise UserError(f"topology {name}: {topology.chips:,} chips, but the limit is {most:,}")
    return topology


def chip_of(device_kind: str) -> Chip | None:
    """The chip with this `device_kind`; None if it is not in the table, such as a CPU."""
    for chip in CHIPS.values():
        if device_kind in chip.kinds:
            return chip
    return None
