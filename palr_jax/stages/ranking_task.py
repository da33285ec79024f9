"""What the rankers of a run are asked: candidates of users, with the item to find among them.

Shapes: U users, P priors, C candidates.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.config import Config
from palr_jax.data.split import Part, Split
from palr_jax.evaluation.fusion import Scores, log_popularity, popularity_of
from palr_jax.io.progress import progress
from palr_jax.ragged import Ragged
from palr_jax.ranking.ranker import Ranker, log_prior
from palr_jax.run_directory import RunDirectory


@dataclass(frozen=True)
class Task:
    """What is to be ranked for the evaluated users, in one part of the split.

    Attributes:
        users: their indices in the split.
        histories: what is known of each.
        profiles: a sentence about each.
        target_U: the item to find.
        candidates_UC: the retriever's candidates, padded with -1.
        retriever_UC: its scores of them.
        popularity_UC: log(1 + training interactions) of them.
    """

    users: np.ndarray
    histories: Ragged
    profiles: list[str]
    target_U: np.ndarray
    candidates_UC: np.ndarray
    retriever_UC: np.ndarray
    popularity_UC: np.ndarray

    def scores(self, ranker_UC: np.ndarray | None = None) -> Scores:
        """Retriever, ranker (if any) and popularity of the candidates."""
        ranker_UC = np.zeros_like(self.retriever_UC) if ranker_UC is None else ranker_UC
        return Scores(self.candidates_UC, self.retriever_UC, ranker_UC, self.popularity_UC)


def evaluated_users(config: Config, split: Split) -> np.ndarray:
    """All users, or a random sample that the seed decides, ascending."""
    count = config.evaluate.users
    if count is None or count >= split.num_users:
        return np.arange(split.num_users)
    chosen = np.random.default_rng([config.seed, split.num_users]).choice(
        split.num_users, count, replace=False
    )
    return np.sort(chosen)


def read_task(config: Config, run: RunDirectory, split: Split, part: Part) -> Task:
    """The ranking task of the evaluated users.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    users, profiles = evaluated_users(config, split), run.read_profiles()
    found = run.read_candidates(config.retriever.model)
    candidates_UC = found[f"{part}_items"][users]
    return Task(
        users=users,
        histories=split.histories(part, users),
        profiles=[profiles[user] for user in users],
        target_U=split.targets(part)[users],
        candidates_UC=candidates_UC,
        retriever_UC=found[f"{part}_scores"][users],
        popularity_UC=popularity_of(
            candidates_UC, log_popularity(split.train.values_N, split.num_items)
        ),
    )


def rank(config: Config, ranker: Ranker, task: Task, shown: str) -> np.ndarray:
    """log P of every candidate, float32 [U, C]; a ranker with a prior starts from the retriever's.

    Args:
        config: of the run.
        ranker: PALR_v2.
        task: what is to be ranked.
        shown: label of the progress bar.
    """
    return rank_alone_too(config, ranker, task, shown)[1]


def rank_alone_too(
    config: Config, ranker: Ranker, task: Task, shown: str
) -> tuple[np.ndarray, np.ndarray]:
    """log P under a uniform prior and under the retriever's, from one pass; see `rank`."""
    # Both priors even where one is wanted: all calls of an evaluation then share their programs.
    priors = [log_prior(task.candidates_UC, scores) for scores in (None, task.retriever_UC)]
    with progress(shown, len(task.users), "users") as advance:
        logp_UPC = ranker.score_under(
            task.histories,
            task.profiles,
            task.candidates_UC,
            np.stack(priors, axis=1),
            advance,
            config.evaluate.shuffles,
            config.seed,
        )
    return logp_UPC[:, 0], logp_UPC[:, 1]
