"""YAML for configs: small, without duplicate keys, and with errors of one line."""

import re

import yaml

from palr_jax.errors import UserError, shown

_LONGEST = 1_000_000
# Number of values with all aliases expanded; the largest config holds about a hundred.
_MOST_VALUES = 10_000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[\d_]+(:[\d_.]+)+)$")


def read_yaml(text: str, where: str) -> object:
    """Parses YAML; tags can only make plain data.

    Args:
        text: the YAML.
        where: the source named in errors, such as "configs/mine.yaml".

    Raises:
        UserError: the text is not YAML, too long, nested too deeply, names a key twice, or is a
            value that does not exist, as the 40th of January, or a number to the base 8 or 60.
    """
    if len(text) > _LONGEST:
        raise UserError(f"{where} is longer than {_LONGEST // 1_000_000} MB, too long for a config")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root, where, {}, ())
        return loader.construct_document(root)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply for a config") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where} is not valid YAML: {reason}") from None
    except (TypeError, AttributeError, LookupError) as error:  # from PyYAML, for an invalid tag
        raise UserError(f"{where} is not valid YAML: a tag does not fit ({error})") from None


def _check(node: yaml.Node, where: str, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """The number of values of a node, with all aliases expanded."""
    mark = id(node)
    if mark in above:
        raise UserError(f"{where}, line {node.start_mark.line + 1}: an alias contains itself")
    if mark not in sizes:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.ScalarNode):
            _check_number(node, where)
        parts = (_check(child, where, sizes, (*above, mark)) for child in children)
        sizes[mark] = 1 + sum(parts)
    if sizes[mark] > _MOST_VALUES:
        raise UserError(f"{where} holds more than {_MOST_VALUES:,} values, too many for a config")
    return sizes[mark]


def _check_number(node: yaml.ScalarNode, where: str) -> None:
    """Refuses what YAML takes for a number to the base 8 or 60, where few mean one: 010, 1:30."""
    if node.tag in _NUMBERS and node.style is None and _OTHER_BASE.match(node.value):
        raise UserError(
            f"{where}, line {node.start_mark.line + 1}: YAML reads {shown(node.value)} to the base "
            f"{60 if ':' in node.value else 8}: write the number without leading zeros or colons"
        )


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{where}, line {line}: {key.value} repeats line {lines[key.value]}: "
                    "delete one of them"
                )
            lines[key.value] = line
