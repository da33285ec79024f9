import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.cli import main
from palr_jax.config import (
    Config,
    config_path,
    load_config,
    option_keys,
    parse_config,
    sections,
    to_dict,
)
from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.run_directory import RunDirectory
from tests.locations import ROOT
from tests.outcome import result_or_line

FOLDER = ROOT / "configs"
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


def test_a_mode_that_contradicts_the_adapters_is_refused(file: Path) -> None:
    assert load_config(file, {"finetune.mode": "lora"}).ranker.lora is not None
    assert load_config(file, {"finetune.mode": "full", "ranker.lora": "null"}).ranker.lora is None
    with pytest.raises(UserError, match=r"finetune\.mode lora trains adapters: set ranker.lora"):
        load_config(file, {"finetune.mode": "lora", "ranker.lora": "null"})
    with pytest.raises(UserError, match=r"mode full trains no adapters: set ranker.lora null"):
        load_config(file, {"finetune.mode": "full"})


def test_a_type_that_training_would_change_is_refused(file: Path) -> None:
    options = {"ranker.dtype": "bfloat16", "ranker.weights": "w"}
    assert load_config(file, options).ranker.dtype == "bfloat16"
    with pytest.raises(UserError, match="dtype bfloat16 is for weights that stay frozen"):
        load_config(file, {**options, "ranker.lora": "null"})


def test_a_config_survives_yaml(file: Path) -> None:
    config = load_config(file, {"data.columns.user": "who"})
    again = parse_config(yaml.safe_load(yaml.safe_dump(to_dict(config))), "here")
    assert again == config
    assert again != Config(name="x")


def test_a_preset_gives_what_nothing_else_sets(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: x\nretriever: {model: sasrec, dim: 8}\n"
        "retriever_presets: {sasrec: {dim: 16, length: 30}, gru4rec: {dim: 32, dropout: 0.5}}\n"
    )

    def found(**options: str) -> tuple[int, int, float]:
        overrides = {f"retriever.{key}": text for key, text in options.items()}
        retriever = load_config(path, overrides).retriever
        return retriever.dim, retriever.length, retriever.dropout

    assert found() == (8, 30, 0.2)
    assert found(dim="4", length="9") == (4, 9, 0.2)
    assert found(model="gru4rec") == (8, 50, 0.5)
    assert found(model="gru4rec", dropout="0.1") == (8, 50, 0.1)
    assert found(model="caser") == (8, 50, 0.2)
    # A run directory keeps the resolved config, to which no preset is applied again.
    kept = to_dict(load_config(path, {"retriever.length": "5"}))
    assert parse_config(kept, "here").retriever.length == 5


def test_a_preset_of_the_default_retriever_needs_no_section(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: x\nretriever_presets: {sasrec: {dim: 16}}\n")
    assert load_config(tmp_path / "c.yaml", {}).retriever.dim == 16


def test_every_key_is_an_option_that_says_what_it_does() -> None:
    options = {option.key: option for section in sections() for option in section.options}
    assert options["retriever.candidates"].default == "50"
    assert options["retriever.candidates"].values == "integer"
    assert options["retriever.block"].values == "sasrec or bert"
    assert options["ranker.lora"].default == "null"
    assert options["ranker.variants"].default == "[PALR_v1, PALR_v2]"
    assert options["finetune.seed"].values == "integer or null"
    assert options["evaluate.controls"].default == "false"
    assert options["name"].default == ""
    assert {"ranker.lora.rank", "data.columns.item"} <= options.keys()
    assert not {"data", "retriever"} & options.keys()
    assert all(len(option.about) > 5 for option in options.values())
    assert all(section.about for section in sections())
    assert len(options) == len({option.about for option in options.values()}), "one text twice"


def test_docs_say_what_help_says() -> None:
    spec = importlib.util.spec_from_file_location("configuration", ROOT / "tools/configuration.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (ROOT / "docs/configuration.md").read_text("utf-8") == tool.page(), (
        "run python tools/configuration.py"
    )


def test_help_names_every_option_by_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["run", "--help"])
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for section in sections():
        assert not section.key or f"{section.key}: {' '.join(section.about.split())}" in text
        for option in section.options:
            # argparse breaks lines at hyphens too.
            assert option.about.replace(" ", "") in text.replace(" ", "")
            assert f"--{option.key} " in text


