"""The texts of prompts: the filled-in template, items and profile sentences.

A prompt is made of parts, each tokenised separately and once. Each item is a line: a line break
ends an item and never occurs inside one, so the tokens of no item are a prefix of another's.
"""

from dataclasses import dataclass

from palr_jax.instruct.config import InstructConfig


@dataclass(frozen=True)
class Template:
    """The fixed parts of a prompt, in their order; each ends its line or is empty.

    Attributes:
        recommend: the instruction of the task Recommend.
        recommend_retrieval: the instruction of the task Recommend_Retrieval.
        history: precedes the history items.
        candidates: precedes the candidates.
        answer: precedes the label.
    """

    recommend: str
    recommend_retrieval: str
    history: str
    candidates: str
    answer: str


def template(config: InstructConfig) -> Template:
    """The wording of `config.template` with count, kind and verb filled in."""
    words = {"count": config.label, "kind": config.item_kind, "verb": config.verb}

    def line(part: str) -> str:
        text = part.format(**words).rstrip("\n")
        return f"{text}\n" if text else ""

    parts = config.template
    return Template(
        recommend=line(parts.recommend),
        recommend_retrieval=line(parts.recommend_retrieval),
        history=line(parts.history),
        candidates=line(parts.candidates),
        answer=line(parts.answer),
    )


def item_text(config: InstructConfig, item_id: str, title: str) -> str:
    """The text of an item, the same in histories, candidate lists and labels."""
    named = f"{item_id} ({title})" if config.item_style == "id_title" else title
    return f'"{named}"\n'


def profile_text(config: InstructConfig, keywords: tuple[str, ...]) -> str:
    """The profile sentence, for example "The user enjoys adventure and drama movies."."""
    if not keywords:
        return ""
    *most, last = keywords
    joined = f"{', '.join(most)} and {last}" if most else last
    return config.template.profile.format(
        keywords=joined, count=config.label, kind=config.item_kind, verb=config.verb
    ).strip()
