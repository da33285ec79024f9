"""What retrievers propose at moments of users' training items that they were not trained on.

A ranker learns from these candidates what it will have to rank: a retriever ranks what it was
trained on far better than what comes next, so candidates for its own training items would teach the
ranker to trust it too much.

Shapes: U users, P moments, K candidates, I items, R width of an item vector.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from palr_jax.config import Config, to_dict
from palr_jax.data.prepare import Prepared
from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.instruct.negatives import Retrieved, draw_moments
from palr_jax.io.files import read_arrays, reading, write_arrays
from palr_jax.io.progress import say
from palr_jax.io.provenance import fingerprint
from palr_jax.parallel import processes
from palr_jax.ragged import Ragged
from palr_jax.retrieval import loop
from palr_jax.retrieval.models import fitted
from palr_jax.retrieval.sequential import Sequential
from palr_jax.run_directory import RunDirectory
from palr_jax.stages.item_vectors import retriever_features


@dataclass(frozen=True)
class Proposals:
    """Candidates of the tuning users' moments.

    Attributes:
        retrieved: the moments and their candidates.
        vectors_IR: float32, the item vectors of the retriever that proposed them; None if it has
            none, or if several retrievers proposed, since their vectors are not comparable.
    """

    retrieved: Retrieved
    vectors_IR: np.ndarray | None


@dataclass(frozen=True)
class _Part:
    """Moments that one retriever proposes for.

    Attributes:
        train_on: what it is trained on; its validation items end its training.
        moments: lengths of the prefixes of each user, empty for users of other parts.
    """

    train_on: Split
    moments: Ragged


def propose_moments(
    config: Config, run: RunDirectory, prepared: Prepared, users: np.ndarray
) -> Proposals:
    """Trains the retrievers, or reads what they proposed before.

    They have the settings of the run's retriever, and no held-out item has a part in them. Several
    processes train them together, as `palr retrieve` does.

    Args:
        config: `instruct.held_out` selects what is held out of their training.
        run: keeps them and what they proposed.
        prepared: the data of the run.
        users: that the ranker is tuned on.

    Raises:
        UserError: no interactions remain to train on, or as `models.fitted`.
    """
    split = prepared.split
    feature_IR = retriever_features(config.retriever, run, prepared.catalog)
    directory = run.negatives / _fingerprint(config, split, feature_IR)
    file = directory / "negatives.npz"
    if not processes.led(file.exists):
        _train(config, split, users, directory, file, feature_IR)
    return _read(file, split)


def _read(file: Path, split: Split) -> Proposals:
    arrays = read_arrays(file, "moments_P", "moments_U1", "items_PK", "scores_PK")
    items_PK, scores_PK = arrays["items_PK"], arrays["scores_PK"]
    vectors_IR = arrays.get("vectors_IR")
    with reading(file):
        moments = Ragged.checked(arrays["moments_P"], arrays["moments_U1"])
        if (len(moments), len(moments.values_N)) != (len(split.train), len(items_PK)):
            raise ValueError("its arrays are of different users")
        if items_PK.dtype.kind != "i" or items_PK.ndim != 2 or scores_PK.shape != items_PK.shape:
            raise ValueError(f"items are {items_PK.dtype} {items_PK.shape}")
        if vectors_IR is not None and len(vectors_IR) != split.num_items:
            raise ValueError("its vectors are of other items")
    return Proposals(Retrieved(moments, items_PK, scores_PK), vectors_IR)


def _train(
    config: Config,
    split: Split,
    users: np.ndarray,
    directory: Path,
    file: Path,
    feature_IR: np.ndarray | None,
) -> None:
    parts = (
        _by_time(config, split, users)
        if config.instruct.held_out == "time"
        else (_by_users(config, split, users))
    )
    count = sum(len(part.moments.values_N) for part in parts)
    items_PK = np.full((count, config.retriever.candidates), -1, np.int32)
    scores_PK = np.full(items_PK.shape, -np.inf, np.float32)
    moments = Ragged.from_rows(
        np.concatenate([part.moments[user] for part in parts]) for user in range(split.num_users)
    )
    arrays = {"moments_P": moments.values_N, "moments_U1": moments.offsets_R1}
    for number, part in enumerate(parts):
        say(
            f"candidates to learn from, {number + 1} of {len(parts)}: a retriever is trained on "
            f"{len(part.train_on.train.values_N):,} interactions"
        )
        folder = directory / "retriever" if len(parts) == 1 else directory / f"retriever-{number}"
        retriever = fitted(config.retriever, part.train_on, config.seed, folder, feature_IR)
        user_P = np.repeat(np.arange(split.num_users), part.moments.lengths_R)
        prefixes = Ragged.from_rows(
            split.train[user][:length]
            for user, length in zip(user_P.tolist(), part.moments.values_N, strict=True)
        )
        top = retriever.recommend(prefixes, config.retriever.candidates)
        # A user belongs to one part, whose moments stand together.
        mine_P = np.isin(np.repeat(np.arange(split.num_users), moments.lengths_R), user_P)
        items_PK[mine_P], scores_PK[mine_P] = np.asarray(top.item_UK), np.asarray(top.score_UK)
        if len(parts) == 1 and isinstance(retriever, Sequential):
            arrays["vectors_IR"] = retriever.item_vectors()
    # The others read the file once it is there.
    processes.led(lambda: write_arrays(file, **arrays, items_PK=items_PK, scores_PK=scores_PK))


def _by_users(config: Config, split: Split, users: np.ndarray) -> list[_Part]:
    """Each part's tuning users are new to its retriever."""
    moments = draw_moments(split.train, users, config.seed, config.instruct.moments)
    rng = np.random.default_rng([config.seed, len(users)])
    parts = []
    for fold in np.array_split(rng.permutation(users), config.instruct.folds):
        others = np.setdiff1d(np.flatnonzero(split.train.lengths_R >= 2), fold)
        if not len(others):
            raise UserError(
                "all users are held out, so none remain to train their retriever on: raise "
                f"instruct.folds or lower instruct.user_share ({config.instruct.user_share})"
            )
        mine = set(fold.tolist())
        parts.append(
            _Part(
                _without_newest(split, others, np.ones(len(others), np.int64)),
                Ragged.from_rows(
                    moments[user] if user in mine else [] for user in range(split.num_users)
                ),
            )
        )
    return parts


