"""The ranker: prompts, a LLaMA and a trie, joined.

Shapes: U users, B users of a batch, C candidates, P priors, T prompt tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from flax import nnx

from palr_jax.config import Config, Variant
from palr_jax.decoding.candidate_head import Known, head_of
from palr_jax.decoding.score import score_step
from palr_jax.decoding.score_plan import ScorePlan, Sizes, join, plan_score, sizes_of
from palr_jax.decoding.trie import Trie, build
from palr_jax.errors import UserError
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.io.progress import Advance, in_passes, say
from palr_jax.llm.llama import Llama
from palr_jax.llm.prefix import Prefix
from palr_jax.padding import to_power_of_two
from palr_jax.parallel.sharding import Shards, fetch, make_mesh
from palr_jax.ragged import Ragged
from palr_jax.ranking.base_model import make_model, with_head
from palr_jax.ranking.batches import Prompts, batches_of, padded, read_prompts
from palr_jax.run_directory import RunDirectory
from palr_jax.training.trained import load_trained
from palr_jax.trees import State

# Tries of this many users are built at a time.
_TRIES_AT_ONCE = 512


class NotNumbersError(UserError):
    """The model returned NaN for a valid prompt: its weights are damaged."""


def _smallest(sizes: Sizes) -> Sizes:
    return sizes


@dataclass(frozen=True)
class Ranker:
    """Ranks the candidates of users; `palr_jax.ranking.write` writes slates with it.

    Its methods report every user that is done to their argument `advance`.

    Attributes:
        model: the LLaMA.
        writer: of prompts.
        items: the tokens of every item.
        batch_size: users at a time.
        shards: the mesh that `model` and the users of a batch are divided over.
        fit: the smallest sizes with room for the tries of a call → the sizes that are used. By
            default the smallest; larger ones let calls share compiled programs.
    """

    model: Llama
    writer: PromptWriter
    items: Ragged
    batch_size: int
    shards: Shards
    fit: Callable[[Sizes], Sizes] = _smallest

    def score(
        self,
        histories: Ragged,
        profiles: Sequence[str],
        candidates_UC: np.ndarray,
        advance: Advance,
        retriever_UC: np.ndarray | None = None,
    ) -> np.ndarray:
        """log P(candidate | prompt), float32 [U, C]; the probabilities of a user sum to 1.

        Args:
            histories: items per user, oldest first.
            profiles: a sentence per user.
            candidates_UC: item indices, padded with -1 (the result is -inf there).
            advance: reports finished users.
            retriever_UC: the retriever's scores of the candidates, which a ranker with a prior
                starts from; without them, or where one is not finite, the prior is uniform.

        Raises:
            NotNumbersError: the model returned NaN.
        """
        prior_UPC = log_prior(candidates_UC, retriever_UC)[:, None]
        return self.score_under(histories, profiles, candidates_UC, prior_UPC, advance)[:, 0]

    def score_under(
        self,
        histories: Ragged,
        profiles: Sequence[str],
        candidates_UC: np.ndarray,
        prior_UPC: np.ndarray,
        advance: Advance,
        orders: int = 0,
        seed: int = 0,
    ) -> np.ndarray:
        """log P(candidate | prompt) under each of P priors, float32 [U, P, C].

        The priors share the passes of the model, which cost the most. A model prefers some
        positions of a list of candidates; the mean probability over random orders of the list
        removes that preference, at `orders` times the cost.

        Args:
            histories: see `score`, as for all arguments below that are not named here.
            profiles: see `score`.
            candidates_UC: see `score`.
            prior_UPC: see `log_prior`.
            advance: see `score`.
            orders: number of orders of the candidates in prompts; 0 means the given order alone.
            seed: decides the orders.

        Raises:
            NotNumbersError: the model returned NaN.
        """
        plan = self._plan(candidates_UC)
        if not orders:
            return self._score(histories, profiles, candidates_UC, plan, prior_UPC, advance)
        rng, advance = np.random.default_rng(seed), in_passes(advance, orders)
        total_UPC = np.full(prior_UPC.shape, -np.inf, np.float32)
        for _ in range(orders):
            order_UC = rng.permuted(np.indices(candidates_UC.shape)[1], axis=1)
            items_UC = np.take_along_axis(candidates_UC, order_UC, axis=1)
            moved_UPC = np.take_along_axis(prior_UPC, order_UC[:, None], axis=2)
            # A letter belongs to a position of the list, a title to its item.
            by_title = self.writer.config.answer == "title"
            plan_of_order = plan.in_order(order_UC) if by_title else self._plan(items_UC)
            logp_UPC = self._score(histories, profiles, items_UC, plan_of_order, moved_UPC, advance)
            back_U1C = np.argsort(order_UC, axis=1)[:, None]
            total_UPC = np.logaddexp(total_UPC, np.take_along_axis(logp_UPC, back_U1C, axis=2))
        return total_UPC - np.float32(np.log(orders))

    def score_batch(
        self,
        prompts: Prompts,
        plan: ScorePlan,
        candidates_BC: np.ndarray,
        prior: np.ndarray,
        width: int = 0,
    ) -> np.ndarray:
        """log P(candidate | prompt) of one batch, by one call of one program.

        The shapes select the program: B, P, C, the sizes of the plan and the width of the prompts.

        Args:
            prompts: of B users.
            plan: of the tries of their candidates.
            candidates_BC: item indices, padded with -1.
            prior: see `log_prior`; [B, C], or [B, P, C] for P priors.
            width: the least number of tokens that prompts are padded to.

        Returns:
            float32, of the shape of `prior`. A model without a candidate head, which ignores the
            prior, gives the same under all of them.

        Raises:
            NotNumbersError: the model returned NaN.
        """
        tokens_BT, length_B = padded(prompts.tokens, width)
        known = self._known(prompts, tokens_BT.shape[1], candidates_BC, prior)
        tokens_BT, length_B, plan, known = self.shards.spread((tokens_BT, length_B, plan, known))
        prefix = self.prefix(with_candidates=True)
        graph, weights = self._split
        logp = fetch(score_step(graph, weights, tokens_BT, length_B, plan, prefix, known))
        check_numbers(logp)
        return logp if logp.ndim == prior.ndim else np.broadcast_to(logp[:, None], prior.shape)

    @cached_property
    def _split(self) -> tuple[nnx.GraphDef[Llama], State]:
        """The model as graph and weights: splitting it costs about as much as a small batch."""
        return nnx.split(self.model)

    def sizes(self, candidates_UC: np.ndarray) -> Sizes:
        """The smallest sizes with room for the tries of all these users."""
        sizes = Sizes()
        for trie in self._tries(candidates_UC):
            sizes = sizes.cover(sizes_of(trie, self.reads_titles))
        return sizes

    @property
    def reads_titles(self) -> bool:
        """Whether the model reads the whole text of every candidate."""
        head = head_of(self.model)
        return head is not None and head.title_D is not None

    def read(
        self, histories: Ragged, profiles: Sequence[str], candidates_UC: np.ndarray | None
    ) -> Prompts:
        """The prompt of every user; see `read_prompts`."""
        return read_prompts(self.writer, histories, profiles, candidates_UC)

    def prompts(
        self, histories: Ragged, profiles: Sequence[str], candidates_UC: np.ndarray | None
    ) -> Prompts:
        """As `read`; says how many histories were cut below the configured length."""
        prompts, room = self.read(histories, profiles, candidates_UC), self.writer.config
        wanted_U = np.minimum(histories.lengths_R, room.history)
        cut = int((prompts.kept.lengths_R < wanted_U).sum())
        if cut:
            say(
                f"{cut:,} of {len(wanted_U):,} histories were cut below {room.history} items, "
                f"oldest first, to fit instruct.length ({room.length})"
            )
        return prompts

    def prefix(self, with_candidates: bool) -> Prefix:
        """The instruction that all prompts of a task begin with."""
        length = self.writer.prefix_length(with_candidates)
        return Prefix(length, groups=self.shards.ways("batch"))

    def batches(self, prompts: Prompts, advance: Advance) -> Iterator[np.ndarray]:
        """The users of each batch; few users make a small one."""
        most = max(to_power_of_two(len(prompts.tokens)), self.shards.ways("batch"))
        return batches_of(prompts.tokens, min(self.batch_size, most), advance)

    def _score(
        self,
        histories: Ragged,
        profiles: Sequence[str],
        candidates_UC: np.ndarray,
        plan: ScorePlan,
        prior_UPC: np.ndarray,
        advance: Advance,
    ) -> np.ndarray:
        """`score_under` in the given order, with the plan of all users."""
        prompts = self.prompts(histories, profiles, candidates_UC)
        logp_UPC = np.full(prior_UPC.shape, -np.inf, np.float32)
        for rows_B in self.batches(prompts, advance):
            logp_UPC[rows_B] = self.score_batch(
                prompts.take(rows_B), plan.take(rows_B), candidates_UC[rows_B], prior_UPC[rows_B]
            )
        return logp_UPC

    def _plan(self, candidates_UC: np.ndarray) -> ScorePlan:
        """The plan of all users; it takes a few KB per user, a trie ten times as much."""
        parts, sizes = [], Sizes()
        for trie in self._tries(candidates_UC):
            smallest = sizes_of(trie, self.reads_titles)
            parts.append(plan_score(trie, smallest, self.reads_titles))
            sizes = sizes.cover(smallest)
        sizes = self.fit(sizes)
        return join([part.padded(sizes) for part in parts])

    def _tries(self, candidates_UC: np.ndarray) -> Iterator[Trie]:
        for start in range(0, max(len(candidates_UC), 1), _TRIES_AT_ONCE):
            yield self.trie(candidates_UC[start : start + _TRIES_AT_ONCE])

    def trie(self, candidates_BC: np.ndarray) -> Trie:
        """The tries of some users' candidates (padded with -1) by what names them in the answer."""
        if self.writer.config.answer == "title":
            return build(self.items, candidates_BC)
        is_item_BC = candidates_BC >= 0
        return build(
            self.writer.letters, np.where(is_item_BC, np.cumsum(is_item_BC, axis=1) - 1, -1)
        )

    def _known(
        self, prompts: Prompts, width: int, candidates_BC: np.ndarray, prior: np.ndarray
    ) -> Known | None:
        """What a candidate head needs of some users; None for a model without one."""
        head = head_of(self.model)
        if head is None:
            return None
        return Known(
            head.with_vector(prompts.marks.padded(width, fill=-1)),
            head.with_vector(candidates_BC),
            head.with_vector(prompts.kept.last(self.writer.config.history, fill=-1)),
            prior,
        )


