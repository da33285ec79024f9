"""Answers questions in batches, with programs that are compiled in advance.

Not thread-safe: one thread owns an engine.

Shapes: U questions, X rows to score, B rows of a batch, C candidates.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.decoding.score_plan import Sizes, plan_score, sizes_of
from palr_jax.errors import UserError
from palr_jax.padding import to_power_of_two
from palr_jax.ragged import Ragged
from palr_jax.ranking.batches import Prompts
from palr_jax.ranking.explain import ablations, lifts_of
from palr_jax.ranking.ranker import log_prior
from palr_jax.recommender import Recommender
from palr_jax.serving.limits import Limits
from palr_jax.serving.questions import Answer, Question
from palr_jax.serving.shapes import Room, padded_candidates, shapes_of, stacked

# Users of the data whose candidates and prompts decide the shapes.
_MEASURED = 512
# Size of the LRU cache of catalogs with added titles.
_KEPT = 64


@dataclass(frozen=True)
class Row:
    """One prompt to score.

    Attributes:
        history: item indices.
        profile: the sentence about the user.
        items_C: candidates, in the order of the prompt.
        prior_C: the retriever's log-probability of each.
    """

    history: np.ndarray
    profile: str
    items_C: np.ndarray
    prior_C: np.ndarray


@dataclass(frozen=True)
class Asked:
    """A question with the rows that have to be scored for it.

    Attributes:
        history: item indices.
        profile: the sentence about the user.
        items_C: candidates.
        retriever_C: the retriever's scores of them; None if the question names its candidates.
        kept_H: history items in the prompt, if an explanation was requested.
        orders: for each row that ranks, the indices of its candidates in `items_C`.
        rows: the rows to score: one per order, then those of the explanation.
    """

    history: np.ndarray
    profile: str
    items_C: np.ndarray
    retriever_C: np.ndarray | None
    kept_H: np.ndarray | None
    orders: list[np.ndarray]
    rows: list[Row]


class Engine:
    """A recommender that calls its programs in few shapes."""

    def __init__(self, recommender: Recommender, limits: Limits, most_rows: int) -> None:
        """Chooses the shapes from the data of the run; `warm_up` compiles the programs."""
        self.recommender = recommender
        self._limits = limits
        self._proposals = min(
            recommender.config.retriever.candidates, recommender.prepared.split.num_items
        )
        sizes, tokens_U = self._measured()
        self.shapes = shapes_of(
            recommender.ranker, sizes, tokens_U, self._proposals, limits.candidates, most_rows
        )
        self._with_fresh: OrderedDict[tuple[str, ...], Recommender] = OrderedDict()

    def warm_up(self, advance: Callable[[int, int], None]) -> None:
        """Calls every program once, which compiles it.

        Args:
            advance: called with the number of finished steps and of all steps.

        Raises:
            UserError: the model returns NaN.
        """
        steps = [*self._retriever_steps(), *self._ranker_steps(), self._whole_step]
        for number, step in enumerate(steps, 1):
            step()
            advance(number, len(steps))

    def answer(self, questions: Sequence[Question]) -> list[Answer | UserError]:
        """The answers, in order; the error for a question that cannot be answered."""
        answers: list[Answer | UserError | None] = [None] * len(questions)
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, question in enumerate(questions):
            groups.setdefault(question.fresh, []).append(number)
        for fresh, numbers in groups.items():
            group = [questions[number] for number in numbers]
            found = self._answers_or_errors(fresh, group)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer
        return [answer for answer in answers if answer is not None]

    def _answers_or_errors(
        self, fresh: tuple[str, ...], questions: list[Question]
    ) -> list[Answer | UserError]:
        """Answers one by one if the batch fails, so that only faulty questions get errors."""
        try:
            return [*self._answer(self.extended(fresh), questions)]
        except UserError as error:
            if len(questions) == 1:
                return [error]
        return [
            answer
            for question in questions
            for answer in self._answers_or_errors(fresh, [question])
        ]

    def extended(self, fresh: tuple[str, ...]) -> Recommender:
        """The recommender with additional titles, which no item of the run has.

        Raises:
            UserError: a title cannot be an item.
        """
        if not fresh:
            return self.recommender
        if fresh not in self._with_fresh:
            self._with_fresh[fresh] = self.recommender.with_items(fresh)
        self._with_fresh.move_to_end(fresh)
        while len(self._with_fresh) > _KEPT:
            self._with_fresh.popitem(last=False)
        return self._with_fresh[fresh]

    def _answer(self, recommender: Recommender, questions: list[Question]) -> list[Answer]:
        asked = self._asked(recommender, questions)
        rows = [row for one in asked for row in one.rows]
        scores, prompts = self._scores(recommender, rows)
        answers, start = [], 0
        for one in asked:
            stop = start + len(one.rows)
            prompt = prompts[start] if one.rows else ""
            answers.append(_answered(recommender, one, scores[start:stop], prompt))
            start = stop
        return answers

    def _asked(self, recommender: Recommender, questions: list[Question]) -> list[Asked]:
        known = Ragged.from_rows([question.history for question in questions])
        profiles = recommender.profiles(known)
        proposed = self._proposed(recommender, questions)
        asked = []
        for number, question in enumerate(questions):
            if question.candidates is None:
                items_C, scores_C = proposed[number]
            else:
                items_C, scores_C = np.array(question.candidates, np.int32), None
            asked.append(
                _with_rows(
                    recommender, question, known[number], profiles[number], items_C, scores_C
                )
            )
        return asked

    def _proposed(
        self, recommender: Recommender, questions: list[Question]
    ) -> dict[int, tuple[np.ndarray, np.ndarray | None]]:
        """The retriever's candidates and scores for each question that names no candidates."""
        numbers = [n for n, question in enumerate(questions) if question.candidates is None]
        found: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        most = self.shapes.usual.rows[-1]
        for start in range(0, len(numbers), most):
            part = numbers[start : start + most]
            histories = [questions[number].history for number in part]
            banned = [(*questions[number].history, *questions[number].exclude) for number in part]
            items_UC, scores_UC = self._propose(recommender, histories, banned)
            for row, number in enumerate(part):
                is_item_C = items_UC[row] >= 0
                found[number] = items_UC[row, is_item_C], scores_UC[row, is_item_C]
        return found

    def _propose(
        self,
        recommender: Recommender,
        histories: Sequence[Sequence[int]],
        banned: Sequence[Sequence[int]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The retriever's candidates; empty histories pad the batch."""
        height = self.shapes.usual.rows_for(len(histories))
        empty: list[Sequence[int]] = [()] * (height - len(histories))
        return recommender.propose(
            Ragged.from_rows([*histories, *empty]),
            Ragged.from_rows([*banned, *empty]),
            k=1,
            room=self._limits.exclude,
        )

    def _scores(
        self, recommender: Recommender, rows: list[Row]
    ) -> tuple[list[np.ndarray], list[str]]:
        """The ranker's log-probabilities of each row's candidates, and the prompts as text."""
        if not rows:
            return [], []
        prompts = _read(recommender, rows)
        scores: list[np.ndarray] = [np.zeros(0)] * len(rows)
        for part in self._batches(prompts, rows):
            logp_BC = self._score_batch(recommender, prompts.take(part), [rows[x] for x in part])
            for index, number in enumerate(part):
                scores[number] = logp_BC[index, : len(rows[number].items_C)]
        tokenizer = recommender.ranker.writer.tokenizer
        return scores, [tokenizer.decode(prompts.tokens[row].tolist()) for row in range(len(rows))]

    def _batches(self, prompts: Prompts, rows: list[Row]) -> Iterator[list[int]]:
        """Indices of rows that are scored together, long prompts first, with little padding."""
        usual, widths = self.shapes.usual, {}
        for number, tokens in enumerate(prompts.tokens.lengths_R):
            widths[number] = self.shapes.width_for(int(tokens))
        for is_long in (False, True):
            numbers = [n for n, row in enumerate(rows)
                       if (len(row.items_C) > usual.candidates) == is_long]  # fmt: skip
            numbers.sort(key=lambda number: -widths[number])
            while numbers:
                alike = sum(widths[number] == widths[numbers[0]] for number in numbers)
                size = usual.rows_to_take(alike)
                yield numbers[:size]
                numbers = numbers[size:]

    def _score_batch(
        self, recommender: Recommender, prompts: Prompts, rows: list[Row]
    ) -> np.ndarray:
        """log P of each candidate, [B, C]; copies of the last row fill the batch."""
        ranker, candidates = recommender.ranker, [row.items_C for row in rows]
        longest = max(map(len, candidates))
        # Nearly every batch fits the smallest room for so many candidates, so build its tries once.
        items_BC = padded_candidates(candidates, self.shapes.room_for(longest, Sizes()).candidates)
        trie = ranker.trie(items_BC)
        room = self.shapes.room_for(longest, sizes_of(trie, ranker.reads_titles))
        if len(rows) > room.rows[-1]:
            return stacked(
                [
                    self._score_batch(recommender, prompts.take([index]), [row])
                    for index, row in enumerate(rows)
                ]
            )
        if room.candidates != items_BC.shape[1]:
            items_BC = padded_candidates(candidates, room.candidates)
            trie = ranker.trie(items_BC)
        prior_BC = np.zeros(items_BC.shape, np.float32)
        for index, row in enumerate(rows):
            prior_BC[index, : len(row.prior_C)] = row.prior_C
        plan = plan_score(trie, room.sizes, ranker.reads_titles)
        filled_B = np.minimum(np.arange(room.rows_for(len(rows))), len(rows) - 1)
        width = self.shapes.width_for(int(prompts.tokens.lengths_R.max()))
        return ranker.score_batch(
            prompts.take(filled_B),
            plan.take(filled_B),
            items_BC[filled_B],
            prior_BC[filled_B],
            width,
        )

    def _measured(self) -> tuple[Sizes, np.ndarray]:
        """Sizes of tries of proposals, and lengths of prompts [U], for some users of the data."""
        recommender, users = self.recommender, self.recommender.prepared.split.num_users
        known = recommender.prepared.split.histories("test").take(range(min(users, _MEASURED)))
        items_UC, _ = recommender.propose(known, known, k=1, room=self._limits.exclude)
        prompts = recommender.ranker.read(known, recommender.profiles(known), items_UC)
        sizes = recommender.ranker.sizes(items_UC[(items_UC >= 0).any(axis=1)])
        return sizes, prompts.tokens.lengths_R

    def _retriever_steps(self) -> Iterator[Callable[[], None]]:
        """Proposals for histories of every length at which a retriever may change its program.

        Retrievers pad histories to powers of two or to three quarters of one.
        """
        most = self._limits.history
        edges = {0, most}
        for bit in range(2, most.bit_length() + 1):
            for edge in (1 << bit, 3 << (bit - 2)):
                edges |= {edge - 2, edge - 1, edge, edge + 1}
        items = self.recommender.prepared.split.num_items
        for rows in self.shapes.usual.rows:
            for length in sorted(edge for edge in edges if edge <= most):
                history = [number % items for number in range(length)]

                def step(rows: int = rows, history: Sequence[int] = tuple(history)) -> None:
                    self._propose(self.recommender, [history] * rows, [history] * rows)

                yield step

    def _ranker_steps(self) -> Iterator[Callable[[], None]]:
        ranker = self.recommender.ranker
        prompts = ranker.read(Ragged.from_rows([[]]), [""], np.zeros((1, 1), np.int32))
        for room in self.shapes.rooms:
            for rows in room.rows:
                for width in self.shapes.widths:

                    def step(room: Room = room, rows: int = rows, width: int = width) -> None:
                        items_BC = padded_candidates([np.zeros(1)] * rows, room.candidates)
                        trie = ranker.trie(items_BC)
                        plan = plan_score(trie, room.sizes, ranker.reads_titles)
                        prior_BC = np.zeros(items_BC.shape, np.float32)
                        ranker.score_batch(
                            prompts.take([0] * rows), plan, items_BC, prior_BC, width
                        )

                    yield step

    def _whole_step(self) -> None:
        """Answers one question end to end, which reveals damaged weights."""
        (found,) = self.answer([Question((0,), explain=True)])
        if isinstance(found, UserError):
            raise found


def _with_rows(
    recommender: Recommender,
    question: Question,
    history: np.ndarray,
    profile: str,
    items_C: np.ndarray,
    scores_C: np.ndarray | None,
) -> Asked:
    """A question with the rows that have to be scored for it."""
    prior_C = log_prior(items_C[None], None if scores_C is None else scores_C[None])[0]
    rows, kept_H, orders = [], None, []
    if len(items_C):
        for order in _orders(recommender, len(items_C), scores_C is None):
            orders.append(order)
            rows.append(Row(history, profile, items_C[order], prior_C[order]))
        if question.explain:
            kept_H, parts, sentences = ablations(recommender.ranker, history, profile, items_C)
            rows += [
                Row(part, sentence, items_C, prior_C)
                for part, sentence in zip(parts, sentences, strict=True)
            ]
    return Asked(history, profile, items_C, scores_C, kept_H, orders, rows)


def _orders(recommender: Recommender, count: int, is_own: bool) -> list[np.ndarray]:
    """The orders in which candidates are ranked, as `Recommender.recommend` draws them for a
    single user.
    """
    shuffles = recommender.config.evaluate.shuffles
    if not shuffles:
        return [np.arange(count)]
    width = to_power_of_two(count, 8) if is_own else recommender.config.retriever.candidates
    rng = np.random.default_rng(recommender.config.seed)
    orders = [rng.permuted(np.arange(width)[None], axis=1)[0] for _ in range(shuffles)]
    return [order[order < count] for order in orders]


def _read(recommender: Recommender, rows: list[Row]) -> Prompts:
    longest = max(len(row.items_C) for row in rows)
    return recommender.ranker.read(
        Ragged.from_rows([row.history for row in rows]),
        [row.profile for row in rows],
        padded_candidates([row.items_C for row in rows], longest),
    )


def _answered(
    recommender: Recommender, asked: Asked, scores: list[np.ndarray], prompt: str
) -> Answer:
    """The answer to a question, from the scores of its rows."""
    items_C, scores_C = asked.items_C, asked.retriever_C
    if not len(items_C):
        empty = np.zeros(0, np.float32)
        return Answer(items_C, empty, empty, scores_C, asked.profile, "")
    ranker_C = np.full(len(items_C), -np.inf, np.float32)
    for order, logp_C in zip(asked.orders, scores, strict=False):
        ranker_C[order] = np.logaddexp(ranker_C[order], logp_C)
    ranker_C -= np.float32(np.log(len(asked.orders)))
    logp_C = recommender.joined(
        items_C[None], None if scores_C is None else scores_C[None], ranker_C[None]
    )[0]
    answer = Answer(items_C, logp_C, ranker_C, scores_C, asked.profile, prompt)
    if asked.kept_H is None:
        return answer
    lifts = lifts_of(asked.kept_H, np.stack(scores[len(asked.orders) :]))
    return dataclasses.replace(answer, lifts=lifts)
