"""stages.json: the inputs, the outputs and the status of every stage."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from palr_jax.data.reading import noting_files
from palr_jax.errors import UserError
from palr_jax.io.files import read_json, reading, write_json
from palr_jax.io.paths import delete, path_of
from palr_jax.io.progress import say
from palr_jax.io.provenance import changed, fingerprint
from palr_jax.io.stamps import Stamp, can_take, files_in, is_whole, retake, take_file
from palr_jax.json_types import JsonObject
from palr_jax.parallel import processes

Stamps = dict[str, Stamp]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: the name on the command line.
        settings: the part of the config that it depends on.
        inputs: the user's files and folders that it depends on, in addition to the data files,
            which are recorded when they are read.
        after: stages that it depends on; their inputs are its inputs.
        outputs: files that it writes; deleted before it runs with other inputs.
        optional: files that it writes only for some configs; deleted like the outputs.
        kept: files that it writes and that are not deleted, because they record their own inputs.
    """

    name: str
    settings: object
    inputs: tuple[Path, ...] = ()
    after: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()
    optional: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()


@dataclass
class Entry:
    """The entry of a stage in stages.json.

    Attributes:
        fingerprint: hash of its settings.
        done: whether it has finished.
        seconds: its duration.
        inputs: the files, and the folders and patterns of files, that it was made from, by the
            path they were given as; None if not recorded, as before version 0.2.
        outputs: the files that it wrote, by path relative to the run directory; None as for
            `inputs`.
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
    # Caches of this process: stages whose outputs are intact, and stamps of inputs.
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
        # The other processes wait, so that none of them sees the stage as unfinished.
        processes.led(lambda: self._end(stage, read, seconds))
        say(f"{stage.name}: done in {seconds:.0f} s")

    def require(self, stage: Stage) -> None:
        """Checks that a stage that another one depends on is done.

        Raises:
            UserError: it is not done, or `run` would run it again.
        """
        why = processes.led(lambda: self._missing(stage))
        if why:
            raise UserError(
                f"{self.folder}: the stage {stage.name} {why}: run `palr {stage.name}` first"
            )

    def check(self, paths: list[Path]) -> None:
        """Checks that the files at or below these paths are as their stages wrote them.

        Raises:
            UserError: a file has changed.
        """
        roots = [f"{path.relative_to(self.folder)}" for path in paths]
        for entry in self._read().values():
            for name, stamp in (entry.outputs or {}).items():
                is_asked = any(name == root or name.startswith(f"{root}/") for root in roots)
                path = self.folder / name
                if entry.done and is_asked and path.exists() and not is_whole(path, stamp):
                    raise UserError(
                        f"{path} is damaged: run `palr run` with the config of this run to write "
                        "it again"
                    )

    def _begin(self, stage: Stage, check: Callable[[], object]) -> bool:
        """Whether a stage is to be run; clears what is not of these inputs or not whole."""
        entry = self._read().get(stage.name, Entry())
        inputs = self._inputs_of(stage, entry)
        mark = fingerprint(stage.settings)
        changed = _changed_file(entry, inputs)
        is_other = entry.fingerprint != mark or changed is not None
        damaged = self._damaged(stage, entry) if entry.done and not is_other else []
        if entry.done and not is_other and not damaged:
            return False
        check()
        if is_other:
            if changed:
                say(f"{stage.name}: {changed} has changed, so this stage is run again")
            for output in (*stage.outputs, *stage.optional):
                delete(output)
        elif damaged:
            say(f"{stage.name}: {damaged[0]} is missing or damaged, so it is made again")
            for path in filter(_is_not_resumable, damaged):
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
        entry.outputs = {f"{file.relative_to(self.folder)}": take_file(file) for file in files}
        entry.done, entry.seconds = True, seconds
        self._note(stage, entry)

    def _missing(self, stage: Stage) -> str:
        """Why a stage does not count as done; "" if it does."""
        entry = self._read().get(stage.name, Entry())
        if not entry.done:
            return "is not done"
        if entry.fingerprint != fingerprint(stage.settings):
            return "was made with another config"
        file = _changed_file(entry, self._inputs_of(stage, entry))
        if file:
            return f"was made before {file} changed"
        damaged = self._damaged(stage, entry)
        return f"has left {damaged[0]}, which is missing or damaged" if damaged else ""

    def _inputs_of(self, stage: Stage, entry: Entry) -> Stamps:
        """The current stamps of a stage's inputs; the recorded ones for unreachable files."""
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
            file = path_of(name)  # recorded when it was read
            now[name] = self._look(file, known[name]) if can_take(file) else known[name]
        return now

    def _look(self, file: Path, known: Stamp | None) -> Stamp:
        name = str(file)
        if name not in self._seen:
            self._seen[name] = retake(file, known)
        return self._seen[name]

    def _damaged(self, stage: Stage, entry: Entry) -> list[str]:
        """The outputs that differ from what the stage wrote."""
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


def _entry(values: JsonObject) -> Entry:
    """An entry from JSON; raises ValueError, TypeError or AttributeError if it is invalid."""
    entry = Entry(**values)
    if not isinstance(entry.fingerprint, str) or not isinstance(entry.done, bool):
        raise ValueError("a stage has no fingerprint")
    for name in ("inputs", "outputs"):
        stamps = getattr(entry, name)
        if stamps is not None:
            setattr(entry, name, {path: Stamp(*stamp) for path, stamp in stamps.items()})
    return entry


def _changed_file(entry: Entry, now: Stamps) -> str | None:
    """The first input file that has changed, appeared or vanished; None if all are unchanged."""
    if entry.inputs is None:
        return None
    before, after = (
        {name: stamp.content for name, stamp in stamps.items()} for stamps in (entry.inputs, now)
    )
    return min([*changed(before, after), *changed(after, before)], default=None)


def _is_not_resumable(name: str) -> bool:
    """Whether a stage cannot resume from a file, as it can from a log or a checkpoint."""
    return not name.endswith(".jsonl") and not any(part.isdigit() for part in Path(name).parts)
