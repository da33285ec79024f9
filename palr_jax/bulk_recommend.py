"""Slates for many users, of a run or of a file.

They are made in parts that survive a kill, divided among processes.

Shapes: U users, C candidates, K items of a slate.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import polars as pl
from jax.experimental import multihost_utils

from palr_jax.config import to_dict
from palr_jax.data.catalog import By
from palr_jax.data.histories import read_histories
from palr_jax.decoding.score_plan import Sizes
from palr_jax.errors import UserError
from palr_jax.evaluation import fusion
from palr_jax.io.files import reading, replacing
from palr_jax.io.lock import NAME as LOCK
from palr_jax.io.lock import locked
from palr_jax.io.paths import delete
from palr_jax.io.progress import Advance, progress, say
from palr_jax.io.provenance import changed, claim, fingerprint
from palr_jax.parallel import processes
from palr_jax.ragged import Ragged
from palr_jax.recommender import Recommender

# Users of a part: what a kill can cost.
PART = 512
_JOB = "job.json"
_ENDINGS = (".parquet", ".csv")

# What the parts of one job have in common: config, k, users and step of the ranker.
Job = dict[str, str | int]


@dataclass(frozen=True)
class Users:
    """Whom to recommend to.

    Attributes:
        ids: str, [U].
        histories: all items of each, oldest first.
    """

    ids: np.ndarray
    histories: Ragged


def users_of(recommender: Recommender) -> Users:
    """All users of the data set."""
    split = recommender.prepared.split
    return Users(split.user_ids, split.histories("all"))


def users_in(file: Path, recommender: Recommender, by: By) -> Users:
    """The users in a file (see `palr_jax.data.histories.read_histories`).

    Raises:
        UserError: as `read_histories`, or an item is not in the catalog.
    """
    found, rows, catalog = read_histories(file), [], recommender.catalog
    for user, names in zip(found.users, found.items, strict=True):
        try:
            rows.append([catalog.index_by(name, by) for name in names])
        except UserError as error:
            raise UserError(f"{file}, user {user!r}: {error}") from None
    return Users(np.array(found.users), Ragged.from_rows(rows))


def recommend_all(
    recommender: Recommender, k: int, output: Path, users: Users | None = None
) -> None:
    """Writes the slates of many users as a table, Parquet or CSV.

    Its columns are user, rank, item_id, title and score; users are in the order of the data.
    Every process makes its share of the parts, on its own devices; those that an earlier attempt
    has finished are kept.

    Args:
        recommender: of the run.
        k: items of a slate.
        output: the file, which is replaced; its ending, .parquet or .csv, selects the format.
        users: by default all of the data set, each with all of their items as history.

    Raises:
        UserError: `output` has another ending, or is a folder; processes disagree about the run,
            its config or k; the folder holds parts of another job, or another process is writing
            them; or as `Recommender.recommend`.
    """
    check_output(output)
    recommender.check_k(k)  # before anything is written
    users = users or users_of(recommender)
    job = _job(recommender, k, users)
    jobs = processes.gather(job)
    if differing := sorted({name for other in jobs for name in changed(jobs[0], other)}):
        raise UserError(f"processes differ in {', '.join(differing)}: start them all alike")
    processes.led(lambda: _check_own(_folder(output)))
    with locked(_folder(output)):
        make_parts(recommender, k, output, jax.process_index(), jax.process_count(), users)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("all parts are made")
        if jax.process_index() == 0:
            join_parts(recommender, output, users)


def check_output(output: Path) -> None:
    """Checks that a table can be written to a path.

    Raises:
        UserError: it cannot.
    """
    if output.suffix not in _ENDINGS:
        raise UserError(
            f"--output {output}: it is a Parquet or a CSV table: end it in .parquet or .csv"
        )
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file")


def make_parts(
    recommender: Recommender,
    k: int,
    output: Path,
    index: int,
    count: int,
    users: Users | None = None,
) -> None:
    """Writes every `count`-th part, from number `index` on, unless it exists.

    Parts are in a folder with the name of the output followed by `.parts`.
    """
    folder, users = _folder(output), users or users_of(recommender)
    job = _job(recommender, k, users)
    if differing := changed(job, claim(folder / _JOB, job, by_all=True)):
        raise UserError(
            f"{folder} holds parts of a job with another {', '.join(differing)}: delete it or "
            "choose another --output"
        )
    mine = list(_starts(users))[index::count]
    left = [start for start in mine if not _part(folder, start).exists()]
    sizes = {start: min(PART, len(users.ids) - start) for start in mine}
    total, todo = sum(sizes.values()), sum(sizes[start] for start in left)
    if todo < total:
        say(f"recommend: {total - todo:,} of {total:,} users are done already")
    with progress("recommend", total, "users", done=total - todo) as advance:
        _make(recommender, k, folder, left, advance, users)


def join_parts(recommender: Recommender, output: Path, users: Users | None = None) -> None:
    """Makes one table of all parts, which are deleted."""
    folder = _folder(output)
    files = [_part(folder, start) for start in _starts(users or users_of(recommender))]
    with replacing(output) as temporary:
        parts = []
        for file in files:
            with reading(file):
                parts.append(pl.scan_parquet(file.read_bytes()))
        table = pl.concat(parts)
        if output.suffix == ".csv":
            table.sink_csv(temporary)
        else:
            table.sink_parquet(temporary)
    for file in (*files, folder / _JOB, folder / LOCK):
        file.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        delete(folder)


def _make(
    recommender: Recommender,
    k: int,
    folder: Path,
    starts: list[int],
    advance: Advance,
    users: Users,
) -> None:
    """Makes parts with one set of programs: their sizes have room for all users' candidates."""
    parts = []
    for start in starts:
        known = users.histories.take(range(start, min(start + PART, len(users.ids))))
        parts.append((start, known, *recommender.propose(known, known, k)))
    sizes = Sizes()
    for _, _, candidates_UC, _ in parts:
        sizes = sizes.cover(recommender.ranker.sizes(candidates_UC))
    ranker = dataclasses.replace(recommender.ranker, fit=sizes.cover)
    recommender = dataclasses.replace(recommender, ranker=ranker)
    for start, known, candidates_UC, retriever_UC in parts:
        fused_UC = recommender.fused(known, candidates_UC, retriever_UC, advance)
        ids = users.ids[start : start + PART]
        table = _table(recommender, ids, candidates_UC, fused_UC, k)
        with replacing(_part(folder, start), by_all=True) as temporary:
            table.write_parquet(temporary)


