"""Settings of a retriever."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from palr_jax.evaluation.metrics import SLATE

Model = Literal[
    "popularity", "item_knn", "bpr_mf", "ncf", "lightgcn", "gru4rec", "caser", "bert4rec", "sasrec"
]
# Those that read histories in order.
SEQUENTIAL: tuple[Model, ...] = ("gru4rec", "caser", "bert4rec", "sasrec")
BlockKind = Literal["sasrec", "bert"]
LossKind = Literal["cross_entropy", "sampled_softmax", "bce", "gbce", "bpr"]


@dataclass(frozen=True)
class RetrieverConfig:
    """Which retriever proposes the candidates, and how it is trained.

    Attributes:
        model: the retriever.
        candidates: items proposed per user (paper: 50), no fewer than a slate has places.
        loss: what training minimises: cross_entropy is the softmax over the whole catalog, the
            others compare with drawn items. By default the model's own: cross_entropy for those
            that read histories in order, bpr for bpr_mf and lightgcn, bce for ncf.
        negatives: drawn items per target of all losses but cross_entropy.
        dim: width of the item embeddings.
        init_std: standard deviation of the embeddings before training.
        input_scale: of sasrec: what item embeddings are multiplied by before the blocks read them;
            scores are made of them as they are. The first SASRec takes the square root of `dim`.
        block: of sasrec: its own, which normalises what each of its two parts reads; or that of
            BERT (Devlin et al. 2019), which normalises what comes out of them and the embeddings,
            has a network of 4 x `dim` with GELU, and drops out attention as well. It overfits
            less where items are compared with few drawn ones.
        num_blocks: blocks of attention, GRU layers or propagations over the graph.
        num_heads: attention heads; divides `dim`.
        length: items of a history that the model sees, the newest ones.
        dropout: share of activations set to zero in training.
        learning_rate: of AdamW.
        weight_decay: of AdamW: a step shrinks all parameters by this times the learning rate.
        averaging: share of the running average of the parameters that outlives a step; 0 for none.
        batch_size: rows of `length` interactions a step, or single interactions for the models that
            do not read histories in order.
        devices: of this process, over which the rows of a batch and the items' vectors are divided;
            for the models that read histories in order. It divides `batch_size` and `dim`. Each
            draws dropout of its own.
        max_epochs: passes over the training interactions at most.
        patience: epochs without a better validation NDCG@10 before training stops.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    model: Model = "sasrec"
    candidates: Annotated[int, Field(ge=SLATE, le=100_000)] = 50
    loss: LossKind | None = None
    negatives: Annotated[int, Field(ge=1, le=100_000)] = 1
    dim: Annotated[int, Field(ge=1, le=16_384)] = 64
    init_std: Annotated[float, Field(gt=0)] = 0.1
    input_scale: Annotated[float, Field(gt=0)] = 1.0
    block: BlockKind = "sasrec"
    num_blocks: Annotated[int, Field(ge=1, le=256)] = 1
    num_heads: Annotated[int, Field(ge=1, le=1_024)] = 1
    length: Annotated[int, Field(ge=2, le=100_000)] = 50
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    learning_rate: Annotated[float, Field(gt=0)] = 8e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.98
    batch_size: Annotated[int, Field(ge=1, le=10_000_000)] = 32
    devices: Annotated[int, Field(ge=1, le=16_384)] = 1
    max_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 5

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide dim ({self.dim})")
        if self.input_scale != 1 and self.model != "sasrec":
            raise ValueError(f"input_scale ({self.input_scale}): {self.model} has none")
        if self.block != "sasrec" and self.model != "sasrec":
            raise ValueError(f"block ({self.block}): {self.model} has one kind alone")
        if self.devices > 1 and self.model not in SEQUENTIAL:
            raise ValueError(f"devices: {self.model} is trained on one ({self.devices} are named)")
        for name, size in (("batch_size", self.batch_size), ("dim", self.dim)):
            if size % self.devices:
                raise ValueError(f"devices ({self.devices}) must divide {name} ({size})")
