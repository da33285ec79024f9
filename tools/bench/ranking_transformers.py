"""The same ranking with transformers, for `ranking.py`.

Shapes: N tokens of a candidate.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

ITEMS = 10


class Theirs:
    """A transformers model, used as its documentation says."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model.eval()
        self.end = self.model.config.eos_token_id

    @torch.no_grad()
    def warm_up(self, users: Any) -> None:
        """A forward pass over a prompt."""
        self.model(torch.from_numpy(users.prompts[0].astype(np.int64))[None], logits_to_keep=1)

    @torch.no_grad()
    def generate(self, users: Any) -> tuple[np.ndarray, int]:
        """Slots of the slates, [B, K], and forward passes one after the other."""
        texts = [[users.items[int(i)].tolist() for i in row] for row in users.candidates_BC]
        walkers = [Walker(row, self.end) for row in texts]
        width = int(users.prompts.lengths_R.max())
        tokens_BT = torch.full((len(walkers), width), self.end)
        for row in range(len(walkers)):
            tokens_BT[row, width - len(users.prompts[row]) :] = torch.from_numpy(users.prompts[row])
        mask_BT = torch.arange(width) >= width - torch.from_numpy(users.prompts.lengths_R)[:, None]
        steps = 0

        def count(*_: Any) -> None:
            nonlocal steps
            steps += 1

        hook = self.model.register_forward_pre_hook(count)
        longest = max(sum(sorted(map(len, row))[-ITEMS:]) for row in texts)
        self.model.generate(
            tokens_BT, attention_mask=mask_BT.long(), do_sample=False, max_new_tokens=longest + 1,
            pad_token_id=self.end, eos_token_id=self.end,
            prefix_allowed_tokens_fn=lambda row, ids: walkers[row].allowed(ids[width:]),
        )  # fmt: skip
        hook.remove()
        return np.array([walker.written for walker in walkers]), steps

    @torch.no_grad()
    def score(self, users: Any) -> np.ndarray:
        """Log-probabilities of the candidates over their trie, [B, C]."""
        return np.stack(
            [
                self._score(users.prompts[row], [users.items[int(i)] for i in candidates])
                for row, candidates in enumerate(users.candidates_BC)
            ]
        )

    def _score(self, prompt: np.ndarray, texts: list[np.ndarray]) -> np.ndarray:
        """The candidates of one user as a batch behind a copy of the prompt's cache each."""
        prompt_1T = torch.from_numpy(prompt.astype(np.int64))[None]
        out = self.model(prompt_1T, past_key_values=DynamicCache(), logits_to_keep=1)
        cache = out.past_key_values
        cache.batch_repeat_interleave(len(texts))
        tokens_CN = torch.full((len(texts), max(map(len, texts))), self.end)
        for row, text in enumerate(texts):
            tokens_CN[row, : len(text)] = torch.from_numpy(text)
        inside_CN = tokens_CN != self.end
        past_CT = torch.ones(len(texts), len(prompt), dtype=torch.bool)
        logits_CNV = self.model(
            tokens_CN, past_key_values=cache, attention_mask=torch.cat([past_CT, inside_CN], 1)
        ).logits
        root, tokens = trie([text.tolist() for text in texts]), tokens_CN.tolist()
        scores = np.zeros(len(texts))
        for row, text in enumerate(texts):
            node, logits_V = root, out.logits[0, -1]
            for place in range(len(text)):
                if len(node) > 1:
                    children = list(node)
                    logp = logits_V[children].float().log_softmax(0)
                    scores[row] += logp[children.index(tokens[row][place])].item()
                node, logits_V = node[tokens[row][place]], logits_CNV[row, place]
        return scores


# Token → what may follow, as far as Python's types can say it.
Trie = dict[int, Any]


def trie(texts: list[list[int]]) -> Trie:
    """Token → what may follow; a text's last token leads to its slot under the key -1."""
    root: Trie = {}
    for slot, text in enumerate(texts):
        node = root
        for token in text:
            node = node.setdefault(token, {})
        node[-1] = slot
    return root


class Walker:
    """Which token may come next in a row; it goes one step with each token."""

    def __init__(self, texts: list[list[int]], end: int) -> None:
        self.texts, self.end = dict(enumerate(texts)), end
        self.written: list[int] = []
        self.root = self.node = trie(texts)
        self.seen = 0

    def allowed(self, ids: torch.Tensor) -> list[int]:
        """The tokens that may follow those written so far."""
        for token in ids[self.seen :].tolist():
            if len(self.written) < ITEMS:
                self._step(token)
        self.seen = len(ids)
        return [self.end] if len(self.written) == ITEMS else list(self.node)

    def _step(self, token: int) -> None:
        self.node = self.node[token]
        if -1 in self.node:
            slot = self.node[-1]
            self.written.append(slot)
            text = self.texts[slot]
            # Nodes that lead nowhere any more go with the item.
            path = [self.root]
            for part in text:
                path.append(path[-1][part])
            del path[-1][-1]
            for node, part in zip(path[-2::-1], text[::-1], strict=True):
                if not node[part]:
                    del node[part]
            self.node = self.root
