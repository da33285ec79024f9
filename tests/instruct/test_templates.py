import pytest

from palr_jax.config import parse_config
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig, TemplateConfig
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.instruct.templates import item_text, template
from palr_jax.json_types import JsonObject
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged


def test_kind_verb_and_count_come_from_the_config() -> None:
    parts = template(InstructConfig(item_kind="products", verb="bought", label=7))
    assert parts.recommend_retrieval == (
        "Recommend 7 other products based on the user's history from the candidate list.\n"
    )
    assert parts.history == "The user bought these products:\n"
    assert parts.candidates == "The candidate products are:\n"


def test_items_are_written_in_their_style() -> None:
    assert item_text(InstructConfig(), "B1", "Soap") == '"Soap"\n'
    assert item_text(InstructConfig(item_style="id_title"), "B1", "Soap") == '"B1 (Soap)"\n'


def test_an_own_template_makes_the_prompt(tokenizer: Tokenizer, item_tokens: Ragged) -> None:
    own = TemplateConfig(
        recommend="",
        recommend_retrieval="Order {count} {kind}, {{best}} first",
        history="Seen:",
        candidates="Choose from:\n",
        answer="",
    )
    writer = PromptWriter(tokenizer, item_tokens, InstructConfig(template=own))
    assert tokenizer.decode(writer.prompt([0], "Likes drama.", [2]).tokens_T) == (
        "Order 10 movies, {best} first\nLikes drama.\nSeen:\n"
        '"Night 0 (1980)"\nChoose from:\n"Day 2 (1982)"\n'
    )
    assert tokenizer.decode(writer.prompt([0], "").tokens_T) == 'Seen:\n"Night 0 (1980)"\n'


@pytest.mark.parametrize(
    ("part", "text", "complaint"),
    [
        ("answer", "Take {knd}:", "unknown field {knd}; known are {count}, {kind}, {verb}"),
        ("history", "The user enjoys {keywords}", "unknown field {keywords}"),
        ("profile", "{keyword}", "{count}, {keywords}, {kind}, {verb}"),
        ("recommend", "{kind.upper}", "unknown field {kind.upper}"),
        ("recommend", "{}", "unknown field {}"),
        ("candidates", "from } this", "write {{ for a brace"),
        ("candidate", "x", "unknown key instruct.template.candidate; did you mean candidates?"),
    ],
)
def test_a_mistake_in_a_template_is_one_clear_line(part: str, text: str, complaint: str) -> None:
    raw: JsonObject = {"name": "x", "instruct": {"template": {part: text}}}
    with pytest.raises(UserError) as error:
        parse_config(raw, "own.yaml")
    assert str(error.value).startswith("own.yaml: ")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
