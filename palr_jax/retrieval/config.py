"""The `retriever` section of a config."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from palr_jax.evaluation.metrics import SLATE

Model = Literal[
    "popularity", "item_knn", "bpr_mf", "ncf", "lightgcn", "gru4rec", "caser", "bert4rec", "sasrec",
    "hstu",
]  # fmt: skip
# Models that read histories in order.
SEQUENTIAL: tuple[Model, ...] = ("gru4rec", "caser", "bert4rec", "sasrec", "hstu")
BlockKind = Literal["sasrec", "bert"]
ItemFeatures = Literal["none", "words"]
# Of fixed vectors of items.
FEATURE_WIDTH = 128
LossKind = Literal["cross_entropy", "sampled_softmax", "bce", "gbce", "bpr"]


@dataclass(frozen=True)
class RetrieverConfig:
    """Which retriever proposes the candidates, and how it is trained.

    Attributes:
        model: the retriever.
        candidates: items proposed per user (paper: 50), at least the length of a slate.
        loss: training loss: cross_entropy is the softmax over the whole catalog, the others
            compare the target with sampled negatives. null is the model's own: cross_entropy for
            sequential models, bpr for bpr_mf and lightgcn, bce for ncf.
        negatives: sampled negatives per target, for all losses except cross_entropy.
        dim: width of the item embeddings.
        init_std: standard deviation of the initial embeddings.
        input_scale: factor on the item embeddings before the blocks of sasrec read them; scores
            use them unscaled. The first SASRec took the square root of `dim`.
        item_features: fixed vectors of items, whose learned linear map is added to the item
            embeddings of a sequential model: words are vectors of the words of the titles, as in
            `ranker.item_embeddings`; none adds nothing.
        block: layers of sasrec: sasrec normalises the input of attention and feed-forward; bert
            (Devlin et al. 2019) normalises their outputs and the embeddings, has a GELU network of
            width 4 x `dim`, and applies dropout to attention as well. With few sampled negatives,
            bert overfits less.
        num_blocks: number of attention blocks, GRU layers or propagations over the graph.
        num_heads: attention heads; divides `dim`.
        length: newest items of a history that the model reads.
        dropout: share of activations set to zero in training.
        learning_rate: learning rate of AdamW.
        weight_decay: weight decay of AdamW: each step shrinks all parameters by this times the
            learning rate.
        averaging: EMA decay of the parameters per step; 0 disables the average.
        batch_size: rows of `length` interactions per step for sequential models, single
            interactions for the others.
        devices: devices that a sequential model is trained on, those of all processes together;
            must divide `batch_size`, as rows are divided over them. Each device draws its own
            dropout and negatives.
        fsdp: how many of `devices` the item vectors are divided over, with their average and the
            optimizer's moments; the others hold copies. It must divide `devices` and `dim`, and
            changes no result. null is all of `devices`.
        max_epochs: most passes over the training interactions.
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
    item_features: ItemFeatures = "none"
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
    fsdp: Annotated[int, Field(ge=1, le=16_384)] | None = None
    max_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 5

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide dim ({self.dim})")
        if self.input_scale != 1 and self.model != "sasrec":
            raise ValueError(f"input_scale ({self.input_scale}) is not an option of {self.model}")
        if self.block != "sasrec" and self.model != "sasrec":
            raise ValueError(f"block ({self.block}) is not an option of {self.model}")
        if self.item_features != "none" and self.model not in SEQUENTIAL:
            raise ValueError(
                f"item_features ({self.item_features}) is not an option of {self.model}"
            )
        if self.devices > 1 and self.model not in SEQUENTIAL:
            raise ValueError(f"devices ({self.devices}) must be 1 for {self.model}")
        if self.batch_size % self.devices:
            raise ValueError(f"devices ({self.devices}) must divide batch_size ({self.batch_size})")
        self._check_fsdp()

    @property
    def ways(self) -> int:
        """The devices that the item vectors are divided over."""
        return self.fsdp or self.devices

    def _check_fsdp(self) -> None:
        # Without `fsdp`, it is `devices` that the user can change.
        named = f"devices ({self.devices})" if self.fsdp is None else f"fsdp ({self.fsdp})"
        mend = "; set fsdp to a divisor of both" if self.fsdp is None else ""
        if self.devices % self.ways:
            raise ValueError(f"{named} must divide devices ({self.devices})")
        if self.dim % self.ways:
            raise ValueError(f"{named} must divide dim ({self.dim}){mend}")
        if self.item_features != "none" and FEATURE_WIDTH % self.ways:
            raise ValueError(
                f"{named} must divide {FEATURE_WIDTH}, the width of item_features{mend}"
            )
