from pathlib import Path

import pytest
import yaml

from palr_jax.config import Config, load_config, option_keys, parse_config, to_dict
from palr_jax.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text("name: x\nranker: {lora: {rank: 4}}\n")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_config_of_the_repository_is_valid(path: Path) -> None:
    assert load_config(path, {}).name == "-".join(path.relative_to(FOLDER).with_suffix("").parts)


def test_values_come_from_the_command_line_then_the_file_then_defaults(file: Path) -> None:
    config = load_config(
        file, {"ranker.lora.alpha": "2", "finetune.learning_rate": "1e-4", "name": "y"}
    )
    assert config.ranker.lora is not None
    assert (config.ranker.lora.rank, config.ranker.lora.alpha) == (4, 2.0)
    assert config.finetune.learning_rate == 1e-4
    assert config.name == "y"
    assert config.retriever.candidates == 50
    assert load_config(file, {"ranker.lora": "null"}).ranker.lora is None
    targets = load_config(file, {"ranker.lora": "{targets: [q, v]}"}).ranker.lora
    assert targets is not None
    assert targets.targets == ("q", "v")


def test_one_key_turns_adapters_off(file: Path) -> None:
    assert load_config(file, {"finetune.mode": "lora"}).ranker.lora is not None
    full = load_config(file, {"finetune.mode": "full"})
    assert full.ranker.lora is None
    with pytest.raises(UserError, match=r"finetune\.mode lora trains adapters: set ranker.lora"):
        load_config(file, {"finetune.mode": "lora", "ranker.lora": "null"})
    with pytest.raises(UserError, match="dtype bfloat16 is for weights that stay as they are"):
        load_config(
            file,
            {"finetune.mode": "full", "ranker.dtype": "bfloat16", "ranker.weights": "w"},
        )


def test_a_config_survives_yaml(file: Path) -> None:
    config = load_config(file, {"data.columns.user": "who"})
    again = parse_config(yaml.safe_load(yaml.safe_dump(to_dict(config))), "here")
    assert again == config
    assert again != Config(name="x")


def test_the_tuned_values_of_the_chosen_retriever_count(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: x\nretriever: {model: sasrec, dim: 8, length: 30}\n"
        "tuned: {sasrec: {dim: 16}, gru4rec: {dim: 32, dropout: 0.5}}\n"
    )
    assert load_config(path, {}).retriever.dim == 16
    other = load_config(path, {"retriever.model": "gru4rec", "retriever.dropout": "0.1"})
    assert (other.retriever.dim, other.retriever.length, other.retriever.dropout) == (32, 30, 0.1)
    assert load_config(path, {"retriever.model": "caser"}).retriever.dim == 8
    # What a run directory keeps is resolved; the tuned values do not come over it once more.
    kept = to_dict(load_config(path, {"retriever.dim": "4"}))
    assert parse_config(kept, "here").retriever.dim == 4


def test_every_key_is_an_option() -> None:
    keys = dict(option_keys())
    assert keys["retriever.candidates"] == "50"
    assert keys["ranker.lora"] == "null"
    assert "ranker.lora.rank" in keys
    assert "data.columns.item" in keys
    assert "data" not in keys


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("data.sorce", "x", "unknown key data.sorce; did you mean source?"),
        ("ranker.lora.rnk", "1", "unknown key ranker.lora.rnk; did you mean rank?"),
        ("zzz", "1", "unknown key zzz; it can be data, evaluate"),
        (
            "data.source",
            "ml-25m",
            "data.source: input should be 'ml-latest-small', .* not 'ml-25m'",
        ),
        ("finetune.steps", "many", "finetune.steps: input should be a valid integer.* not 'many'"),
        (
            "finetune.steps",
            "0",
            "finetune.steps: input should be greater than or equal to 1, not 0",
        ),
        ("instruct.user_share", "1.5", "instruct.user_share: .* less than or equal to 1, not 1.5"),
        ("ranker.lora.rank", "-1", "ranker.lora.rank: .* greater than or equal to 1, not -1"),
        ("ranker.lora.targets", "[q, z]", "ranker.lora.targets: .* not 'z'"),
        ("ranker.size.num_heads", "3", r"ranker.size: dim \(128\) must be an even multiple"),
        ("instruct.length", "4096", r"finetune.length \(1024\) must be at least instruct.length"),
        ("retriever.num_heads", "7", "num_heads"),
        ("retriever", "5", "retriever: input should be a dictionary"),
        ("name", "../up", "name: string should match pattern"),
        ("seed", "{", "--seed: '{' is not a YAML value"),
    ],
)
def test_a_wrong_value_is_one_clear_line(file: Path, key: str, value: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        load_config(file, {key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [", "c.yaml is not valid YAML"),
        ("- 1\n", "c.yaml holds no config"),
        ("", "c.yaml holds no config"),
        ("seed: 1\n", "name: field required"),
        ("name: x\nranker:\n  lora:\n    rnak: 3\n", "unknown key ranker.lora.rnak"),
        ("name: x\ntuned: {caser: {dims: 3}}\n", "unknown key caser.dims; did you mean dim?"),
        ("name: x\ntuned: {caser: {dim: 0}}\n", "tuned.caser.dim: Input should be greater"),
        ("name: x\ntuned: {pop: {dim: 1}}\n", "tuned: input should be 'popularity'"),
        ("name: x\ndata:\n", "data: input should be a dictionary"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint) as error:
        load_config(path, {})
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the config .*none.yaml: No such file"):
        load_config(tmp_path / "none.yaml", {})
