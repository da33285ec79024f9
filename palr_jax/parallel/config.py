"""Settings of a mesh of devices."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1, le=16_384)]


@dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each axis of the mesh.

    Attributes:
        data: devices of the data axis, which shards the rows of a batch and replicates weights.
        fsdp: devices of the fsdp axis, which shards rows and weights; weights are all-gathered
            layer by layer.
        tensor: devices of the tensor axis, which shards heads, feed-forward network and vocabulary.
        slices: parts that the data-centre network connects: TPU slices or GPU machines. Must divide
            `data`, because only gradients should use that network.
        topology: the chips that `palr plan` compiles for.
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
