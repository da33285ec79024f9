"""stages.json: of every stage, what it was made from, what it left, and whether it is done."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palr_jax.data.reading import noting_files
from palr_jax.errors import UserError
from palr_jax.io.files import fingerprint, read_json, reading, write_json
from palr_jax.io.paths import delete, path_of
from palr_jax.io.progress import say
from palr_jax.io.stamps import Stamp, files_in, is_whole, retake, take
from palr_jax.parallel import processes

Stamps = dict[str, Stamp]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: as on the command line.
        settings: the part of the config that it is made from.
        inputs: files and folders of the user that it is made from, beside the data that are noted
            while it reads them.
        after: stages that it builds on; what they were made from, it is made from.
        outputs: what it writes, which is deleted before it starts from something else.
        optional: what it writes for some configs only; deleted like the outputs.
        kept: what it writes and is not deleted, since it knows what it was made from.
    """

    name: str
    settings: Any
    inputs: tuple[Path, ...] = ()
    after: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()
    optional: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()


@dataclass
class Entry:
    """What stages.json holds of a stage.

    Attributes:
        fingerprint: of its settings.
        done: whether it has ended.
        seconds: that it took.
        inputs: the files that it was made from, as they were named; None if they were not noted,
            as before version 0.2.
        outputs: the files that it left, seen from the run directory; None as for `inputs`.
    """

    fingerprint: str = ""
    done: bool = False
    seconds: float = 0.0
    inputs: Stamps | None = None
    outputs: Stamps | None = None


