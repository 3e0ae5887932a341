"""The configuration tree, job files, presets and overrides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_engine import config_io
from qlora_engine.config import (
    TrainingConfig,
    all_knobs,
    changed_from,
    get_value,
    validate,
    with_value,
)
from qlora_engine.config_io import ConfigError
from qlora_engine.errors import EngineError
from qlora_engine.knobs import RESUMES, Knob, problem_with


def values_of(knob: Knob) -> st.SearchStrategy[Any]:
    lo, hi = knob.lo, knob.hi
    kinds: list[st.SearchStrategy[Any]] = []
    if knob.choices:
        kinds.append(st.sampled_from(sorted(knob.choices)))
    for accepted in knob.accepted_types:
        if accepted is bool:
            kinds.append(st.booleans())
        elif accepted is int:
            kinds.append(st.integers(int(lo or 0), int(hi) if hi is not None else 10**6))
        elif accepted is float:
            kinds.append(st.floats(lo or 0.0, hi or 1e6, exclude_min=knob.lo_open, allow_nan=False))
        elif accepted is str and not knob.choices:
            kinds.append(
                st.text(st.characters(exclude_categories=["C"]), min_size=1).filter(
                    lambda s: s.lower() != "none"
                )
            )
    if knob.is_optional:
        kinds.append(st.none())
    return st.one_of(kinds) if kinds else st.just(knob.default)


@st.composite
def configs(draw: st.DrawFn) -> TrainingConfig:
    config = TrainingConfig()
    for path in draw(st.lists(st.sampled_from(sorted(all_knobs())), max_size=12, unique=True)):
        config = with_value(config, path, draw(values_of(all_knobs()[path])))
    return config


def test_the_defaults_are_valid() -> None:
    assert validate(TrainingConfig()) == []


@given(configs())
def test_a_valid_config_survives_toml_and_json_forms(config: TrainingConfig) -> None:
    if validate(config):
        return
    assert config_io.loads(config_io.dumps(config)) == config
    assert config_io.loads(config_io.dumps(config, is_commented=True)) == config
    assert config_io.from_dict(config_io.to_dict(config)) == config


@given(configs())
def test_validation_never_raises(config: TrainingConfig) -> None:
    for issue in validate(config):
        assert issue.path in all_knobs()


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    text = "schema_version = 1\n[lora]\nrank = 0\ndropout = 2\n[training]\nlearning_rate = nan\noptimizer = 'adamw8bit'\n"
    with pytest.raises(ConfigError) as caught:
        config_io.loads(text)
    assert [issue.path for issue in caught.value.issues] == [
        "lora.rank", "lora.dropout", "training.learning_rate", "training.optimizer",
    ]  # fmt: skip
    assert "adamw_8bit" in str(caught.value)


def test_unknown_keys_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"lora\.rnak.*did you mean 'rank'"):
        config_io.loads("[lora]\nrnak = 8\n")


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("[lora\nrank = 1", "line 1"),
        ("schema_version = 99", "newer program"),
        ("schema_version = 'x'", "schema_version"),
        ("lora = 3", "must be a table"),
        ("[training]\nmicro_batch = 3\neffective_batch = 16\n", "multiple"),
        ("[lora]\ntargets = 'everything'\n", "lora.targets"),
        ("[lora]\ninit = 'pissa'\n", "PiSSA moves"),
        ("[lora]\ninit = 'loftq'\ndora = true\n", "DoRA"),
        ("[data]\nformat = 'text'\n", "no answers"),
        ("[training]\nseed = true\n", "whole number"),
    ],
)
def test_a_bad_job_file_says_what_is_wrong(text: str, fragment: str) -> None:
    with pytest.raises(EngineError, match=fragment) as caught:
        config_io.loads(text)
    assert caught.value.exit_code == 2


def test_a_missing_job_file_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="qlora init"):
        config_io.load(tmp_path / "no.toml")


def test_an_emptied_option_stays_empty() -> None:
    config = with_value(TrainingConfig(), "training.early_stopping", None)
    assert config_io.loads(config_io.dumps(config)).training.early_stopping is None


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("lora.rank=8", "lora.rank", 8),
        ("training.learning_rate=1e-3", "training.learning_rate", 1e-3),
        ("lora.targets=q_proj,v_proj", "lora.targets", ("q_proj", "v_proj")),
        ("lora.targets=attention", "lora.targets", "attention"),
        ("quantization.double_quant=false", "quantization.double_quant", False),
        ("data.seq_len=none", "data.seq_len", None),
        ("data.path=/tmp/a b.json", "data.path", "/tmp/a b.json"),
        ('training.sample_prompts=["a, b"]', "training.sample_prompts", ("a, b",)),
        ("data.ignore=images", "data.ignore", ("images",)),
        ("data.ignore=images, calls", "data.ignore", ("images", "calls")),
        ("data.leave_out=3, 8-12", "data.leave_out", "3, 8-12"),
        ("data.leave_out=3", "data.leave_out", "3"),
    ],
)
def test_overrides(text: str, path: str, value: Any) -> None:
    assert get_value(config_io.with_overrides(TrainingConfig(), [text]), path) == value


def test_an_unknown_override_gets_a_suggestion() -> None:
    with pytest.raises(EngineError, match=r"did you mean 'lora\.rank'"):
        config_io.with_overrides(TrainingConfig(), ["lora.rnk=8"])


def test_every_preset_loads_and_differs_as_it_says() -> None:
    names = [preset.name for preset in config_io.presets()]
    assert names == ["balanced", "guanaco", "quick-look", "low-memory", "high-quality"]
    for preset in config_io.presets():
        config = config_io.load_preset(preset.name)
        assert validate(config) == []
        assert set(changed_from(config, TrainingConfig())) <= set(preset.values)


def test_guanaco_is_the_recipe_of_the_paper() -> None:
    config = config_io.load_preset("guanaco")
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (64, 16, 0.1)
    assert (config.training.schedule, config.training.max_grad_norm) == ("constant", 0.3)
    assert config.training.optimizer == "paged_adamw_32bit"
    large = config_io.load_preset("guanaco", parameters=33_000_000_000)
    assert (large.training.learning_rate, large.lora.dropout) == (1e-4, 0.05)


def test_presets_choose_fused_adamw_on_the_cpu() -> None:
    assert config_io.load_preset("balanced", is_cpu=True).training.optimizer == "adamw_torch_fused"


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "x", None, True])
def test_a_rate_that_is_no_rate_is_refused(value: Any) -> None:
    assert problem_with(all_knobs()["training.learning_rate"], value)


@pytest.mark.parametrize("path", [path for path, found in all_knobs().items() if found.unit])
def test_a_label_leaves_its_unit_to_the_unit(path: str) -> None:
    """They are shown side by side: `Save every` and `steps`."""
    found = all_knobs()[path]
    assert not set(found.label.lower().split()) & {found.unit, found.unit.removesuffix("s")}


@pytest.mark.parametrize("path", all_knobs())
def test_every_option_says_what_its_change_means_to_a_resumed_run(path: str) -> None:
    """`knob(..., resume="rows")`: one of knobs.RESUMES."""
    assert all_knobs()[path].resume in RESUMES, f"say resume= of {path}; see knobs.RESUMES"
