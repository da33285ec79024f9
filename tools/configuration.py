"""Writes docs/configuration.md from the docstrings of the config dataclasses.

Run `python tools/configuration.py` after every change of these docstrings; a test compares the two.
"""

from pathlib import Path

from palr_jax.config import Option, Section, bundled_configs, sections

FILE = Path(__file__).parent.parent / "docs/configuration.md"

_INTRO = """# Configuration

A config is a YAML file of sections and keys. `--config` takes its path, or the name of a bundled
config:

{bundled}

Every key is also an option of the command line: `--retriever.dim 128`. Texts are taken verbatim,
all other values are read as YAML: `--ranker.lora '{{rank: 16}}'`, `--evaluate.users null`.

One key can have several values. The first of these wins:

1. the command line,
2. the file,
3. for keys of `retriever`, the entry of the chosen model in `retriever_presets`,
4. the default.

The run directory keeps the resolved config in `config.yaml`. `palr COMMAND --help` prints the same
texts as this page, which `python tools/configuration.py` makes from the code.
"""


def page() -> str:
    """The whole page."""
    bundled = ", ".join(f"`{name}`" for name in bundled_configs())
    parts = [_INTRO.format(bundled=bundled), *map(_section, sections())]
    return "\n".join(parts)


def _section(section: Section) -> str:
    title = f"## `{section.key}`" if section.key else "## Keys outside of sections"
    rows = [_row(section.key, option) for option in section.options]
    head = ["| key | values | default | what it does |", "|---|---|---|---|"]
    return "\n".join([title, "", section.about, "", *head, *rows, ""])


def _row(section: str, option: Option) -> str:
    key = option.key.removeprefix(f"{section}.")
    default = f"`{option.default}`" if option.default else ""
    cells = [f"`{key}`", option.values, default, option.about]
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