def log_prior(candidates_UC: np.ndarray, retriever_UC: np.ndarray | None) -> np.ndarray:
    """The retriever's log-probability of each candidate among those of its user, float32 [U, C].

    A score that is not finite (of an item that the retriever does not know) counts as the mean of
    the others of the user. Without scores all are 0.
    """
    if retriever_UC is None:
        return np.zeros(candidates_UC.shape, np.float32)
    is_known_UC = np.isfinite(retriever_UC) & (candidates_UC >= 0)
    count_U1 = np.maximum(is_known_UC.sum(axis=1, keepdims=True), 1)
    mean_U1 = np.where(is_known_UC, retriever_UC, 0).sum(axis=1, keepdims=True) / count_U1
    score_UC = np.where(is_known_UC, retriever_UC, mean_U1)
    there_UC = np.where(candidates_UC >= 0, score_UC, -np.inf)
    total_U1 = np.logaddexp.reduce(there_UC, axis=1, keepdims=True)
    return np.where(candidates_UC >= 0, score_UC - total_U1, 0).astype(np.float32)


def check_numbers(logp: np.ndarray) -> None:
    """Checks log-probabilities.

    Raises:
        NotNumbersError: the model returned NaN.
    """
    if np.isnan(logp).any():
        raise NotNumbersError(
            "the ranker's log-probabilities are not numbers: its weights are damaged, or its "
            "training went astray (see the losses in metrics.jsonl)"
        )