def _table(
    recommender: Recommender,
    user_ids: np.ndarray,
    candidates_UC: np.ndarray,
    fused_UC: np.ndarray,
    k: int,
) -> pl.DataFrame:
    catalog = recommender.catalog
    slate_UK = fusion.slates(candidates_UC, fused_UC, k)
    places = slate_UK.shape[1]
    items = slate_UK.reshape(-1)
    is_there = items >= 0  # few users have fewer than `places`
    table = pl.DataFrame(
        {
            "user": np.repeat(user_ids.astype(str), places),
            "rank": np.tile(np.arange(1, places + 1, dtype=np.int32), len(user_ids)),
            "item_id": catalog.item_ids[items].astype(str),
            "title": np.array(catalog.titles, dtype=object)[items],
            "score": np.exp(-np.sort(-fused_UC, axis=1)[:, :places]).reshape(-1).astype(np.float32),
        },
        schema_overrides={"title": pl.String},
    )
    return table.filter(pl.Series(is_there))


def _job(recommender: Recommender, k: int, users: Users) -> Job:
    """What the parts of one job have in common."""
    values = to_dict(recommender.config)
    del values["mesh"]
    values["weights"] = dataclasses.asdict(recommender.weights)
    parts = ("\n".join(map(str, users.ids)).encode(), users.histories.values_N.tobytes(),
             users.histories.offsets_R1.tobytes())  # fmt: skip
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    return {"config": fingerprint(values), "step": recommender.step, "k": k, "users": digest}


def _check_own(folder: Path) -> None:
    """Checks that an existing folder is empty or holds parts."""
    if not folder.exists() or (folder / _JOB).exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --output")
    others = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    if others:
        raise UserError(f"{folder} holds {others[0]!r} and no parts: choose another --output")


def _starts(users: Users) -> range:
    """The first user of each part."""
    return range(0, len(users.ids), PART)


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def _part(folder: Path, start: int) -> Path:
    return folder / f"users-{start:09}.parquet"
