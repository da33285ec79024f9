"""Examples that ask for the next item among a retriever's candidates, several per history.

An example is a prompt with *moments*: positions at which the next item is predicted from the text
so far. The token of a moment is followed by the tokens that its choices need, which no other token
sees; after them the history continues. So one forward pass reads a history once for all of its
moments.

Shapes: Q moments, E edges of a moment, S candidates of a moment, H history items, R packed rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.instruct.choices import PathChoices, path_choices
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.negatives import Retrieved
from palr_jax.instruct.packing import Packing, best_fit
from palr_jax.instruct.prompts import Prompt, PromptWriter
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class Moment:
    """One position of an example at which the next item is predicted.

    Attributes:
        index: index of the token after which the next item is predicted.
        fed: index of the first token that is fed for it; the others follow it.
        choices: the choices on the path to the target.
        item_S: int32, the candidates in the order of their leaves.
        history_H: int32, the items of the prompt before it, the newest last.
        prior_S: float32, the retriever's log-probability of each candidate; zeros carry no
            information.
    """

    index: int
    fed: int
    choices: PathChoices
    item_S: np.ndarray
    history_H: np.ndarray
    prior_S: np.ndarray


@dataclass(frozen=True)
class MomentExample:
    """A prompt with its moments.

    Attributes:
        tokens_T: int32, token ids.
        position_T: int32, position of each token; fed tokens continue from that of their moment.
        horizon_T: int32, index of the last token that sees each one.
        item_T: int32, the item whose text ends at each token; -1 at all other tokens.
        next_T: int32, the next token of the text; -1 at the last token and at fed tokens.
        moments: in the order of their tokens.
    """

    tokens_T: np.ndarray
    position_T: np.ndarray
    horizon_T: np.ndarray
    item_T: np.ndarray
    next_T: np.ndarray
    moments: tuple[Moment, ...]


@dataclass(frozen=True)
class MomentMaker:
    """Makes the examples of the users that the ranker is tuned on, from (user, epoch) alone.

    Attributes:
        train: training items per user, without validation and test items.
        profiles: one profile sentence per user, for `prompt: candidates`.
        writer: writes the prompts.
        items: the tokens of every item.
        retrieved: the candidates of every moment, from a retriever that was not trained on it.
        config: the form of the prompts.
        most: most moments of an example; of a user with more, each epoch draws consecutive ones.
        prior_dropout: share of moments whose prior is set to zero.
        reads_titles: whether the whole text of every candidate is fed.
        with_text: whether the text of prompts is learned too, so that users without a moment also
            have an example, with `prompt: history`.
        seed: random seed of the run.
    """

    train: Ragged
    profiles: list[str]
    writer: PromptWriter
    items: Ragged
    retrieved: Retrieved
    config: InstructConfig
    most: int
    prior_dropout: float
    reads_titles: bool
    with_text: bool
    seed: int

    def usable(self, users: np.ndarray) -> np.ndarray:
        """The users whose examples contribute to the loss."""
        if self.with_text and self.config.prompt == "history":
            return users
        return np.array([user for user in users if len(self._moments(int(user)))], np.int64)

    def example(self, user: int, epoch: int) -> MomentExample:
        """The example of a usable user in an epoch."""
        rng = np.random.default_rng([self.seed, epoch, user])
        numbers = self._moments(user)
        if self.config.prompt == "history":
            if len(numbers) > self.most:
                stop = int(rng.integers(self.most, len(numbers), endpoint=True))
                numbers = numbers[stop - self.most : stop]
            return self._history_example(rng, user, numbers)
        return self._candidates_example(rng, user, int(rng.choice(numbers)))

    def pack(
        self, examples: Sequence[MomentExample], packing: Packing, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Packs examples; see `pack_moments`."""
        slots = self.retrieved.items_PK.shape[1]
        return pack_moments(examples, packing, slots, self.config.history, rng)

    def _moments(self, user: int) -> np.ndarray:
        """The indices of a user's moments in `retrieved`, oldest first."""
        offsets_U1 = self.retrieved.moments.offsets_R1
        number_P = np.arange(offsets_U1[user], offsets_U1[user + 1])
        if self.config.missed == "insert":
            return number_P
        target_P = self.train[user][self.retrieved.moments[user]]
        found_PK = self.retrieved.items_PK[number_P] == target_P[:, None]
        return number_P[found_PK.any(axis=1)]

    def _asked(
        self, rng: np.random.Generator, user: int, number: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """The candidates in the retriever's order, their prior, and which is the target."""
        items_S, score_S = self.retrieved.items_PK[number], self.retrieved.scores_PK[number]
        is_item_S = items_S >= 0
        items_S, score_S = items_S[is_item_S], score_S[is_item_S]  # copies
        target = self.train[user][self.retrieved.moments.values_N[number]]
        if not (items_S == target).any():
            items_S[-1] = target
        prior_S = score_S - np.logaddexp.reduce(score_S)
        if rng.random() < self.prior_dropout:
            prior_S = np.zeros_like(prior_S)
        return items_S, prior_S.astype(np.float32), int((items_S == target).argmax())

    def _history_example(
        self, rng: np.random.Generator, user: int, numbers: np.ndarray
    ) -> MomentExample:
        """One history with several moments of a user, or with none."""
        asked = []
        for number in numbers:
            items_S, prior_S, target = self._asked(rng, user, int(number))
            choices = path_choices(self.items, items_S, target, self.reads_titles)
            asked.append((items_S, prior_S, choices))
        length_Q = self.retrieved.moments.values_N[numbers]
        newest = length_Q[-1] if len(length_Q) else self.retrieved.moments[user][-1]
        fed = sum(len(choices.fed_F) for *_, choices in asked)
        known = self.train[user][:newest]
        prompt = self.writer.history_prompt(known, self.config.length - fed)
        end_H = np.flatnonzero(prompt.marks_T >= 0)
        builder = _Builder(prompt)
        for length, (items_S, prior_S, choices) in zip(length_Q, asked, strict=True):
            # Index of the newest item before the moment.
            last = len(prompt.kept_H) - (newest - length) - 1
            if last >= 0:
                builder.ask(int(end_H[last]), items_S, prompt.kept_H[: last + 1], prior_S, choices)
        return builder.build()

    def _candidates_example(
        self, rng: np.random.Generator, user: int, number: int
    ) -> MomentExample:
        """One moment at the end of a prompt that lists the candidates."""
        items_S, prior_S, target = self._asked(rng, user, number)
        order_S = np.arange(len(items_S))
        if self.config.candidate_order == "shuffled":
            order_S = rng.permutation(order_S)
        if self.config.answer == "letter":
            # The letter of a candidate is that of its position in the list.
            choices = path_choices(self.writer.letters, np.argsort(order_S), target)
        else:
            choices = path_choices(self.items, items_S, target, self.reads_titles)
        known = self.train[user][: self.retrieved.moments.values_N[number]]
        listed_S = items_S[order_S]
        prompt = self.writer.prompt(known, self.profiles[user], listed_S, len(choices.fed_F))
        builder = _Builder(prompt)
        builder.ask(len(prompt.tokens_T) - 1, items_S, prompt.kept_H, prior_S, choices)
        return builder.build()


class _Builder:
    """Inserts the tokens that moments need into a prompt."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt_T, self._item_T = prompt.tokens_T, prompt.marks_T
        self._asked: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, PathChoices]] = []

    def ask(
        self,
        index: int,
        items_S: np.ndarray,
        history_H: np.ndarray,
        prior_S: np.ndarray,
        choices: PathChoices,
    ) -> None:
        """Adds a moment after prompt token `index`; the caller guarantees that indices ascend."""
        self._asked.append((index, items_S, history_H, prior_S, choices))

    def build(self) -> MomentExample:
        """The example."""
        fed_Q = np.array([len(choices.fed_F) for *_, choices in self._asked], np.int64)
        index_Q = np.array([index for index, *_ in self._asked], np.int64)
        # Number of fed tokens inserted directly before each token of the prompt.
        before_T = np.zeros(len(self._prompt_T) + 1, np.int64)
        np.add.at(before_T, index_Q + 1, fed_Q)
        index_T = np.arange(len(self._prompt_T)) + np.cumsum(before_T)[:-1]
        total = len(self._prompt_T) + int(fed_Q.sum())
        tokens_T, item_T = np.zeros(total, np.int32), np.full(total, -1, np.int32)
        position_T, horizon_T = np.zeros(total, np.int32), np.full(total, total - 1, np.int32)
        tokens_T[index_T], item_T[index_T] = self._prompt_T, self._item_T
        position_T[index_T] = np.arange(len(self._prompt_T))
        next_T = np.full(total, -1, np.int32)
        next_T[index_T[:-1]] = self._prompt_T[1:]
        moments = []
        for index, items_S, history_H, prior_S, choices in self._asked:
            start, fed = int(index_T[index]) + 1, len(choices.fed_F)
            tokens_T[start : start + fed] = choices.fed_F
            position_T[start : start + fed] = index + choices.depth_F
            horizon_T[start : start + fed] = start + choices.horizon_F
            order_S = choices.order_C
            moments.append(
                Moment(start - 1, start, choices, items_S[order_S], history_H, prior_S[order_S])
            )
        return MomentExample(tokens_T, position_T, horizon_T, item_T, next_T, tuple(moments))


def pack_moments(
    examples: Sequence[MomentExample],
    packing: Packing,
    slots: int,
    history: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Packs examples; the rows come in random order.

    A row has room for `packing.length` tokens and `packing.label_length` moments.

    Args:
        examples: with at least one moment each.
        packing: the shapes.
        slots: S, maximum number of candidates of a moment.
        history: H, maximum number of items of a history.
        rng: for the order of rows.

    Returns:
        Per token `tokens_RT`, `position_RT`, `horizon_RT` (-1 at padding), `item_RT` and `next_RT`.
        Per moment `index_RQ` (its token), `target_RQ` (the leaf of the target), `weight_RQ` (1, or
        0 at padding), `candidate_RQS` (items in the order of their leaves; -1 at padding),
        `prior_RQS`, `end_RQS` (the last token of each candidate's text; -1 if it is not fed) and
        `history_RQH` (the items before it, the newest last; -1 at padding). Per edge of its choices
        `edge_token_RQE`, `edge_index_RQE` (the token at which it is chosen), `edge_source_RQE` (-1
        at padding), `edge_first_RQE` and `edge_last_RQE`. The prior is float32, all others int32.
    """
    length_N = np.array([len(example.tokens_T) for example in examples])
    count_N = np.array([len(example.moments) for example in examples])
    row_N = best_fit(length_N, count_N, packing)
    rows = int(row_N.max()) + 1
    row_N = rng.permutation(rows)[row_N]
    T, Q, E = packing.length, packing.label_length, edges_of(slots)
    by_token = {
        "tokens_RT": np.zeros((rows, T), np.int32),
        "position_RT": np.zeros((rows, T), np.int32),
        "horizon_RT": np.full((rows, T), -1, np.int32),
        "item_RT": np.full((rows, T), -1, np.int32),
        "next_RT": np.full((rows, T), -1, np.int32),
    }
    by_moment = {name: np.zeros((rows, Q), np.int32) for name in ("index_RQ", "target_RQ")}
    by_moment["weight_RQ"] = np.zeros((rows, Q), np.int32)
    candidates = {
        "candidate_RQS": np.full((rows, Q, slots), -1, np.int32),
        "prior_RQS": np.zeros((rows, Q, slots), np.float32),
        "end_RQS": np.full((rows, Q, slots), -1, np.int32),
        "history_RQH": np.full((rows, Q, history), -1, np.int32),
    }
    names = ("token", "index", "source", "first", "last")
    edges = {f"edge_{name}_RQE": np.zeros((rows, Q, E), np.int32) for name in names}
    edges["edge_source_RQE"][:] = -1
    edges["edge_last_RQE"][:] = -1
    used_R, asked_R = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for example, row in zip(examples, row_N, strict=True):
        start, stop = used_R[row], used_R[row] + len(example.tokens_T)
        by_token["tokens_RT"][row, start:stop] = example.tokens_T
        by_token["position_RT"][row, start:stop] = example.position_T
        by_token["horizon_RT"][row, start:stop] = example.horizon_T + start
        by_token["item_RT"][row, start:stop] = example.item_T
        by_token["next_RT"][row, start:stop] = example.next_T
        for number, moment in enumerate(example.moments, asked_R[row]):
            choices, here = moment.choices, (row, number)
            by_moment["index_RQ"][here] = start + moment.index
            by_moment["target_RQ"][here] = choices.target
            by_moment["weight_RQ"][here] = 1
            candidates["candidate_RQS"][row, number, : len(moment.item_S)] = moment.item_S
            candidates["prior_RQS"][row, number, : len(moment.prior_S)] = moment.prior_S
            known = len(moment.history_H)
            candidates["history_RQH"][row, number, history - known :] = moment.history_H
            # A choice at depth d is decided at the d-th token of the path to the target.
            token_D = np.append(moment.index, moment.fed + choices.path_P)
            index_E = token_D[choices.depth_E]
            end_S = np.where(choices.end_C >= 0, start + moment.fed + choices.end_C, -1)
            candidates["end_RQS"][row, number, : len(end_S)] = end_S
            values = (
                choices.token_E, start + index_E, choices.source_E, choices.first_E, choices.last_E
            )  # fmt: skip
            for name, value_E in zip(names, values, strict=True):
                edges[f"edge_{name}_RQE"][row, number, : len(value_E)] = value_E
        used_R[row], asked_R[row] = stop, asked_R[row] + len(example.moments)
    return by_token | by_moment | candidates | edges


def edges_of(slots: int) -> int:
    """E, maximum number of edges on a path among that many candidates: each choice excludes one."""
    return 2 * max(slots - 1, 1)
