"""The `palr` command: calls one stage and prints what it returns."""

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from palr_jax.command_line import MESH_AXES, SHARED, parse
from palr_jax.config import Config, load_config, option_keys
from palr_jax.errors import UserError
from palr_jax.failures import guarded
from palr_jax.io.compile_cache import keep_programs
from palr_jax.io.paths import path_of
from palr_jax.parallel import processes, watch


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see `palr_jax.failures.guarded`)."""
    code = guarded(lambda: _execute(sys.argv[1:] if argv is None else argv))
    if code and watch.is_watched():
        watch.leave(code)
    return code


def _execute(argv: Sequence[str]) -> None:
    arguments = parse(argv)
    commands = {
        "plan": _plan,
        "recommend": _recommend,
        "serve": _serve,
        "import-weights": _import_weights,
        "export": _export,
    }
    commands.get(arguments.command, _run)(arguments)


def _config(arguments: argparse.Namespace) -> Config:
    values = vars(arguments)
    overrides = {key: values[key] for key in option_keys() if values[key] is not None}
    return load_config(arguments.config, overrides)


def _plan(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    from palr_jax.planning import report as plan_report  # noqa: PLC0415
    from palr_jax.planning.plan import plan  # noqa: PLC0415

    made = plan(config, arguments.topology, arguments.items)
    if arguments.json:
        print(json.dumps(plan_report.as_dict(made)))
    else:
        print(plan_report.describe(made))


def _run(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    if arguments.command in SHARED:
        processes.join(arguments.coordinator, arguments.processes, arguments.process)
    # JAX takes seconds to import: help and mistakes in a config should not wait for it.
    from palr_jax.run_directory import RunDirectory  # noqa: PLC0415
    from palr_jax.stages import run as stages  # noqa: PLC0415

    run = RunDirectory(path_of(config.runs) / config.name)
    with run.held():
        if arguments.command == "run":
            stages.run_all(config, run)
        elif arguments.command == "compare":
            _print_retrievers(stages.compare_retrievers(config, run), config.data.source)
            print(run.retrievers)
        elif arguments.command == "show-examples":
            print(stages.show_examples(config, run, arguments.n))
        else:
            stages.run_stage(arguments.command, config, run)
        if arguments.command == "prepare":
            print(stages.describe_data(run))
        if arguments.command in ("run", "evaluate"):
            _print_results(run.results)
            print(f"{run.results}\n{run.report}")


def _print_retrievers(rows: list[dict[str, object]], source: str) -> None:
    from rich.console import Console  # noqa: PLC0415

    from palr_jax.evaluation.console import print_retrievers  # noqa: PLC0415

    print_retrievers(rows, source, Console())


def _print_results(path: Path) -> None:
    from rich.console import Console  # noqa: PLC0415

    from palr_jax.evaluation.console import print_results  # noqa: PLC0415
    from palr_jax.io.files import read_json  # noqa: PLC0415

    print_results(read_json(path), Console())


def _import_weights(arguments: argparse.Namespace) -> None:
    from palr_jax.llm.checkpoints.loading import import_weights  # noqa: PLC0415

    print(import_weights(arguments.source, arguments.to))


def _export(arguments: argparse.Namespace) -> None:
    from palr_jax.ranking.export import export_run, export_weights  # noqa: PLC0415

    if arguments.run:
        line = export_run(arguments.run, arguments.variant, arguments.adapter, arguments.to)
    elif arguments.adapter or arguments.variant:
        raise UserError("--adapter and --variant choose a ranker of a run: name it with --run")
    else:
        line = export_weights(arguments.weights, arguments.to)
    print(line)


def _serve(arguments: argparse.Namespace) -> None:
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        raise UserError("serving needs FastAPI and uvicorn: pip install 'palr-jax[serve]'")
    for name, least in (("max_batch", 1), ("queue", 1), ("cache", 0), ("wait_ms", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is at least {least}")
    if not 0 <= arguments.port < 65_536:
        raise UserError(f"--port {arguments.port}: it goes from 0 to 65535")
    from palr_jax.serving.server import read_keys, serve  # noqa: PLC0415
    from palr_jax.serving.service import Settings  # noqa: PLC0415

    keys = () if arguments.api_key_file is None else read_keys(arguments.api_key_file)
    settings = Settings(
        max_batch=arguments.max_batch,
        wait_ms=arguments.wait_ms,
        queue=arguments.queue,
        cache=arguments.cache,
        api_keys=keys,
        cors_origins=tuple(arguments.cors_origin),
    )
    if not arguments.no_program_cache:
        keep_programs()
    from palr_jax.recommender import Recommender  # noqa: PLC0415

    serve(lambda: Recommender.load(arguments.run), settings, arguments.host, arguments.port)


def _recommend(arguments: argparse.Namespace) -> None:
    is_bulk = arguments.users is not None or arguments.input is not None
    if is_bulk != (arguments.output is not None):
        raise UserError(
            "--users all (or --input FILE) and --output FILE.parquet (or .csv) go together: "
            "give both"
        )
    if is_bulk:
        _refuse_in_bulk(arguments)
    group = (arguments.coordinator, arguments.processes, arguments.process)
    if not arguments.no_program_cache:
        keep_programs()
    from palr_jax.parallel.config import MeshConfig  # noqa: PLC0415
    from palr_jax.recommender import Recommender  # noqa: PLC0415

    if is_bulk:
        processes.join(*group)
    elif any(value is not None for value in group):
        raise UserError("several processes make the slates of many users, not one user's")
    sizes = {axis: getattr(arguments, f"mesh.{axis}") for axis in MESH_AXES}
    if min(sizes.values()) < 1:
        raise UserError("--mesh.data, --mesh.fsdp and --mesh.tensor are at least 1")
    recommender = Recommender.load(arguments.run, MeshConfig(**sizes))
    if is_bulk:
        from palr_jax.bulk_recommend import recommend_all, users_in  # noqa: PLC0415

        users = None
        if arguments.input is not None:
            users = users_in(arguments.input, recommender, arguments.by)
        recommend_all(recommender, arguments.k, arguments.output, users)
        print(arguments.output)
        return
    history = arguments.history or recommender.history_of(arguments.user, arguments.by)
    own = arguments.candidates
    (slate,) = recommender.recommend(
        [history],
        arguments.k,
        candidates=None if own is None else [own],
        exclude=[arguments.exclude],
        explain=arguments.explain,
        by=arguments.by,
    )
    for rank, item in enumerate(slate, 1):
        if arguments.json:
            values = {"rank": rank, **dataclasses.asdict(item)}
            print(json.dumps(values, ensure_ascii=not _shows_unicode()))
            continue
        print(f"{rank:2}. {item.title}  {item.score:.4f}")
        if item.explanation:
            named = [f"{title} ({lift:+.2f})" for title, lift in item.explanation.items]
            profile = f"{item.explanation.profile} ({item.explanation.profile_lift:+.2f})"
            print(f"    {'; '.join([*named, profile])}")


def _refuse_in_bulk(arguments: argparse.Namespace) -> None:
    """Checks what goes with --users all and --input, before anything is loaded.

    Raises:
        UserError: an option is for one user alone, or the output has no table's ending.
    """
    from palr_jax.bulk_recommend import check_output  # noqa: PLC0415

    for name in ("candidates", "exclude", "explain", "json"):
        if getattr(arguments, name):
            many = "--users all" if arguments.users else "--input"
            raise UserError(f"--{name} is for one user, and does not go with {many}")
    check_output(arguments.output)


def _shows_unicode() -> bool:
    """Whether standard output takes every letter as it is."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
