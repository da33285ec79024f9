"""The `mesh` section of a config."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1, le=16_384)]


@dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each axis of the mesh.

    Attributes:
        data: devices that divide the rows of a batch and hold copies of the weights.
        fsdp: devices that divide both rows and weights; weights are gathered layer by layer.
        tensor: devices that divide heads, feed-forward and vocabulary, and their computation.
        slices: parts of the machine that are joined by the data-centre network: TPU slices, or
            machines with GPUs. They divide `data`, since only gradients should cross that network.
        topology: chips that `palr plan` compiles for, as v5e:4x4 or h100:8.
    """

    data: Positive = 1
    fsdp: Positive = 1
    tensor: Positive = 1
    slices: Positive = 1
    topology: str | None = None

    def __post_init__(self) -> None:
        if self.data % self.slices:
            raise ValueError(f"slices ({self.slices}) must divide data ({self.data})")

    @property
    def devices(self) -> int:
        """The number of devices of the mesh."""
        return self.data * self.fsdp * self.tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Devices along data, fsdp and tensor."""
        return self.data, self.fsdp, self.tensor
