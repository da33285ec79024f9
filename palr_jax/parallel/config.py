"""Settings of a mesh of devices."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1, le=16_384)]


@dataclass(frozen=True)
class MeshConfig:
    """How many devices there are along each axis of the mesh.

    Attributes:
        data: rows of a batch are divided, weights repeated.
        fsdp: rows and weights are divided; weights are put together layer by layer.
        tensor: heads, feed-forward and vocabulary are divided, and so is their work.
        slices: parts of the machine that the data-centre network joins: TPU slices, or machines
            with GPUs. They divide `data`, since only gradients should go over that network.
        topology: the chips that the mesh is meant for, which `palr plan` compiles for.
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
        """How many devices the mesh takes."""
        return self.data * self.fsdp * self.tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Devices along data, fsdp and tensor."""
        return self.data, self.fsdp, self.tensor
