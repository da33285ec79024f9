"""The output of `palr plan`: a plan as text and as JSON."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from palr_jax.json_types import JsonObject
from palr_jax.parallel.chips import GIB, Topology
from palr_jax.planning.compile import Program
from palr_jax.planning.hlo import Collective
from palr_jax.planning.plan import Plan

_ESTIMATE = (
    "An estimate: without a GPU compiler the program was compiled for CPU devices, which has the "
    "same partitioning but keeps some bfloat16 arrays in float32."
)
_LARGEST = 8


def describe(plan: Plan) -> str:
    """A plan as text."""
    topology, work = plan.topology, plan.work
    return "\n".join(
        [
            f"{topology.name}: {topology.chips} chips as {_mesh(plan.mesh)}",
            plan.ranker,
            f"batch of {work.rows} x {work.length:,} tokens, {work.label_length} of a row labels, "
            f"remat {work.remat}",
            *([_ESTIMATE] if topology.chip.is_gpu else []),
            "",
            *_memory("the train step", plan.train, topology),
            "",
            *_traffic("a train step", plan.train.collectives),
            "",
            *_time(plan),
            "",
            *_ranking(plan),
            "",
            *_retrieval(plan),
            "",
            *_suggestions(plan),
        ]
    )


def as_dict(plan: Plan) -> JsonObject:
    """A plan as JSON-compatible data; bytes and seconds are per chip and step."""
    train, ranking = plan.train, plan.ranking
    return {
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "estimate": plan.topology.chip.is_gpu,
        "mesh": dict(plan.mesh),
        "batch_size": plan.work.rows,
        "length": plan.work.length,
        "peak_bytes_per_chip": train.memory.peak,
        "hbm_bytes_per_chip": plan.topology.chip.hbm_bytes,
        "fits": plan.fits,
        "memory_bytes_per_chip": vars(train.memory),
        "collectives": _collectives(train),
        "flops": plan.work.flops(),
        "executed_flops": plan.work.executed_flops(),
        "seconds": {**vars(plan.seconds), "bound": plan.seconds.bound},
        "step_seconds": plan.seconds.step,
        "tokens_per_second": plan.tokens_per_second,
        "mfu_bound": plan.mfu_bound,
        "compile_seconds": train.compile_seconds,
        "ranking": {
            "users": ranking.users,
            "length": ranking.length,
            "peak_bytes_per_chip": ranking.program.memory.peak,
            "step_seconds": ranking.seconds,
            "users_per_second": ranking.users / ranking.seconds,
            "compile_seconds": ranking.program.compile_seconds,
        },
        "retrieval": plan.retrieval and {
            "model": plan.retrieval.model,
            "items": plan.retrieval.items,
            "batch_size": plan.retrieval.rows,
            "length": plan.retrieval.length,
            "mesh": dict(plan.retrieval.mesh),
            "peak_bytes_per_chip": plan.retrieval.program.memory.peak,
            "memory_bytes_per_chip": vars(plan.retrieval.program.memory),
            "collectives": _collectives(plan.retrieval.program),
            "step_seconds": plan.retrieval.seconds,
            "compile_seconds": plan.retrieval.program.compile_seconds,
        },
        "largest_batch_size": plan.largest_batch,
        "fastest_mesh": plan.fastest and {
            "mesh": dict(plan.fastest.mesh),
            "peak_bytes_per_chip": int(plan.fastest.peak_bytes),
            "step_seconds": plan.fastest.seconds.step,
        },
    }  # fmt: skip


def _collectives(program: Program) -> list[JsonObject]:
    return [
        {"kind": kind, "group": group, "times": times, "bytes_per_chip": received}
        for (kind, group), (times, received) in _grouped(program.collectives or []).items()
    ]


def _memory(step: str, program: Program, topology: Topology) -> list[str]:
    memory, limit = program.memory, topology.chip.hbm_bytes
    verdict = "fits" if program.collectives is not None and memory.peak <= limit else "too much"
    return [
        f"memory of a chip in {step}",
        *(f"  {name:14}{_gib(size)}" for name, size in vars(memory).items()),
        f"  {'peak':14}{_gib(memory.peak)} of {limit / GIB:.1f} GiB: {verdict}",
    ]


def _traffic(step: str, collectives: Sequence[Collective] | None) -> list[str]:
    if collectives is None:
        return ["the program does not fit, so it was not compiled and its collectives are unknown"]
    groups = list(_grouped(collectives).items())
    total = sum(one.total_bytes for one in collectives)
    lines = [
        f"  {kind:19}among {group:4} chips {times:6} times {_gib(received)}"
        for (kind, group), (times, received) in groups[:_LARGEST]
    ]
    rest = sum(received for _, (_, received) in groups[_LARGEST:])
    lines += [f"  {'others':44}{_gib(rest)}"] if rest else []
    return [f"received by a chip from others in {step}: {_gib(total).strip()}", *lines]


def _time(plan: Plan) -> list[str]:
    parts, work = plan.seconds, plan.work
    source = "formula" if plan.train.collectives is None else "the collectives above"
    return [
        "lower bound of a train step: every part at the chips' peak, with perfect overlap",
        f"  {'compute':14}{parts.compute:8.3f} s  "
        f"{work.flops() / 1e12:,.0f} TFLOP, {work.executed_flops() / 1e12:,.0f} with recomputation",
        f"  {'memory':14}{parts.hbm:8.3f} s  by formula",
        f"  {'interconnect':14}{parts.interconnect:8.3f} s  by {source}",
        f"  {'step':14}{parts.step:8.3f} s  bound by {parts.bound}: at most "
        f"{plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu_bound:.1%}",
    ]


def _ranking(plan: Plan) -> list[str]:
    ranking = plan.ranking
    return [
        f"ranking {ranking.users} users with prompts of {ranking.length:,} tokens: peak "
        f"{_gib(ranking.program.memory.peak).strip()}, at least {ranking.seconds:.3f} s, "
        f"{ranking.users / ranking.seconds:,.0f} users/s"
    ]


def _retrieval(plan: Plan) -> list[str]:
    one = plan.retrieval
    if one is None:
        return ["--items N, the items of the catalog, plans the retriever's train step too"]
    return [
        f"retrieval: {one.model} over {one.items:,} items, batch of {one.rows} x {one.length}, as "
        f"{_mesh(one.mesh)}",
        *_memory("the retriever's train step", one.program, plan.topology),
        *_traffic("the retriever's train step", one.program.collectives),
        f"at least {one.seconds:.4f} s a step, {one.rows / one.seconds:,.0f} rows/s; compiled in "
        f"{one.program.compile_seconds:.0f} s",
    ]


def _suggestions(plan: Plan) -> list[str]:
    lines = [f"largest batch that fits, by formula: {plan.largest_batch} rows"]
    if plan.fastest is None:
        lines.append("no mesh of these chips fits, by formula: use more chips or fewer rows")
    elif dict(plan.fastest.mesh) == dict(plan.mesh):
        lines.append("no other mesh of these chips is faster, by formula")
    else:
        lines.append(
            f"fastest mesh, by formula: {_mesh(plan.fastest.mesh)}, "
            f"{plan.fastest.seconds.step:.3f} s a step, {_gib(plan.fastest.peak_bytes).strip()}"
        )
    ranking = plan.ranking.program
    lines.append(
        f"compiled in {plan.train.compile_seconds:.0f} s (train step) and "
        f"{ranking.compile_seconds:.0f} s (ranking)"
    )
    return lines


def _grouped(collectives: Sequence[Collective]) -> dict[tuple[str, int], tuple[int, int]]:
    """(kind, group size) → (number of runs, bytes received), most bytes first."""
    sums: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for one in collectives:
        key = (one.kind, len(one.group))
        times, received = sums[key]
        sums[key] = (times + one.times, received + one.total_bytes)
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def _mesh(mesh: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items())


def _gib(size: float) -> str:
    return f"{size / GIB:8.3f} GiB" if size < GIB / 10 else f"{size / GIB:8.2f} GiB"
