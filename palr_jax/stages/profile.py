"""The profile stage: a sentence about every user, from training items alone."""

import io
import json

import jax

from palr_jax.config import Config
from palr_jax.data import prepare as preparing
from palr_jax.data.prepare import Prepared
from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.instruct.profiles import category_table, keyword_profiles
from palr_jax.instruct.templates import profile_text
from palr_jax.io.files import append_text, replacing
from palr_jax.io.progress import progress, say
from palr_jax.llm.checkpoints.loading import load
from palr_jax.parallel import processes
from palr_jax.ranking.profile_speaker import Speaker
from palr_jax.run_directory import RunDirectory


def profile(config: Config, run: RunDirectory) -> None:
    """Writes the profile of every user; what an LLM wrote before a stop is kept.

    Of several processes, each asks its own copy of the LLM about its share of the users, on its
    first device; the leader writes, the same lines as one process.

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
    if settings.answer == "categories" and not any(prepared.catalog.categories):
        raise UserError(
            "profile.answer is categories, but no item has any: set profile.answer to free"
        )
    speaker = Speaker(model, tokenizer, prepared.catalog, config)
    done: int = processes.led(lambda: len(_kept_lines(run, prepared)))
    many, size = jax.process_count(), settings.batch_size
    with progress("profiles", split.num_users, "users", done=done) as advance:
        # One batch for each process, in order, so that batches are those of a single process.
        for start in range(done, split.num_users, many * size):
            first = start + jax.process_index() * size
            mine = _answered(speaker, config, split, range(first, first + size), sentences)
            fresh = [line for lines in processes.gather(mine) for line in lines]
            if processes.is_leader():
                append_text(run.profiles, "".join(fresh))
            advance(len(fresh))
    if processes.is_leader():
        say(f"profiles: {run.profile_sources()}")


def _answered(
    speaker: Speaker, config: Config, split: Split, users: range, sentences: list[str]
) -> list[str]:
    """A line of profiles.jsonl for each of these users; there may be fewer or none."""
    users = users[: max(split.num_users - users.start, 0)]
    if not users:
        return []
    lines = []
    answers = speaker.answers(split.train.take(users))
    for user, (answer, words) in zip(users, answers, strict=True):
        line = {
            "user": str(split.user_ids[user]),
            "profile": profile_text(config.instruct, words) or sentences[user],
            "from": "llm" if words else "keywords",
            "answer": answer,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return lines


def _kept_lines(run: RunDirectory, prepared: Prepared) -> list[str]:
    """The lines of an attempt that was stopped, without one that was cut off."""
    if not run.profiles.exists():
        return []
    text = run.profiles.read_bytes().decode("utf-8", errors="replace")
    lines = []
    # All lines from the first damaged one on are written again.
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
