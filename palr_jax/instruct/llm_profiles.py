"""Profiles written by an LLM: the request (paper, Figure 2) and the parsing of its answer."""

import re
from collections.abc import Sequence

import numpy as np

from palr_jax.data.catalog import Catalog
from palr_jax.instruct.config import ProfileConfig
from palr_jax.llm.tokenizers.tokenizer import Tokenizer

_MARKS = " \t-*•#\"'`“”{}[]()<>.,!=_0123456789"
_LONGEST_KEYWORD = 30


def instruction(config: ProfileConfig, kind: str) -> str:
    """The paper's request for keywords, to be followed by a list of items."""
    name = kind.upper()
    return (
        f"Your task is to use {config.keywords} keywords to summarize user's preference based on "
        "history interactions. The output is an itemized list based on importance. The output "
        f'template is: {{KEYWORD_1: "HISTORY_{name}_1", "HISTORY_{name}_2"; KEYWORD_2: '
        f'"HISTORY_{name}_3"}} The history {kind} and their keywords are: '
    )


def item_list(catalog: Catalog, history: Sequence[int] | np.ndarray) -> str:
    """The items of a history with their categories, to follow the instruction."""
    items = (
        f'"{catalog.titles[item]}": {", ".join(catalog.categories[item]) or "none"}'
        for item in history
    )
    return f"{'; '.join(items)}."


def prompt_tokens(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a request, int32 [T]: a chat turn if the tokenizer has ChatML's tokens."""
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
    """Parses the keywords of an answer, in lower case, the most important first.

    An answer lists `keyword: "title", "title"`, separated by semicolons or line breaks. A keyword
    is short and has letters; titles and words of the instruction, which small models tend to
    repeat, are skipped.

    Args:
        answer: the text that the LLM wrote.
        asked: the instruction.
        titles: titles of the history.
        most: maximum number of keywords.

    Returns:
        The keywords; () if none is found.
    """
    # One word of a title may be a keyword ("war"); several words are a part of the title.
    known = [title.casefold() for title in titles]
    names = {name.strip(_MARKS) for title in known for name in title.split(":")}
    found: dict[str, None] = {}
    for entry in re.split(r"[;\n]", answer):
        head, colon, tail = entry.partition(":")
        if not colon:
            continue
        if re.fullmatch(r"\W*keyword\W*\w{0,3}\W*", head, re.IGNORECASE):
            head = tail.partition(":")[
                0
            ]  # "KEYWORD_1: war: ...": the placeholder, then the keyword
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
