"""Begin, end and added tokens in the files next to a tokenizer, as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from palr_jax import llm
from palr_jax.config import RankerConfig
from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from palr_jax.llm.tokenizers.tokenizer import Tokenizer, load_tokenizer
from palr_jax.ranking.base_model import make_tokenizer
from tests.llm.tokenizers.test_tokenizer import byte_level, spaced
from tests.llm.variants import VARIANTS, write_checkpoint

OWN = train_tokenizer([f"Toy Story {year}" for year in range(1950, 1999)], 300)
SIZE = OWN.vocab_size
START, END, WORD = SIZE, SIZE + 1, SIZE + 2


def special(content: str, special: bool = True) -> dict[str, Any]:
    return {"content": content, "special": special, "lstrip": False, "normalized": False}


ADDED = {
    str(START): special("<|im_start|>"),
    str(END): special("<|im_end|>"),
    str(WORD): special("Story", special=False),
}


def made(folder: Path, **files: Any) -> Tokenizer:
    """A tokenizer from the model and from JSON files by their stems."""
    (folder / "tokenizer.model").write_bytes(OWN.files()["tokenizer.model"])
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


def test_a_model_that_wants_no_begin_token_gets_none(tmp_path: Path) -> None:
    assert made(tmp_path).begin_ids == OWN.begin_ids != ()
    assert made(tmp_path, tokenizer_config={"add_bos_token": False}).begin_ids == ()
    assert made(tmp_path, tokenizer_config={"add_bos_token": True}).begin_ids == OWN.begin_ids


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": "<|im_end|>", "added_tokens_decoder": ADDED}},
        {
            "tokenizer_config": {"eos_token": special("<|im_end|>")},
            "special_tokens_map": {"additional_special_tokens": ["<|im_start|>"]},
            "added_tokens": {"<|im_start|>": START, "<|im_end|>": END, "Story": WORD},
        },
        {
            "tokenizer_config": {"eos_token": "</s>"},
            "special_tokens_map": {"eos_token": special("<|im_end|>")},
            "tokenizer": {
                "added_tokens": [{"id": int(id), **token} for id, token in ADDED.items()]
            },
        },
    ],
    ids=["new", "old", "of the json"],
)
def test_added_tokens_are_read_whichever_file_lists_them(files: Any, tmp_path: Path) -> None:
    tokenizer = made(tmp_path, **files)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (SIZE + 3, END)
    assert tokenizer.special_id("<|im_start|>") == START
    assert tokenizer.begin_ids == OWN.begin_ids
    # Text is never encoded as a special token, and always as an added word.
    ids = tokenizer.encode("Toy Story <|im_end|>").tolist()
    assert WORD in ids
    assert not {START, END} & {*ids}
    assert tokenizer.decode([*ids, END]) == "Toy Story <|im_end|>"
    # The written files load as the same tokenizer.
    other = tmp_path / "other"
    other.mkdir()
    for name, content in tokenizer.files().items():
        (other / name).write_bytes(content)
    again = load_tokenizer(other)
    assert again.files() == tokenizer.files()
    assert again.encode("Toy Story <|im_end|>").tolist() == ids
    assert (again.eos_id, again.begin_ids) == (END, tokenizer.begin_ids)


def test_the_begin_token_may_be_an_added_one_too(tmp_path: Path) -> None:
    config = {"bos_token": "<|im_start|>", "added_tokens_decoder": ADDED}
    assert made(tmp_path, tokenizer_config=config).begin_ids == (START,)


def test_a_gap_before_an_added_token_keeps_its_number(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {str(SIZE + 5): special("<far>")}, "eos_token": "<far>"}
    tokenizer = made(tmp_path, tokenizer_config=config)
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (SIZE + 5, SIZE + 6)


def test_an_empty_name_of_a_token_is_no_name(tmp_path: Path) -> None:
    """As in the first conversions of LLaMA 1."""
    config = {"bos_token": "", "eos_token": "", "unk_token": ""}
    assert made(tmp_path, tokenizer_config=config).eos_id == OWN.eos_id


def test_a_model_of_another_name_has_no_files_of_its_own(tmp_path: Path) -> None:
    made(tmp_path, tokenizer_config={"add_bos_token": False})
    (tmp_path / "tokenizer.model").rename(tmp_path / "own.model")
    assert load_tokenizer(tmp_path / "own.model").begin_ids == OWN.begin_ids


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"eos_token": "<end>"}, "lacks the token '<end>' that the files next to it name"),
        ({"added_tokens_decoder": {"5": special("<end>")}}, "token 5 is .* and '<end>' in"),
        ({"added_tokens_decoder": {str(SIZE): special("</s>")}}, "'</s>' has the id"),
        ({"added_tokens_decoder": {str(2**40): special("<end>")}}, "added_tokens_decoder.*less"),
        ({"added_tokens_decoder": {"x": special("<end>")}}, "valid integer"),
        ({"added_tokens_decoder": {"-1": special("<end>")}}, "greater than or equal to 0"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder: Input should be a valid dict"),
        ({"add_bos_token": "no"}, "add_bos_token: Input should be a valid boolean"),
        ({"added_tokens_decoder": {str(SIZE): special("")}}, "has no text"),
        ({"eos_token": 7}, "eos_token"),
        ({"eos_token": {"text": "</s>"}}, "eos_token"),
    ],
)
def test_what_does_not_go_together_is_one_line(config: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        made(tmp_path, tokenizer_config=config)


def beyond(kind: str, folder: Path) -> int:
    """Writes a tokenizer with added tokens beyond its model's vocabulary; returns its size."""
    if kind == "tokenizer.model":
        made(folder, tokenizer_config={"added_tokens_decoder": ADDED})
        return SIZE
    content = json.loads(spaced() if kind == "spaced" else byte_level("<s>"))
    size = 1 + max(content["model"]["vocab"].values())
    content["added_tokens"] += [
        {"id": size + number, "single_word": False, "rstrip": False, **token}
        for number, token in enumerate(ADDED.values())
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return size


@pytest.mark.parametrize("kind", ["tokenizer.model", "spaced", "byte level"])
def test_added_tokens_that_the_model_does_not_know_are_left_out(kind: str, tmp_path: Path) -> None:
    size = beyond(kind, tmp_path)
    write_checkpoint(tmp_path, VARIANTS["llama3"] | {"vocab_size": size})
    whole = load_tokenizer(tmp_path)
    assert whole.vocab_size == size + 3
    _, tokenizer = llm.load(tmp_path)
    assert tokenizer is not None
    assert tokenizer.vocab_size <= size
    assert tokenizer.special_id("<|im_start|>") is None
    assert (tokenizer.begin_ids, tokenizer.eos_id) == (whole.begin_ids, whole.eos_id)
    ids = tokenizer.encode("Toy Story")
    assert max(ids) < size
    assert tokenizer.decode(ids) == "Toy Story"
    assert max(whole.encode("Toy Story")) == size + 2


@pytest.mark.parametrize("kind", ["tokenizer.model", "byte level"])
def test_an_end_token_that_the_model_does_not_know_is_refused(kind: str, tmp_path: Path) -> None:
    size = beyond(kind, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "eos_token": "<|im_end|>"})
    )
    write_checkpoint(tmp_path, VARIANTS["llama3"] | {"vocab_size": size})
    with pytest.raises(UserError, match=f"ends texts with token {size + 1}, the model has {size}"):
        llm.load(tmp_path)


def test_a_tokenizer_named_beside_the_weights_is_fitted_to_them(
    catalog: Catalog, instruct_config: InstructConfig, tmp_path: Path
) -> None:
    size = beyond("tokenizer.model", tmp_path)
    write_checkpoint(tmp_path / "weights", VARIANTS["llama3"] | {"vocab_size": size})
    config = RankerConfig(weights=str(tmp_path / "weights"), tokenizer=str(tmp_path))
    assert make_tokenizer(config, instruct_config, catalog).vocab_size == size
    write_checkpoint(tmp_path / "weights", VARIANTS["llama3"])
    with pytest.raises(UserError, match="model has 64: the files belong to different models"):
        make_tokenizer(config, instruct_config, catalog)


def test_a_padded_embedding_is_no_other_model(tmp_path: Path) -> None:
    made(tmp_path)
    write_checkpoint(tmp_path, VARIANTS["llama3"] | {"vocab_size": SIZE + 1000})
    _, tokenizer = llm.load(tmp_path)
    assert tokenizer is not None
    assert tokenizer.vocab_size == SIZE
