"""The profile stage: a sentence about every user, from training items alone.

Shapes: B users at a time, T prompt tokens, N new tokens.
"""

import io
import json

import numpy as np

from palr_jax.config import Config
from palr_jax.data import prepare as preparing
from palr_jax.data.catalog import Catalog
from palr_jax.data.prepare import Prepared
from palr_jax.decoding.write import write_text
from palr_jax.errors import UserError
from palr_jax.instruct.llm_profiles import (
    instruction,
    item_list,
    prompt_tokens,
    read_keywords,
    stop_ids,
)
from palr_jax.instruct.profiles import category_table, keyword_profiles
from palr_jax.instruct.templates import profile_text
from palr_jax.io.files import append_text, replacing
from palr_jax.io.progress import progress, say
from palr_jax.llm.checkpoints.loading import load
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.padding import to_multiple
from palr_jax.ragged import Ragged
from palr_jax.run_directory import RunDirectory

# Prompts are padded to a multiple of this, so that few programs serve all lengths.
_PROMPT_BUCKET = 128


def profile(config: Config, run: RunDirectory) -> None:
    """Writes the profile of every user; what an LLM wrote before a stop is kept.

    Raises:
        UserError: the LLM cannot be read, or has no tokenizer.
    """
    prepared = preparing.load(run.data)
    table = category_table(prepared.catalog)
    sentences = keyword_profiles(prepared.split.train, table, config.profile, config.instruct)
    if config.profile.kind == "llm":
        _ask(config, run, prepared, sentences)
    else:
        run.write_profiles(prepared.split.user_ids, sentences)


def _ask(config: Config, run: RunDirectory, prepared: Prepared, sentences: list[str]) -> None:
    """Appends the LLM's profile of one batch of users after the other, in the order of users."""
    settings, split = config.profile, prepared.split
    model, tokenizer = load(str(settings.weights))
    if tokenizer is None:
        raise UserError(f"{settings.weights} has no tokenizer: profiles need one")
    room = model.config.max_length - settings.new_tokens
    asked = instruction(settings, config.instruct.item_kind)
    lines = _kept_lines(run, prepared)
    with progress("profiles", split.num_users, "users", done=len(lines)) as advance:
        for start in range(len(lines), split.num_users, settings.batch_size):
            users = range(start, min(start + settings.batch_size, split.num_users))
            prompts = Ragged.from_rows(
                _prompt(tokenizer, prepared.catalog, split.train[user], config, room)
                for user in users
            )
            answers = _answers(model, tokenizer, prompts, config)
            fresh = []
            for user, answer in zip(users, answers, strict=True):
                titles = [prepared.catalog.titles[item] for item in split.train[user]]
                words = read_keywords(answer, asked, titles, settings.keywords)
                sentence = profile_text(config.instruct, words) or sentences[user]
                line = {
                    "user": str(split.user_ids[user]),
                    "profile": sentence,
                    "from": "llm" if words else "keywords",
                    "answer": answer,
                }
                fresh.append(json.dumps(line, ensure_ascii=False) + "\n")
            append_text(run.profiles, "".join(fresh))
            advance(len(users))
    say(f"profiles: {run.profile_sources()}")


def _kept_lines(run: RunDirectory, prepared: Prepared) -> list[str]:
    """The lines of an attempt that was stopped, without one that was cut off."""
    if not run.profiles.exists():
        return []
    text = run.profiles.read_bytes().decode("utf-8", errors="replace")
    lines = []
    # Behind the first that is damaged, all are written once more.
    lines_there = io.StringIO(text, newline="\n")
    for line, user in zip(lines_there, prepared.split.user_ids, strict=False):
        if not _is_profile(line, str(user)):
            break
        lines.append(line)
    with replacing(run.profiles) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return lines


def _is_profile(line: str, user: str) -> bool:
    """Whether a line is whole, and of a user."""
    try:
        entry = json.loads(line)
        is_whole = entry["user"] == user and isinstance(entry["profile"], str)
    except (ValueError, TypeError, KeyError):
        return False
    return line.endswith("\n") and is_whole


def _prompt(
    tokenizer: Tokenizer, catalog: Catalog, history: np.ndarray, config: Config, room: int
) -> np.ndarray:
    """The request about the newest items, as many as `instruct.history` and the model allow."""
    asked = instruction(config.profile, config.instruct.item_kind)
    for kept in range(min(len(history), config.instruct.history), 0, -1):
        items = item_list(catalog, history[len(history) - kept :])
        tokens_T = prompt_tokens(tokenizer, asked + items)
        if len(tokens_T) <= room:
            return tokens_T
    raise UserError(
        f"{config.profile.weights} reads {room + config.profile.new_tokens} tokens at most, too "
        "few for a request about one item: lower profile.new_tokens or name another"
    )


def _answers(model: Llama, tokenizer: Tokenizer, prompts: Ragged, config: Config) -> list[str]:
    """What the LLM answers to each prompt; a smaller last batch is filled up."""
    length_B = np.resize(prompts.lengths_R, config.profile.batch_size).astype(np.int32)
    width = to_multiple(int(length_B.max()), _PROMPT_BUCKET)
    tokens_BT = np.zeros((len(length_B), width), np.int32)
    for row in range(len(length_B)):
        tokens_BT[row, : length_B[row]] = prompts[row % len(prompts)]
    written_BN = write_text(
        model, tokens_BT, length_B, config.profile.new_tokens, stop_ids(tokenizer)
    )
    return [tokenizer.decode(row[row >= 0]) for row in written_BN[: len(prompts)]]