def _by_time(config: Config, split: Split, users: np.ndarray) -> list[_Part]:
    """One retriever that has not seen the newest training items of the tuning users.

    At most half of a user's items are taken from it.
    """
    length_U = split.train.lengths_R
    held_U = np.ones(split.num_users, np.int64)
    held_U[users] = np.minimum(config.instruct.moments, length_U[users] // 2)
    able = np.flatnonzero(length_U >= 2)
    asked = set(users.tolist())
    moments = Ragged.from_rows(
        np.arange(length_U[user] - held_U[user], length_U[user]) if user in asked else []
        for user in range(split.num_users)
    )
    return [_Part(_without_newest(split, able, held_U[able]), moments)]


def _without_newest(split: Split, users: np.ndarray, held_U: np.ndarray) -> Split:
    """A split of the training items of some users, without the newest ones of each.

    The first item that is left out validates and tests.
    """
    train = split.train.take(users)
    kept_U = train.lengths_R - held_U
    index_N = np.arange(len(train.values_N)) - np.repeat(train.offsets_R1[:-1], train.lengths_R)
    shorter = Ragged.from_lengths(
        train.values_N[index_N < np.repeat(kept_U, train.lengths_R)], kept_U
    )
    next_U = train.values_N[train.offsets_R1[:-1] + kept_U]
    return replace(
        split, train=shorter, validation_U=next_U, test_U=next_U, user_ids=split.user_ids[users]
    )


def _fingerprint(config: Config, split: Split, feature_IR: np.ndarray | None) -> str:
    """The fingerprint of what proposals are made from."""
    retriever, instruct = to_dict(config)["retriever"], config.instruct
    if feature_IR is None:
        del retriever["item_features"]  # proposals that were made without this key stay valid
    del retriever["fsdp"]  # changes no result
    chosen = [instruct.user_share, instruct.held_out, instruct.moments, instruct.folds]
    return fingerprint([retriever, config.seed, *chosen, loop.digest(split, feature_IR)])
