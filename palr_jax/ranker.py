"""The ranker: prompts, a LLaMA and a trie, joined.

Shapes: U users, B users of a batch, C candidates, I items of the catalog, K items of a slate, T
prompt tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import jax
import numpy as np

from palr_jax.config import Config, Variant
from palr_jax.decoding.candidate_head import Known, head_of
from palr_jax.decoding.generate import Mode, Slate, generate
from palr_jax.decoding.score import ScorePlan, Sizes, plan_score, score, sizes_of
from palr_jax.decoding.search import search
from palr_jax.decoding.trie import build, round_up
from palr_jax.errors import UserError
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.llama import Llama
from palr_jax.llm.prefix import Prefix
from palr_jax.progress import Advance, progress, say
from palr_jax.ragged import Ragged
from palr_jax.run_directory import RunDirectory
from palr_jax.sharding import Shards, fetch, make_mesh
from palr_jax.training.trained import load_trained
from palr_jax.untuned import make_model, with_head

# Tries of this many users are measured at a time.
_TRIES_AT_ONCE = 512


class NotNumbersError(UserError):
    """The model returned NaN, whatever was asked: its weights are damaged."""


@dataclass(frozen=True)
class Prompts:
    """What the model reads of some users.

    Attributes:
        tokens: the prompt of each.
        marks: of every token of a prompt, the item whose text it ends; -1 elsewhere.
        kept: the items of each history that stand in the prompt, oldest first.
    """

    tokens: Ragged
    marks: Ragged
    kept: Ragged

    def take(self, rows: Sequence[int] | np.ndarray) -> "Prompts":
        """The prompts of the given rows, in the given order."""
        return Prompts(self.tokens.take(rows), self.marks.take(rows), self.kept.take(rows))


@dataclass(frozen=True)
class Ranker:
    """Ranks candidates of users, or writes slates from the whole catalog.

    Whoever calls it says how finished users are shown: by the label of a progress bar, or with the
    `Advance` of one that is there already.

    Attributes:
        model: the LLaMA.
        writer: of prompts.
        items: the tokens of every item.
        batch_size: users at a time.
        shards: the mesh that `model` and the users of a batch are divided over.
    """

    model: Llama
    writer: PromptWriter
    items: Ragged
    batch_size: int
    shards: Shards

    def score(
        self,
        histories: Ragged,
        profiles: Sequence[str],
        candidates_UC: np.ndarray,
        shown: str | Advance,
        sizes: Sizes | None = None,
        retriever_UC: np.ndarray | None = None,
    ) -> np.ndarray:
        """log P(candidate | prompt), float32 [U, C]; the probabilities of a user sum to 1.

        Args:
            histories: items per user, oldest first.
            profiles: a sentence per user.
            candidates_UC: item indices, -1 where there is none (its result is -inf).
            shown: where progress is shown.
            sizes: with room for the candidates' tries, so that calls share programs.
            retriever_UC: the retriever's scores of the candidates, which a ranker with a prior
                starts from; without them, or where one is not finite, the prior says nothing.

        Raises:
            UserError: the model returned NaN.
        """
        prompts = self.read(histories, profiles, candidates_UC)
        self._say_cut(histories, prompts)
        sizes = sizes or self.sizes(candidates_UC)
        prior_UC = log_prior(candidates_UC, retriever_UC)
        logp_UC = np.full(candidates_UC.shape, -np.inf, np.float32)
        for rows_B, _, _ in self._batches(prompts.tokens, shown):
            items_BC = candidates_UC[rows_B]
            plan = plan_score(build(self.items, items_BC), sizes, self.reads_titles)
            logp_UC[rows_B] = self.score_batch(
                prompts.take(rows_B), plan, items_BC, prior_UC[rows_B]
            )
        return logp_UC

    def score_batch(
        self,
        prompts: Prompts,
        plan: ScorePlan,
        candidates_BC: np.ndarray,
        prior_BC: np.ndarray,
        width: int = 0,
    ) -> np.ndarray:
        """log P(candidate | prompt) of one batch, float32 [B, C], by one call of one program.

        Which program that is, the shapes decide: B, C, the sizes of the plan and the width.

        Args:
            prompts: of B users.
            plan: of the tries of their candidates.
            candidates_BC: item indices, -1 where there is none.
            prior_BC: as `log_prior` gives it.
            width: tokens that prompts are padded to, at least; by default as few as can be.

        Raises:
            UserError: the model returned NaN.
        """
        tokens_BT, length_B = padded(prompts.tokens, width)
        known = self._known(prompts, tokens_BT.shape[1], candidates_BC, prior_BC)
        tokens_BT, length_B, plan, known = self.shards.spread((tokens_BT, length_B, plan, known))
        prefix = self._prefix(with_candidates=True)
        logp_BC = fetch(score(self.model, tokens_BT, length_B, plan, self.shards, prefix, known))
        _check(logp_BC)
        return logp_BC

    def score_in_orders(
        self,
        histories: Ragged,
        profiles: Sequence[str],
        candidates_UC: np.ndarray,
        shown: str | Advance,
        orders: int,
        seed: int,
        sizes: Sizes | None = None,
        retriever_UC: np.ndarray | None = None,
    ) -> np.ndarray:
        """As `score`, with the mean probability over random orders of the candidates in prompts.

        A model prefers some places of the list to others; the mean forgets the places. It costs
        as much as `orders` times `score`; 0 is the given order alone.
        """
        if not orders:
            return self.score(histories, profiles, candidates_UC, shown, sizes, retriever_UC)
        sizes = sizes or self.sizes(candidates_UC)
        rng = np.random.default_rng(seed)
        total_UC = np.full(candidates_UC.shape, -np.inf, np.float32)
        for number in range(1, orders + 1):
            order_UC = rng.permuted(np.indices(candidates_UC.shape)[1], axis=1)
            shuffled_UC = np.take_along_axis(candidates_UC, order_UC, axis=1)
            if isinstance(shown, str):
                bar: str | Advance = f"{shown}, order {number} of {orders}"
            else:  # a user is done with the last order
                bar = shown if number == orders else _ignore
            scores_UC = None
            if retriever_UC is not None:
                scores_UC = np.take_along_axis(retriever_UC, order_UC, axis=1)
            logp_UC = self.score(histories, profiles, shuffled_UC, bar, sizes, scores_UC)
            back_UC = np.argsort(order_UC, axis=1)
            total_UC = np.logaddexp(total_UC, np.take_along_axis(logp_UC, back_UC, axis=1))
        return total_UC - np.float32(np.log(orders))

    def write(
        self,
        histories: Ragged,
        profiles: Sequence[str],
        candidates_UC: np.ndarray,
        k: int,
        shown: str | Advance,
        mode: Mode = "greedy",
        temperature: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Slates written item by item from the candidates, int32 [U, K]; -1 behind the last item.

        Args:
            histories: items per user, oldest first; none of them is written.
            profiles: a sentence per user.
            candidates_UC: item indices, -1 where there is none.
            k: items of a slate.
            shown: where progress is shown.
            mode: how the next item is chosen.
            temperature: of sample.
            seed: of sample; what a user gets does not depend on the other users.

        Raises:
            UserError: the model returned NaN.
        """
        prompts = self.prompts(histories, profiles, candidates_UC)
        prefix = self._prefix(with_candidates=True)
        sizes = self.sizes(candidates_UC)
        slate_UK = np.full((len(histories), k), -1, np.int32)
        key_U = jax.random.split(jax.random.key(seed), len(histories))
        for rows_B, tokens_BT, length_B in self._batches(prompts, shown):
            items_BC, seen_BY = candidates_UC[rows_B], _seen(histories, rows_B)
            allowed_BC = (items_BC >= 0) & (items_BC[:, :, None] != seen_BY[:, None]).all(axis=2)
            trie = build(self.items, items_BC)
            tokens_BT, length_B = self.shards.spread((tokens_BT, length_B))
            written = generate(
                self.model, tokens_BT, length_B, trie, allowed_BC, k, mode, temperature,
                key_U[rows_B], sizes, prefix,
            )  # fmt: skip
            _check(fetch(written.logp_BK))
            slate_UK[rows_B] = _items_of(written, items_BC)
        return slate_UK

    def write_from_catalog(
        self,
        histories: Ragged,
        profiles: Sequence[str],
        k: int,
        shown: str | Advance,
        width: int = 1,
    ) -> np.ndarray:
        """Slates written item by item from all unseen items, int32 [U, K].

        Args:
            histories: items per user, oldest first; none of them is written.
            profiles: a sentence per user.
            k: items of a slate.
            shown: where progress is shown.
            width: hypotheses of an item; see `search`.

        Raises:
            UserError: the model returned NaN.
        """
        prompts = self.prompts(histories, profiles, None)
        prefix = self._prefix(with_candidates=False)
        slate_UK = np.full((len(histories), k), -1, np.int32)
        catalog = build(self.items, np.arange(len(self.items))[None])
        for rows_B, tokens_BT, length_B in self._batches(prompts, shown):
            seen_BY = _seen(histories, rows_B)
            tokens_BT, length_B = self.shards.spread((tokens_BT, length_B))
            written = search(
                self.model, tokens_BT, length_B, catalog, seen_BY, k, width, prefix=prefix
            )
            _check(fetch(written.logp_BK))
            slate_UK[rows_B] = fetch(written.slot_BK)
        return slate_UK

    def sizes(self, candidates_UC: np.ndarray) -> Sizes:
        """Sizes with room for the tries of all these users."""
        sizes = Sizes()
        for start in range(0, len(candidates_UC), _TRIES_AT_ONCE):
            chunk_RC = candidates_UC[start : start + _TRIES_AT_ONCE]
            sizes = sizes.cover(sizes_of(build(self.items, chunk_RC), self.reads_titles))
        return sizes

    @property
    def reads_titles(self) -> bool:
        """Whether the model reads the whole text of every candidate."""
        head = head_of(self.model)
        return head is not None and head.title_D is not None

    def prompts(
        self, histories: Ragged, profiles: Sequence[str], candidates_UC: np.ndarray | None
    ) -> Ragged:
        """The prompt of every user; says how many histories were cut further than the config asks.

        Raises:
            UserError: a prompt does not fit even without history.
        """
        prompts = self.read(histories, profiles, candidates_UC)
        self._say_cut(histories, prompts)
        return prompts.tokens

    def read(
        self, histories: Ragged, profiles: Sequence[str], candidates_UC: np.ndarray | None
    ) -> Prompts:
        """As `prompts`, with what a candidate head needs beside the tokens; says nothing."""
        rows, marks, kept = [], [], []
        for user, profile in enumerate(profiles):
            candidates = None
            if candidates_UC is not None:
                candidates = candidates_UC[user][candidates_UC[user] >= 0]
            if candidates is not None:
                kept_H = self.writer.kept_for_ranking(histories[user], profile, candidates)
                tokens_T, item_T = self.writer.ranking_prompt(kept_H, profile, candidates)
            else:
                kept_H = self.writer.kept(histories[user], profile)
                tokens_T, item_T = self.writer.marked_prompt(kept_H, profile)
            rows.append(tokens_T)
            marks.append(item_T)
            kept.append(kept_H)
        return Prompts(Ragged.from_rows(rows), Ragged.from_rows(marks), Ragged.from_rows(kept))

    def _say_cut(self, histories: Ragged, prompts: Prompts) -> None:
        room = self.writer.config
        wanted_U = np.minimum(histories.lengths_R[: len(prompts.kept)], room.history)
        cut = int((prompts.kept.lengths_R < wanted_U).sum())
        if cut:
            say(
                f"{cut:,} of {len(wanted_U):,} histories were cut below {room.history} items, "
                f"oldest first, to fit instruct.length ({room.length})"
            )

    def _known(
        self, prompts: Prompts, width: int, candidates_BC: np.ndarray, prior_BC: np.ndarray
    ) -> Known | None:
        """What a candidate head needs of some users; None for a model without one."""
        head = head_of(self.model)
        if head is None:
            return None
        item_BT = np.full((len(candidates_BC), width), -1, np.int32)
        item_BT[np.arange(width) < prompts.marks.lengths_R[:, None]] = prompts.marks.values_N
        return Known(
            head.with_vector(item_BT),
            head.with_vector(candidates_BC),
            head.with_vector(prompts.kept.last(self.writer.config.history, fill=-1)),
            prior_BC,
        )

    def _prefix(self, with_candidates: bool) -> Prefix:
        """The instruction that all prompts of a task begin with."""
        length = self.writer.prefix_length(with_candidates)
        return Prefix(length, groups=self.shards.ways("batch"))

    def _batches(
        self, prompts: Ragged, shown: str | Advance
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Users by prompt length: row indices [B], padded prompts [B, T], lengths [B].

        The last batch repeats users, so that every batch has the same number of rows. Few users
        make a small batch.
        """
        size = min(self.batch_size, max(round_up(len(prompts), 1), self.shards.ways("batch")))
        order_U = np.argsort(prompts.lengths_R, kind="stable")
        bar = (
            progress(shown, len(order_U), "users") if isinstance(shown, str) else nullcontext(shown)
        )
        with bar as advance:
            for start in range(0, len(order_U), size):
                rows_B = order_U[start : start + size]
                fresh = len(rows_B)
                rows_B = np.resize(rows_B, size)
                yield rows_B, *padded(prompts.take(rows_B))
                advance(fresh)


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


def _ignore(amount: int = 1, note: str = "") -> None:
    """Shows nothing."""


def _seen(histories: Ragged, rows_B: np.ndarray) -> np.ndarray:
    """The histories of some users, padded with -1 to one width for all batches."""
    longest = max(int(histories.lengths_R.max(initial=0)), 1)
    return histories.take(rows_B).last(longest, fill=-1)


def _items_of(slate: Slate, items_BC: np.ndarray) -> np.ndarray:
    """The items in the slots that were written, [B, K]; -1 behind the last."""
    slot_BK = np.asarray(slate.slot_BK)
    item_BK = np.take_along_axis(items_BC, np.maximum(slot_BK, 0), axis=1)
    return np.where(slot_BK < 0, -1, item_BK)


def _check(logp: np.ndarray) -> None:
    if np.isnan(logp).any():
        raise NotNumbersError(
            "the ranker's log-probabilities are not numbers: its weights are damaged, or its "
            "training went astray (see the losses in metrics.jsonl)"
        )


def prompt_width(length: int) -> int:
    """What prompts of so many tokens are padded to, so that few programs serve all lengths."""
    step = 32 if length <= 256 else 128
    return -(-length // step) * step


def padded(prompts: Ragged, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as rows of one width (at least `width`), int32 [B, T], and lengths, int32 [B]."""
    length_B = prompts.lengths_R.astype(np.int32)
    width = max(width, prompt_width(int(length_B.max())))
    tokens_BT = np.zeros((len(prompts), width), np.int32)
    tokens_BT[np.arange(width) < length_B[:, None]] = prompts.values_N
    return tokens_BT, length_B


def load_ranker(
    config: Config,
    run: RunDirectory,
    variant: Variant,
    step: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Ranker:
    """The tuned ranker of a run, from its newest checkpoint or that of a step.

    Args:
        config: of the run; its mesh says how the devices are arranged.
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