def test_a_bundled_config_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path("quickstart") == FOLDER / "quickstart.yaml"
    assert config_path("llama-7b-v5e-16") == FOLDER / "llama-7b/v5e-16.yaml"
    for path in ("quickstart.yaml", "./quickstart", "no/such"):
        assert config_path(path) == Path(path)
    with pytest.raises(UserError, match=r"--config quikstart: .*; did you mean quickstart\?"):
        config_path("quikstart")
    Path("quickstart").write_text("name: mine\n")
    assert config_path("quickstart") == Path("quickstart")


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("data.sorce", "x", "unknown key data.sorce; did you mean source?"),
        ("ranker.lora.rnk", "1", "unknown key ranker.lora.rnk; did you mean rank?"),
        ("zzz", "1", "unknown key zzz; it can be data, evaluate"),
        (
            "data.source",
            "ml-25",
            "data.source: input should be 'ml-latest-small', .* not 'ml-25'",
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
        ("seed", "{", "--seed: .{. is not valid YAML"),
        ("seed", "{a: 1, a: 2}", "--seed: .*: a repeats line 1"),
        ("seed", "[" * 5_000, "--seed: .* is nested too deeply"),
        ("seed", "!!int abc", "--seed: .* is not valid YAML"),
        ("seed", "9" * 5_000, "--seed: .* is not valid YAML"),
        ("runs", "x" * 1_000_000 + "\0", r"--runs: 'x+\.\.\.x+.x00' holds a character"),
        ("finetune.learning_rate", ".inf", "--finetune.learning_rate: .* finite number, not inf"),
        ("evaluate.temperature", ".nan", "--evaluate.temperature: .*, not nan"),
        (
            "retriever_presets",
            "{caser: {learning_rate: .inf}}",
            "retriever_presets.caser.learning_rate: .*, not inf",
        ),
        ("tuned", "{}", "--tuned: unknown key tuned; it is called retriever_presets now"),
        ("ranker.variants", "[]", "--ranker.variants: .* at least 1 item"),
        ("ranker.variants", "[PALR_v1, PALR_v1]", "variants names one twice"),
        ("ranker.size.dim", "1000000000", "--ranker.size.dim: .* less than or equal to 65536"),
        (
            "ranker.size",
            "{dim: 65536, num_layers: 1024}",
            r"--ranker.size: about 1\.\de\+13 parameters",
        ),
        ("retriever.dim", "1000000000", "--retriever.dim: .* less than or equal to"),
        ("instruct.length", "1" + "0" * 30, "--instruct.length: .* less than or equal to"),
        ("finetune.steps", "1" + "0" * 30, "--finetune.steps: .* less than or equal to"),
        ("mesh.data", "100000000", "--mesh.data: .* less than or equal to"),
        ("data.columns.separator", ";;", "--data.columns.separator: ';;' is not one ASCII char"),
        ("data.columns.separator", '"', "--data.columns.separator: '\"' is not one ASCII char"),
        ("data.columns.user", "", "--data.columns.user: .* at least 1 character"),
        (
            "instruct.template.answer",
            "{count:>9999999999}",
            "answer: {count:>9+} has a format or conversion",
        ),
        ("instruct.template.answer", "{kind!r}", "answer: {kind!r:} has a format or conversion"),
        ("instruct.template.answer", "{kind.__class__}", "unknown field {kind.__class__}"),
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
        ("name: x\nretriever_presets: {caser: {dims: 3}}\n", "key caser.dims; did you mean dim?"),
        ("name: x\nretriever_presets: {caser: {dim: 0}}\n", "presets.caser.dim: Input should be"),
        ("name: x\nretriever_presets: {pop: {dim: 1}}\n", "presets: input should be 'popularity'"),
        (
            "name: x\nretriever_presets: {sasrec: {model: caser}}\n",
            "retriever_presets.sasrec.model: the key of a preset is its model",
        ),
        (
            "name: x\ntuned: {sasrec: {dim: 1}}\n",
            "c.yaml: unknown key tuned; it is called retriever_presets now",
        ),
        ("name: x\ndata:\n", "data: input should be a dictionary"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint) as error:
        load_config(path, {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.columns.category_separator", "|"),
        ("data.columns.category_separator", ": "),
        ("data.columns.user", "3"),
        ("data.columns.title", "yes"),
        ("data.path", "2024-01-01"),
        ("data.interactions", "[a].csv"),
        ("ranker.weights", "1e3"),
        ("name", "2024"),
        ("runs", "0x10"),
        ("instruct.item_kind", "#1 {hits}"),
    ],
)
def test_an_option_that_is_a_text_is_taken_as_it_is(file: Path, key: str, text: str) -> None:
    value = load_config(file, {key: text})
    for name in key.split("."):
        value = getattr(value, name)
    assert value == text


def test_null_sets_an_optional_key_to_none(file: Path) -> None:
    config = load_config(file, {"data.columns.timestamp": "null", "ranker.weights": "null"})
    assert config.data.columns.timestamp is None
    assert config.ranker.weights is None
    assert load_config(file, {"runs": "null"}).runs == "null"


def test_the_option_is_blamed_and_not_the_file(file: Path) -> None:
    def complaint(**options: str) -> str:
        with pytest.raises(UserError) as error:
            load_config(file, {key.replace("__", "."): text for key, text in options.items()})
        return str(error.value)

    assert complaint(seed="many", name="y").startswith("--seed: input should be")
    assert complaint(ranker__lora="{rank: 0}").startswith("--ranker.lora: ranker.lora.rank: ")
    assert complaint(ranker__size__dim="130", seed="1").startswith(
        f"{file} with --ranker.size.dim: ranker.size: dim (130)"
    )
    file.write_text("name: x\nseed: many\n")
    assert complaint(name="y").startswith(f"{file}: seed: input should be")


@pytest.mark.parametrize("name", ["name: [x]", "name: {a: b}", "name: 2024-01-01", "name: 5"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "c.yaml").write_text(name)
    with pytest.raises(UserError, match="name: input should be a valid string, not "):
        load_config(tmp_path / "c.yaml", {})


@pytest.mark.parametrize(
    "text",
    [
        "retriever: {model: [sasrec]}\nretriever_presets: {sasrec: {dim: 8}}",
        "retriever: {model: {a: b}}\nretriever_presets: {sasrec: {dim: 8}}",
        "retriever: {model: sasrec}\nretriever_presets: {sasrec: [8]}",
        "retriever: [sasrec]",
    ],
)
def test_a_list_where_a_name_is_due_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(f"name: x\n{text}\n")
    with pytest.raises(UserError, match=r"c\.yaml: ") as error:
        load_config(tmp_path / "c.yaml", {})
    assert "\n" not in str(error.value)


def test_a_number_may_name_a_column(file: Path) -> None:
    file.write_text("name: x\ndata: {columns: {user: 1, item: 2, separator: '\\t'}}\n")
    columns = load_config(file, {}).data.columns
    assert (columns.user, columns.item, columns.separator) == ("1", "2", "\t")


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "c.yaml").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UserError, match=r"c\.yaml is longer than 1 MB"):
        load_config(tmp_path / "c.yaml", {})


_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates()
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(data=st.data())
def test_any_value_of_any_key_gives_a_config_or_one_line(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(option_keys()))
    raw: JsonObject = {"name": "x"}
    section = raw
    *sections, last = key.split(".")
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = data.draw(_VALUES)
    found = result_or_line(parse_config, raw, "here")
    assert isinstance(found, str) or key == "name" or found.name == "x"


@settings(deadline=None)
@given(data=st.data())
def test_any_text_of_any_option_gives_a_config_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text("name: x\n")
    key = data.draw(st.sampled_from(option_keys()))
    text = data.draw(st.text(max_size=30) | st.text("[]{}:,&*!'\"|>%-0123.e\n", max_size=20))
    found = result_or_line(load_config, path, {key: text})
    assert isinstance(found, str) or key == "name" or found.name == "x"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the config .*none.yaml: No such file"):
        load_config(tmp_path / "none.yaml", {})


def test_the_config_of_a_run_directory_is_a_config(file: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_config(load_config(file, {"seed": "3"}))
    again = load_config(run.config_file, {"name": "other"})
    assert again == replace(load_config(file, {"seed": "3"}), name="other")
