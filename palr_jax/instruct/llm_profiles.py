"""Profiles in the words of an LLM: what it is asked (paper, Figure 2) and how its answer is read.

Shapes: T tokens of a prompt.
"""

import re
from collections.abc import Sequence

import numpy as np

from palr_jax.data.catalog import Catalog
from palr_jax.instruct.config import ProfileConfig
from palr_jax.llm.tokenizers.tokenizer import Tokenizer

_MARKS = " \t-*•#\"'`“”{}[]()<>.,!=_0123456789"
_LONGEST_KEYWORD = 30


def instruction(config: ProfileConfig, kind: str) -> str:
    """The paper's request for keywords, which a list of items follows."""
    name = kind.upper()
    return (
        f"Your task is to use {config.keywords} keywords to summarize user's preference based on "
        "history interactions. The output is an itemized list based on importance. The output "
        f'template is: {{KEYWORD_1: "HISTORY_{name}_1", "HISTORY_{name}_2"; KEYWORD_2: '
        f'"HISTORY_{name}_3"}} The history {kind} and their keywords are: '
    )


def item_list(catalog: Catalog, history: Sequence[int] | np.ndarray) -> str:
    """The items of a history with their categories, as they follow the instruction."""
    items = (
        f'"{catalog.titles[item]}": {", ".join(catalog.categories[item]) or "none"}'
        for item in history
    )
    return f"{'; '.join(items)}."


def prompt_tokens(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """A request as the model expects it, int32 [T]: as a chat turn where it knows ChatML."""
    turn, end = tokenizer.special_id("<|im_start|>"), tokenizer.special_id("<|im_end|>")
    encode = tokenizer.encode
    if turn is None or end is None:
        parts = [list(tokenizer.begin_ids), encode(f"{text}\n")]
    else:
        parts = [[turn], encode(f"user\n{text}"), [end], encode("\n")]
        parts += [[turn], encode("assistant\n")]
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer."""
    end = tokenizer.special_id("<|im_end|>")
    return [tokenizer.eos_id] if end is None else [tokenizer.eos_id, end]


def read_keywords(answer: str, asked: str, titles: Sequence[str], most: int) -> tuple[str, ...]:
    """The keywords of an answer in lower case, the most important first; () if it has none.

    An answer lists `keyword: "title", "title"`, parted by semicolons or line breaks. A keyword
    has letters and is short; small models like to repeat titles and the instruction instead.

    Args:
        answer: what the LLM wrote.
        asked: the instruction.
        titles: of the history.
        most: how many keywords at most.
    """
    # One word of a title may well be a keyword ("war"), several are the title or a part of it.
    known = [title.casefold() for title in titles]
    names = {name.strip(_MARKS) for title in known for name in title.split(":")}
    found: dict[str, None] = {}
    for entry in re.split(r"[;\n]", answer):
        head, colon, tail = entry.partition(":")
        if not colon:
            continue
        if re.fullmatch(r"\W*keyword\W*\w{0,3}\W*", head, re.IGNORECASE):
            head = tail.partition(":")[0]  # the name of the place, then the keyword
        for part in re.split(r"[,/]", head):
            word = part.strip(_MARKS).casefold()
            is_word = re.search(r"[^\W\d_]{2}", word) and len(word) <= _LONGEST_KEYWORD
            is_repeated = (
                word in names
                or (" " in word and any(word in title for title in known))
                or re.search(rf"\b{re.escape(word)}", asked.casefold())
            )
            if is_word and not is_repeated:
                found[word] = None
    return tuple(found)[:most]