@dataclass
class StageLog:
    """The stages of the run in `folder`.

    Attributes:
        folder: the run directory.
    """

    folder: Path
    # What this process has looked at: stages with whole outputs, and inputs.
    _whole: set[str] = field(default_factory=set)
    _seen: Stamps = field(default_factory=dict)

    def run(
        self, stage: Stage, work: Callable[[], None], check: Callable[[], object] = lambda: None
    ) -> None:
        """Runs a stage, unless it is done with the same inputs and its outputs are whole.

        What an unfinished attempt with the same inputs left is kept, so that the stage can go on,
        and so are outputs that are whole; what other inputs left is deleted first.

        Args:
            stage: what it is made from, and what it writes.
            work: runs it.
            check: raises a UserError if it cannot run. Called in the leader, only if the stage is
                not skipped, and before anything is deleted.
        """
        if not processes.led(lambda: self._begin(stage, check)):
            say(f"{stage.name}: done before, skipped")
            return
        start = time.monotonic()
        with noting_files() as read:
            work()
        seconds = round(time.monotonic() - start, 1)
        # The others wait, so that none of them finds the stage undone.
        processes.led(lambda: self._end(stage, read, seconds))
        say(f"{stage.name}: done in {seconds:.0f} s")

    def require(self, stage: Stage) -> None:
        """Checks that a stage that another one builds on is done.

        Raises:
            UserError: it is not, or it would be made again.
        """
        why = processes.led(lambda: self._missing(stage))
        if why:
            raise UserError(
                f"{self.folder}: the stage {stage.name} {why}: run `palr {stage.name}` first"
            )

    def check(self, paths: list[Path]) -> None:
        """Checks of the files in these places that they are as their stages have left them.

        Raises:
            UserError: one of them is not.
        """
        roots = [f"{path.relative_to(self.folder)}" for path in paths]
        for entry in self._read().values():
            for name, stamp in (entry.outputs or {}).items():
                is_asked = any(name == root or name.startswith(f"{root}/") for root in roots)
                path = self.folder / name
                if entry.done and is_asked and path.exists() and not is_whole(path, stamp):
                    raise UserError(
                        f"{path} is damaged: run `palr run` with the config of this run, which "
                        "makes it again"
                    )

    def _begin(self, stage: Stage, check: Callable[[], object]) -> bool:
        """Whether a stage is to be run; clears what is not of these inputs or not whole."""
        entry = self._read().get(stage.name, Entry())
        inputs = self._inputs_of(stage, entry)
        mark = fingerprint(stage.settings)
        changed = _changed(entry, inputs)
        is_other = entry.fingerprint != mark or changed is not None
        damaged = self._damaged(stage, entry) if entry.done and not is_other else []
        if entry.done and not is_other and not damaged:
            return False
        check()
        if is_other:
            if changed:
                say(f"{stage.name}: {changed} has changed, so this stage is made again")
            for output in (*stage.outputs, *stage.optional):
                delete(output)
        elif damaged:
            say(f"{stage.name}: {damaged[0]} is missing or damaged, so it is made again")
            for path in filter(_is_made_at_once, damaged):
                delete(self.folder / path)
        self._whole.discard(stage.name)
        self._note(stage, Entry(mark, inputs=inputs))
        return True

    def _end(self, stage: Stage, read: list[Path], seconds: float) -> None:
        entry = self._read()[stage.name]
        entry.inputs = {
            **(entry.inputs or {}),
            **{str(file): self._look(file, None) for file in read},
        }
        left = (*stage.outputs, *stage.optional, *stage.kept)
        files = [file for path in left for file in files_in(path)]
        entry.outputs = {f"{file.relative_to(self.folder)}": take(file) for file in files}
        entry.done, entry.seconds = True, seconds
        self._note(stage, entry)

    def _missing(self, stage: Stage) -> str:
        """What keeps a stage from being done; "" if it is."""
        entry = self._read().get(stage.name, Entry())
        if not entry.done:
            return "is not done"
        if entry.fingerprint != fingerprint(stage.settings):
            return "was made with another config"
        changed = _changed(entry, self._inputs_of(stage, entry))
        if changed:
            return f"was made before {changed} changed"
        damaged = self._damaged(stage, entry)
        return f"has left {damaged[0]}, which is missing or damaged" if damaged else ""

    def _inputs_of(self, stage: Stage, entry: Entry) -> Stamps:
        """The inputs of a stage as they are now; those that are out of reach as they were."""
        known, log = entry.inputs or {}, self._read()
        now: Stamps = {}
        for name in stage.after:
            now |= log.get(name, Entry()).inputs or {}
        for path in stage.inputs:
            for file in files_in(path):
                now[str(file)] = self._look(file, known.get(str(file)))
            if not path.exists():
                now |= {name: known[name] for name in known if name.startswith(str(path))}
        for name in set(known) - set(now) if not stage.after else ():
            file = path_of(name)  # noted while it was read
            now[name] = self._look(file, known[name]) if file.is_file() else known[name]
        return now

    def _look(self, file: Path, known: Stamp | None) -> Stamp:
        name = str(file)
        if name not in self._seen:
            self._seen[name] = retake(file, known)
        return self._seen[name]

    def _damaged(self, stage: Stage, entry: Entry) -> list[str]:
        """The outputs that are not as the stage left them."""
        if stage.name in self._whole:
            return []
        if entry.outputs is None:
            missing = [path for path in stage.outputs if not path.exists()]
            damaged = [f"{path.relative_to(self.folder)}" for path in missing]
        else:
            stamps = entry.outputs.items()
            damaged = [name for name, stamp in stamps if not is_whole(self.folder / name, stamp)]
        if not damaged:
            self._whole.add(stage.name)
        return damaged

    @property
    def _file(self) -> Path:
        return self.folder / "stages.json"

    def _note(self, stage: Stage, entry: Entry) -> None:
        values = {name: vars(one) for name, one in {**self._read(), stage.name: entry}.items()}
        write_json(self._file, values)

    def _read(self) -> dict[str, Entry]:
        if not self._file.exists():
            return {}
        value = read_json(self._file)
        with reading(self._file, "restore it, or choose another --name"):
            return {name: _entry(values) for name, values in value.items()}


def _entry(values: dict[str, Any]) -> Entry:
    """An entry from JSON; raises ValueError, TypeError or AttributeError if it is none."""
    entry = Entry(**values)
    if not isinstance(entry.fingerprint, str) or not isinstance(entry.done, bool):
        raise ValueError("a stage has no fingerprint")
    for name in ("inputs", "outputs"):
        stamps = getattr(entry, name)
        if stamps is not None:
            setattr(entry, name, {path: Stamp(*stamp) for path, stamp in stamps.items()})
    return entry


def _changed(entry: Entry, now: Stamps) -> str | None:
    """The first input that is not what it was, None if all are."""
    if entry.inputs is None:
        return None
    for name in sorted({*entry.inputs, *now}):
        before, after = entry.inputs.get(name), now.get(name)
        if before is None or after is None or before.content != after.content:
            return name
    return None


def _is_made_at_once(name: str) -> bool:
    """Whether a file is none that its stage goes on from: a log, or a file of a checkpoint."""
    return not name.endswith(".jsonl") and not any(part.isdigit() for part in Path(name).parts)
