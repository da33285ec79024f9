"""Reference implementations of tries, scores and slates: nested dicts, one pass per token."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from palr_jax.decoding.trie import Trie
from palr_jax.llm.llama import Llama

END = 1
Logits = Callable[[list[int]], np.ndarray]  # the tokens of a row → logits [V] after the last


@dataclass
class Node:
    """A node of a trie; a leaf holds its slot."""

    slots: list[int] = field(default_factory=list)
    children: dict[int, "Node"] = field(default_factory=dict)


def dict_trie(candidates: dict[int, list[int]]) -> Node:
    """The trie of the tokens of each slot; every node holds the slots below it."""
    root = Node()
    for slot, tokens in candidates.items():
        node = root
        node.slots.append(slot)
        for token in tokens:
            node = node.children.setdefault(token, Node())
            node.slots.append(slot)
    return root


def full_passes(model: Llama, width: int) -> Logits:
    """A full forward pass per call, without cache, trie or layout.

    Rows are padded to `width` on the right, which no token before sees: one program serves all.
    """
    forward = jax.jit(lambda model, tokens_BT, last: model(tokens_BT)[0, last])

    def logits(tokens: list[int]) -> np.ndarray:
        padded = np.zeros((1, width), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(forward(model, jnp.array(padded), len(tokens) - 1))

    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def slow_score(
    logits: Logits, prompt: list[int], candidates: dict[int, list[int]]
) -> dict[int, float]:
    """Slot → log-probability, one candidate and one token at a time."""
    result = {}
    for slot, tokens in candidates.items():
        node, total = dict_trie(candidates), 0.0
        for index, token in enumerate(tokens):
            if len(node.children) > 1:
                children = list(node.children)
                over = log_softmax(logits(prompt + tokens[:index])[children])
                total += over[children.index(token)]
            node = node.children[token]
        result[slot] = total
    return result


@dataclass
class SlowSlate:
    slots: list[int]
    logps: list[float]
    decisions: int = 0


def slow_generate(
    logits: Logits, prompt: list[int], candidates: dict[int, list[int]], allowed: set[int], k: int
) -> SlowSlate:
    """Greedy, token by token; a decision is a node with several children in the whole trie."""
    slate, text = SlowSlate([], []), list(prompt)
    left = allowed & set(candidates)
    while left and len(slate.slots) < k:
        node, total = dict_trie(candidates), 0.0
        slate.decisions += len(candidates) == 1
        while node.children:
            slate.decisions += len(node.children) > 1
            alive = [t for t, child in node.children.items() if left & set(child.slots)]
            over = log_softmax(logits(text)[alive]) if len(alive) > 1 else np.zeros(1)
            total += over.max()
            text.append(alive[over.argmax()])
            node = node.children[text[-1]]
        slate.slots.append(node.slots[0])
        slate.logps.append(total)
        left.remove(node.slots[0])
    return slate


def slow_items(
    logits: Logits, prompt: list[int], candidates: dict[int, list[int]], allowed: set[int], k: int
) -> SlowSlate:
    """Repeatedly takes the best remaining item by `slow_score`."""
    slate, text = SlowSlate([], []), list(prompt)
    left = {slot: candidates[slot] for slot in allowed & set(candidates)}
    while left and len(slate.slots) < k:
        scores = slow_score(logits, text, left)
        slate.slots.append(max(scores, key=lambda slot: scores[slot]))
        slate.logps.append(scores[slate.slots[-1]])
        text += left.pop(slate.slots[-1])
    return slate


def slow_beam(
    logits: Logits, prompt: list[int], candidates: dict[int, list[int]], allowed: set[int],
    width: int,
) -> tuple[int, float]:  # fmt: skip
    """The slot and the log-probability of the item that a beam of `width` finds.

    All hypotheses take a decision at a time; the search ends when the best is a whole item.
    """
    left = allowed & set(candidates)
    beam: list[tuple[float, list[int], Node]] = [(0.0, [], dict_trie(candidates))]

    def forced(tokens: list[int], node: Node) -> tuple[list[int], Node]:
        while len(node.children) == 1:
            token, node = next(iter(node.children.items()))
            tokens = [*tokens, token]
        return tokens, node

    while beam[0][2].children:
        longer = []
        for total, tokens, node in beam:
            if not node.children:
                longer.append((total, tokens, node))
                continue
            tokens, node = forced(tokens, node)
            if not node.children:  # a single item
                longer.append((total, tokens, node))
                continue
            alive = [t for t, child in node.children.items() if left & set(child.slots)]
            over = log_softmax(logits(prompt + tokens)[alive])
            for token, logp in zip(alive, over, strict=True):
                child = forced([*tokens, token], node.children[token])
                longer.append((total + logp, *child))
        beam = sorted(longer, key=lambda entry: -entry[0])[:width]
    return beam[0][2].slots[0], beam[0][0]


def slow_beam_slate(
    logits: Logits, prompt: list[int], candidates: dict[int, list[int]], allowed: set[int],
    width: int, k: int,
) -> SlowSlate:  # fmt: skip
    """The best item of a beam, then the best given that one, ….

    The beam sees the whole trie; items that are written are not allowed any more.
    """
    slate, text, left = SlowSlate([], []), list(prompt), allowed & set(candidates)
    while left and len(slate.slots) < k:
        slot, logp = slow_beam(logits, text, candidates, left, width)
        slate.slots.append(slot)
        slate.logps.append(logp)
        text += candidates[slot]
        left.remove(slot)
    return slate


def of_one_size(trie: Trie) -> Trie:
    """The same tries with wider arrays and larger bounds: most tests share a compiled program."""

    def pad(field_RN: np.ndarray) -> np.ndarray:
        return np.pad(field_RN, ((0, 0), (0, 128 - field_RN.shape[1])))

    leaves = {"slot_RS": trie.slot_RS, "leaf_RS": trie.leaf_RS}
    empty = np.zeros((1, 0), int)
    wide = jax.tree.map(pad, replace(trie, slot_RS=empty, leaf_RS=empty))
    return replace(wide, **leaves, max_children=8, max_depth=24, root_run=16)


@st.composite
def item_texts(draw: st.DrawFn, most: int, longest: int) -> list[list[int]]:
    """Up to `most` different texts, prefix-free by their end token; often with long prefixes."""
    token = st.integers(2, 5)
    prefix = draw(st.lists(token, max_size=longest // 3))
    stem = draw(st.lists(token, min_size=longest // 3, max_size=longest // 3))
    tails = draw(
        st.lists(
            st.tuples(st.booleans(), st.lists(token, max_size=longest // 3)),
            min_size=1,
            max_size=most,
            unique_by=lambda pair: tuple(stem * pair[0] + pair[1]),
        )
    )
    return [prefix + stem * has_stem + tail + [END] for has_stem, tail in tails]


@st.composite
def slot_rows(draw: st.DrawFn, rows: int, slots: int, items: int) -> np.ndarray:
    """Candidates of each row, no item twice, in any order, with gaps."""
    row = st.permutations([*range(items), *[-1] * slots]).map(lambda order: order[:slots])
    return np.array([draw(row) for _ in range(rows)])


def prompts_of(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Random prompts, padded to 16 tokens, and their lengths."""
    rng = np.random.default_rng(seed)
    return rng.integers(2, 61, (rows, 16)), rng.integers(1, 17, rows)
