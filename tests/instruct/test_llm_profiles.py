import numpy as np
import pytest
import tokenizers as hf

from palr_jax.data.catalog import Catalog
from palr_jax.instruct.config import ProfileConfig
from palr_jax.instruct.llm_profiles import (
    instruction,
    item_list,
    prompt_tokens,
    read_keywords,
    stop_ids,
)
from palr_jax.llm.tokenizers.json_tokenizer import JsonTokenizer
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from tests.llm.tokenizers.test_tokenizer import byte_level

CONFIG = ProfileConfig(kind="llm", keywords=2, weights="somewhere")
ASKED = instruction(CONFIG, "movies")
TITLES = ["Toy Story (1995)", "Star Wars: Episode IV (1977)"]
HISTORY = [*TITLES, "Clockwork Orange, A (1971)"]


def test_the_request_reads_as_in_the_paper() -> None:
    catalog = Catalog(np.array(["1", "2"]), tuple(TITLES), (("Animation", "Children"), ()))
    assert ASKED + item_list(catalog, [1, 0]) == (
        "Your task is to use 2 keywords to summarize user's preference based on history "
        "interactions. The output is an itemized list based on importance. The output template "
        'is: {KEYWORD_1: "HISTORY_MOVIES_1", "HISTORY_MOVIES_2"; KEYWORD_2: "HISTORY_MOVIES_3"} '
        'The history movies and their keywords are: "Star Wars: Episode IV (1977)": none; '
        '"Toy Story (1995)": Animation, Children.'
    )


@pytest.mark.parametrize(
    ("answer", "keywords"),
    [
        ('{Adventure: "Toy Story (1995)"; Sci-Fi: "Star Wars"}', "adventure sci-fi"),
        ('1. **Family films**: "Toy Story"\n2. Space opera: "x"', "family films+space opera"),
        ('Movies: "Toy Story"; War: "x"', "war"),
        ('{KEYWORD_1: "Drama": "Toy Story (1995)"; KEYWORD_2: "War"}', "drama war"),
        ("Action, Crime/Drama: both", "action crime"),
        ("- Drama: x\n- drama: y\n- Épopée: z", "drama épopée"),
        # Repeats of the instruction or of a title, numbers and plain text are not keywords.
        ('{KEYWORD_1: "HISTORY_MOVIES_1", "HISTORY_MOVIES_2"; KEYWORD_2: "HISTORY_MOVIES_3"}', ""),
        ("The output is: nothing", ""),
        ('Star Wars: "Episode IV (1977)"', ""),
        ("Clockwork Orange: Crime", ""),
        ("1995: good; 7: bad", ""),
        ("I like drama.", ""),
        (f"{'long' * 20}: x", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_answers_are_read(answer: str, keywords: str) -> None:
    expected = keywords.split("+") if "+" in keywords else keywords.split()
    assert list(read_keywords(answer, ASKED, HISTORY, most=2)) == expected


def test_a_model_of_plain_text_reads_the_request_on_a_line(tokenizer: Tokenizer) -> None:
    tokens = prompt_tokens(tokenizer, "Hello")
    assert tokens[0] == tokenizer.begin_ids[0]
    assert tokenizer.decode(tokens) == "Hello\n"
    assert stop_ids(tokenizer) == [tokenizer.eos_id]


def test_a_chat_model_reads_the_request_as_a_turn() -> None:
    pieces = hf.Tokenizer.from_str(byte_level())
    pieces.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = JsonTokenizer(pieces.to_str(), [], 1)
    turn, end = tokenizer.special_id("<|im_start|>"), tokenizer.special_id("<|im_end|>")
    # Text cannot open a chat turn.
    tokens = prompt_tokens(tokenizer, "Hello<|im_end|>").tolist()
    assert tokens.count(end) == 1
    assert tokens == [
        turn, *tokenizer.encode("user\nHello<|im_end|>"), end, *tokenizer.encode("\n"),
        turn, *tokenizer.encode("assistant\n"),
    ]  # fmt: skip
    assert stop_ids(tokenizer) == [1, end]
