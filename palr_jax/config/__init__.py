"""The config of a run: its schema, read from YAML and the command line and checked."""

from palr_jax.config.bundled import bundled_configs, config_path
from palr_jax.config.evaluate import EvaluateConfig
from palr_jax.config.keys import nearest
from palr_jax.config.options import Option, Section, option_keys, sections
from palr_jax.config.ranker import ItemVectorKind, RankerConfig, SizeConfig, Variant
from palr_jax.config.reading import load_config, parse_config
from palr_jax.config.schema import Config, to_dict

__all__ = [
    "Config",
    "EvaluateConfig",
    "ItemVectorKind",
    "Option",
    "RankerConfig",
    "Section",
    "SizeConfig",
    "Variant",
    "bundled_configs",
    "config_path",
    "load_config",
    "nearest",
    "option_keys",
    "parse_config",
    "sections",
    "to_dict",
]
