"""Reads the collectives of a compiled program from its HLO text.

XLA's cost analysis counts the body of a loop once. Here, every collective is counted once per
iteration of the loops around it. On TPUs one collective may appear several times, split over
fusions and even loops that overlap with it; all of these share a channel and count as one, which
runs as often as the outermost of them. XLA may peel a loop: its first iteration precedes it, on the
same channels, and the loop counts from one; together they count as the loop from zero. Transfers
between slices go through the hosts and appear as `send`.
"""

import itertools
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Bytes that a chip receives, as a multiple of (group - 1) / group of the collective's array.
_ROUNDS = {
    "all-gather": 1,
    "all-reduce": 2,
    "reduce-scatter": 1,
    "all-to-all": 1,
    "collective-permute": 1,
}
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COLLECTIVE = re.compile(rf"\s({'|'.join(_ROUNDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_SEND = re.compile(r"\ssend\(")
_TARGET = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x\{0:(\d+)\}"')
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_WHILE = re.compile(r"\swhile\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLS = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_CALL_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
        shapes: shapes of the whole arrays: the result of a gather, the operand of a scatter.
        bytes: bytes that each chip receives per run.
        times: number of runs per step.
        group: the chips of the first group, that of chip 0 if it takes part.
        name: the operation in the source program.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    times: int
    group: tuple[int, ...]
    name: str

    @property
    def total_bytes(self) -> int:
        """Bytes that each chip receives per step."""
        return self.bytes * self.times


def collectives(text: str, chips: int) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`), largest traffic first.

    Args:
        text: the HLO text of the partitioned program.
        chips: the number of chips that it is partitioned for.
    """
    program = _Program(text)
    found: dict[tuple[str, str], list[tuple[bool, int, Collective]]] = defaultdict(list)
    for computation, lines in program.lines.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match:
                times = program.runs(computation)
                kind, one = match[1], _parse(line, match, times, chips, computation)
            elif _SEND.search(line) and _TRANSFER.search(line):
                times = program.runs(computation)
                kind, one = "send", _between_slices(line, times)
            else:
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            if one.bytes:
                # JAX gives all collectives of a `shard_map` one channel.
                mark = channel[1] if channel and "/shard_map/" not in one.name else line
                found[kind, mark].append((computation not in program.peeled, times, one))
    ones = [min(pieces, key=lambda piece: piece[:2])[2] for pieces in found.values()]
    return sorted(ones, key=lambda one: -one.total_bytes)


class _Program:
    """The computations of a program and how often each runs."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, list[str]] = {}
        self.entry = ""
        current: list[str] = []
        for line in text.splitlines():
            header = _COMPUTATION.match(line)
            if header:
                current = self.lines.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif _INSTRUCTION.match(line):
                current.append(line)
        self._runs = {self.entry: 1}

    def runs(self, name: str) -> int:
        """How often a computation runs.

        Raises:
            ValueError: it runs in a loop whose iterations the text does not tell.
        """
        if name not in self._runs:
            self._runs[name] = sum(
                self.runs(caller) * self._times(line, name) for caller, line in self._callers[name]
            )
        return self._runs[name]

    @cached_property
    def _callers(self) -> dict[str, list[tuple[str, str]]]:
        """The calls of each computation: the calling one, and the line."""
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for caller, lines in self.lines.items():
            for line in lines:
                for callee in self._callees(line):
                    found[callee].append((caller, line))
        return found

    @cached_property
    def peeled(self) -> set[str]:
        """The computations that run in loops whose first iteration is peeled off."""
        loops = [loop for line in itertools.chain(*self.lines.values())
                 if (loop := _WHILE.search(line))]  # fmt: skip
        left = [loop[2] for loop in loops if "loop_peel" in "".join(self.lines[loop[1]])]
        found: set[str] = set()
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += [callee for line in self.lines[name] for callee in self._callees(line)]
        return found

    def _callees(self, line: str) -> list[str]:
        """The computations that an instruction calls, a loop's condition and body for example."""
        loop = _WHILE.search(line)
        if loop:
            return [loop[1], loop[2]]
        names = _CALLS.findall(line)
        for listed in _CALL_LISTS.findall(line):
            names += [name.strip().lstrip("%") for name in listed.split(",")]
        return list(names)

    def _times(self, line: str, callee: str) -> int:
        """How often an instruction calls a computation."""
        loop = _WHILE.search(line)
        if not loop:
            return 1
        trips = self._trips(line, loop[1])
        return trips + 1 if callee == loop[1] else trips

    def _trips(self, line: str, condition: str) -> int:
        """The iterations of a loop: from the compiler's annotation, or its counter's bound.

        The loops of a train step are scans and windowed products. All count from zero, or from one
        if the first iteration is peeled off; that iteration is included here.
        """
        known = _TRIPS.search(line)
        if known:
            return int(known[1])
        bounds = [
            int(constant)
            for one in self.lines[condition]
            for constant in re.findall(r"[su]\d+\[\]\S* constant\((\d+)\)", one)
        ]
        if len(bounds) != 1:
            raise ValueError(f"the condition {condition} of a loop has no constant bound")
        return bounds[0]


def _parse(line: str, match: re.Match[str], times: int, chips: int, computation: str) -> Collective:
    """The collective of one HLO instruction."""
    kind = match[1]
    arrays = _ARRAY.findall(line[: match.start()].split(" = ", 1)[1])
    if match[2]:  # a tuple of operands, results and flags
        arrays = [array for array in arrays if array[1]]
        arrays = arrays if kind == "all-reduce" else arrays[len(arrays) // 2 :]
    shapes = [tuple(int(size) for size in sizes.split(",") if size) for _, sizes in arrays]
    size = sum(
        _width(name) * math.prod(shape) for (name, _), shape in zip(arrays, shapes, strict=True)
    )
    groups = _groups(line, chips)
    group = groups[0]
    if kind == "collective-permute":
        received = size
    else:
        # On TPUs a reduce-scatter is an all-reduce in a fusion that slices its result.
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            size *= len(group)
            shapes = [_scattered(line, shape, len(group)) for shape in shapes]
        received = _ROUNDS[kind] * size * (len(group) - 1) // len(group)
    name = _NAME.search(line)
    return Collective(kind, tuple(shapes), received, times, group, name[1] if name else "")


def _between_slices(line: str, times: int) -> Collective:
    """The all-reduce among chips of equal coordinates in several slices, over the network."""
    target, transfer = _TARGET.search(line), _TRANSFER.search(line)
    if not target or not transfer or transfer[1] != "ALL_REDUCE":
        raise ValueError(f"an unknown transfer between slices: {line.strip()[:200]}")
    ((name, sizes), *_) = _ARRAY.findall(line.split(" = ", 1)[1])
    shape = tuple(int(size) for size in sizes.split(",") if size)
    slices, chips = len(_numbers(target[1])), int(target[2]) + 1
    size = _width(name) * math.prod(shape)
    received = _ROUNDS["all-reduce"] * size * (slices - 1) // slices
    group = tuple(range(0, slices * chips, chips))
    return Collective("all-reduce", (shape,), received, times, group, "between slices")


def _width(name: str) -> int:
    """Bytes of an element of an HLO type."""
    if name in _BYTES:
        return _BYTES[name]
    bits = re.search(r"\d+", name)
    return max(int(bits[0]) // 8, 1) if bits else 0


def _scattered(line: str, shape: tuple[int, ...], group: int) -> tuple[int, ...]:
    """The shape of a reduce-scatter's operand; `shape` is that of its result."""
    match = re.search(r"dimensions=\{(\d+)\}", line)
    axis = int(match[1]) if match else 0
    return tuple(size * group if i == axis else size for i, size in enumerate(shape))


def _groups(line: str, chips: int) -> list[tuple[int, ...]]:
    """The groups of chips of a collective, from any of HLO's notations."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if pairs:
        return _linked(pairs[1])
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", line)
    if listed:
        parts = re.findall(r"\{([\d,]+)\}", listed[1])
        return [tuple(int(chip) for chip in part.split(",")) for part in parts]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\S+?),? ", line)
    if iota:
        return [tuple(group) for group in _permuted(iota[2]).reshape(_numbers(iota[1])).tolist()]
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?(\S+?)\)?)? \{([^}]*)\}", line
    )
    if mesh:
        return _mesh_groups(*mesh.groups())
    return [tuple(range(chips))]


def _mesh_groups(axes: str, order: str | None, used: str) -> list[tuple[int, ...]]:
    """Groups along some axes of a mesh, each a whole axis or a part of it (`'a':(2)4`)."""
    sizes, chosen = [], []
    parts = {name: (before, size) for name, before, size in
             re.findall(r"'([^']+)':\((\d+)\)(\d+)", used)}  # fmt: skip
    whole = set(re.findall(r"'([^']+)'(?!:)", used))
    for name, size in re.findall(r"'([^']+)'=(\d+)", axes):
        if name in parts:
            before, inner = (int(number) for number in parts[name])
            pieces = [before, inner, int(size) // (before * inner)]
            chosen += [False, True, False]
        else:
            pieces = [int(size)]
            chosen.append(name in whole)
        sizes += pieces
    ids = np.arange(math.prod(sizes)) if order is None else _permuted(order)
    axes_first = [i for i, on in enumerate(chosen) if not on]
    axes_last = [i for i, on in enumerate(chosen) if on]
    count = math.prod(sizes[i] for i in axes_last)
    groups = ids.reshape(sizes).transpose(axes_first + axes_last).reshape(-1, count)
    return [tuple(group) for group in groups.tolist()]


def _permuted(text: str) -> np.ndarray:
    """Chips in the order `[2,4]T(1,0)`: an iota of that shape with its axes transposed."""
    shape, _, axes = text.partition("T")
    ids = np.arange(math.prod(_numbers(shape.strip("[]")))).reshape(_numbers(shape.strip("[]")))
    return ids.transpose(_numbers(axes.strip("()"))).ravel() if axes else ids.ravel()


def _linked(pairs: str) -> list[tuple[int, ...]]:
    """The connected chips of a permutation, the first chip's group first."""
    links = [tuple(_numbers(pair)) for pair in re.findall(r"(\d+,\d+)", pairs)]
    groups: list[set[int]] = []
    for pair in links:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in touched]
        groups.append(set(itertools.chain(pair, *touched)))
    return sorted(tuple(sorted(group)) for group in groups)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
