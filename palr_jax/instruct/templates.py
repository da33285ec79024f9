"""The wording of prompts (paper, Table 1 and section 3.3).

A prompt is made of parts; each is tokenised on its own, once. Items stand one a line: a line
break ends an item and never occurs inside one, so no item's tokens begin another's.
"""

from dataclasses import dataclass

from palr_jax.instruct.config import InstructConfig


@dataclass(frozen=True)
class Template:
    """The fixed parts of a prompt, in their order.

    Attributes:
        recommend: the instruction of the task Recommend.
        recommend_retrieval: the instruction of the task Recommend_Retrieval.
        history: stands before the history items.
        candidates: stands before the candidates.
        answer: stands before the label.
    """

    recommend: str
    recommend_retrieval: str
    history: str
    candidates: str
    answer: str


def template(config: InstructConfig) -> Template:
    """The paper's wording for a kind of items."""
    kind, verb = config.item_kind, config.verb
    task = f"Recommend {config.label} other {kind} based on the user's history"
    return Template(
        recommend=f"{task}.\n",
        recommend_retrieval=f"{task} from the candidate list.\n",
        history=f"The user {verb} these {kind}:\n",
        candidates=f"The candidate {kind} are:\n",
        answer="Recommendations:\n",
    )


def item_text(config: InstructConfig, item_id: str, title: str) -> str:
    """An item as it stands in histories, candidate lists and labels alike."""
    named = f"{item_id} ({title})" if config.item_style == "id_title" else title
    return f'"{named}"\n'


def profile_text(keywords: tuple[str, ...], item_kind: str) -> str:
    """The profile sentence, for example "The user enjoys adventure and drama movies."."""
    if not keywords:
        return ""
    *most, last = keywords
    joined = f"{', '.join(most)} and {last}" if most else last
    return f"The user enjoys {joined} {item_kind}."
