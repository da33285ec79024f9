"""The types of results.json and retrievers.json."""

from typing import NotRequired, TypeAlias, TypedDict

from palr_jax.json_types import JsonObject

ResultRow: TypeAlias = JsonObject
"""A model's row: `model`, `users`, a number for each metric, and `ci95`.

`ci95` holds, for each model that it is compared with, the bounds of the difference by metric.
"""

RetrieverRow: TypeAlias = JsonObject
"""A retriever's row: `model`, `users`, a number for each metric, `epochs` and `minutes`."""

ControlRow = TypedDict(
    "ControlRow", {"control": str, "users": int, "HR@10": float, "NDCG@10": float}
)
"""How PALR_v2 ranks when a part of what it reads is disturbed."""


class Results(TypedDict):
    """The content of results.json.

    Attributes:
        dataset: source of the data.
        protocol: what is measured, and how, in words.
        rows: one for each model.
        groups: lift by groups of users, ranks and reliability (docs/results.md).
        controls: absent if they were not measured.
    """

    dataset: str
    protocol: dict[str, str]
    rows: list[ResultRow]
    groups: JsonObject
    controls: NotRequired[list[ControlRow]]