def load_ranker(
    config: Config,
    run: RunDirectory,
    variant: Variant,
    step: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Ranker:
    """The tuned ranker of a run, from its newest checkpoint or that of a step.

    Args:
        config: of the run; its mesh arranges the devices.
        run: where the checkpoints are.
        variant: which ranker.
        step: of its training.
        devices: by default all devices of all processes.

    Raises:
        UserError: a file of the run is missing or damaged, or the model or a batch of users does
            not divide over the mesh.
    """
    tokenizer, items = run.read_tokens()
    shards = Shards(make_mesh(config.mesh, devices))
    ways = shards.ways("batch")
    if config.evaluate.batch_size % ways:
        raise UserError(
            f"evaluate.batch_size ({config.evaluate.batch_size}) does not divide over data "
            f"{config.mesh.data} x fsdp {config.mesh.fsdp} = {ways} devices"
        )
    model = make_model(
        config.ranker,
        tokenizer.vocab_size,
        config.finetune.length,
        config.seed,
        shards,
        drawn=False,
    )
    if variant == "PALR_v2":
        model = with_head(model, config, run.read_vectors(config), shards)
    load_trained(model, run.ranker / variant, step)
    writer = PromptWriter(tokenizer, items, config.instruct)
    return Ranker(model, writer, items, config.evaluate.batch_size, shards)
