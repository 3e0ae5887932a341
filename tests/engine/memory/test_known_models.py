"""Known models: their configs give the published numbers of parameters, offline."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest

from qlora_engine.models import catalog, known

PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "codellama-34b": 33_743_970_304,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "tinyllama-1.1b": 1_100_048_384,
    "yi-6b": 6_061_035_520,
    "yi-34b": 34_388_917_248,
    "deepseek-coder-6.7b": 6_740_512_768,
    "deepseek-coder-33b": 33_342_991_360,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "gpt-neox-20b": 20_554_567_680,
    "pythia-12b": 11_846_072_320,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmoe-1b-7b": 6_919_161_856,
    "starcoder2-3b": 3_030_371_328,
    "starcoder2-7b": 7_173_923_840,
    "starcoder2-15b": 15_957_889_024,
    "stablelm-2-1.6b": 1_644_515_328,
    "command-r-35b": 34_980_831_232,
    "command-r7b": 8_028_033_024,
    "glm-4-9b": 9_399_951_360,
}
"""Parameters as the publishers' weights have them; Gemma 3 from 4B without its eyes."""


BILLIONS = {
    "codellama-7b": 6.7385, "codellama-13b": 13.016, "codellama-70b": 68.977, "deepseek-coder-1.3b": 1.3465,
    "deepseek-llm-7b": 6.91, "deepseek-llm-67b": 67.42, "deepseek-v2-lite": 15.706, "deepseek-v3": 671.026,
    "deepseek-v3.2-exp": 671.878, "falcon-7b": 6.9217, "falcon-40b": 41.3, "falcon-180b": 178.5, "falcon3-1b": 1.669,
    "falcon3-3b": 3.228, "falcon3-7b": 7.456, "falcon3-10b": 10.306, "gpt-oss-20b": 20.915, "gpt-oss-120b": 116.829,
    "gpt2": 0.12444, "gpt2-medium": 0.35482, "gpt2-large": 0.77403, "gpt2-xl": 1.55761, "qwen2-0.5b": 0.494,
    "qwen2-1.5b": 1.5437, "qwen2-7b": 7.6156, "qwen2-72b": 72.706, "qwen1.5-moe-a2.7b": 14.316,
    "qwen3-235b-a22b": 235.09, "qwen3-coder-480b-a35b": 480.15, "qwen3-next-80b-a3b": 79.674, "qwen3.5-27b": 26.9,
    "qwen3.5-35b-a3b": 34.661, "codestral-22b": 22.2473, "ministral-8b": 8.0198, "mistral-large-123b": 122.61,
    "ministral-3-3b": 3.43, "ministral-3-8b": 8.49, "ministral-3-14b": 13.507, "olmo-1b": 1.1768, "olmo-7b": 6.888,
    "olmo-2-1b": 1.4849, "olmo-2-32b": 32.234, "olmo-3-7b": 7.298, "olmo-3-32b": 32.234, "olmo-hybrid-7b": 7.431,
    "flexolmo-7x7b": 33.271, "phi-3.5-moe": 41.873, "pythia-70m": 0.0704, "pythia-160m": 0.1623, "pythia-410m": 0.4053,
    "pythia-1b": 1.0118, "pythia-1.4b": 1.4146, "pythia-2.8b": 2.7752, "pythia-6.9b": 6.8574, "gpt-j-6b": 6.0509,
    "redpajama-3b": 2.7758, "stablelm-3b": 2.7954, "granite-3.0-2b": 2.5338, "granite-3.0-8b": 8.1708,
    "granite-3.0-1b-a400m": 1.3345, "granite-3.0-3b-a800m": 3.2988, "solar-10.7b": 10.7315, "yi-1.5-6b": 6.061,
    "yi-1.5-9b": 8.829, "yi-1.5-34b": 34.389, "open-llama-3b": 3.4265, "open-llama-7b": 6.7384,
    "open-llama-13b": 13.0159, "salamandra-2b": 2.2535, "salamandra-7b": 7.768, "r1-distill-qwen-1.5b": 1.7771,
    "aya-23-8b": 8.028, "command-r-08-2024": 32.296, "glm-4-9b-0414": 9.4, "glm-4-32b-0414": 32.57,
    "glm-4.5-air": 106.85, "glm-4.5": 352.8, "glm-4.7-flash": 29.943, "glm-5": 743.911, "seed-oss-36b": 36.151,
    "apertus-8b": 8.053, "apertus-70b": 70.6, "exaone-4.0-1.2b": 1.2794, "exaone-4.0-32b": 32.0,
    "ernie-4.5-0.3b": 0.3607, "ernie-4.5-21b-a3b": 21.825, "nemotron-mini-4b": 4.19, "llama-4-scout": 107.77,
    "internlm3-8b": 8.804, "minicpm3-4b": 4.074, "mellum2-12b-a2.5b": 12.15, "minimax-m2": 228.69,
    "kimi-linear-48b-a3b": 49.133, "cwm-32b": 32.581, "iquest-coder-40b": 39.794, "jais-2-8b": 8.09, "lfm3-1.7b": 1.729,
    "nemotron-labs-dory-4b": 3.975, "sarvam-30b": 32.153, "sarvam-105b": 106.032, "solar-open-100b": 102.652,
    "youtu-llm-2b": 1.962, "jamba-v0.1": 51.57, "laguna-xs.2": 33.19,
}  # fmt: skip
"""The same in billions, as their publishers name or count them; what is below 0.6 % is rounding."""
DISTINCT = {model.name: model for model in known.known_models() if model.name in {**PUBLISHED, **BILLIONS}}
LICENCE_UNKNOWN = 9


def of_today() -> list[str]:
    """Every known model on its own days, or all of them (`QLORA_ALL_MODELS`)."""
    if os.environ.get("QLORA_ALL_MODELS"):
        return sorted(DISTINCT)
    day = dt.date.today().toordinal()  # noqa: DTZ011 - any day will do
    return [name for number, name in enumerate(sorted(DISTINCT)) if (number + day) % 30 == 0]


def test_there_are_enough_to_choose_from() -> None:
    models = known.known_models()
    assert len(models) >= 150
    assert {model.name for model in models} >= set(DISTINCT) == {*PUBLISHED, *BILLIONS}
    for kind in ("qwen3_5_text", "gpt_oss", "glm4_moe_lite", "mellum", "lfm3", "ministral3", "olmo_hybrid"):
        assert any(model.facts().model_type == kind for model in models), kind
    assert sum(model.licence is None for model in models) <= LICENCE_UNKNOWN
    assert all(model.hub_id and model.facts().max_positions for model in models)


@pytest.mark.parametrize("name", [*PUBLISHED, *BILLIONS])
def test_parameters_are_the_published_ones(name: str) -> None:
    facts = catalog.facts(name, offline=True)
    if name in PUBLISHED:
        assert facts.parameters == PUBLISHED[name]
    else:
        assert facts.parameters / 1e9 == pytest.approx(BILLIONS[name], rel=0.006)
    assert 0 < facts.quantized_parameters < facts.parameters
    assert facts.quantized_parameters > 0.3 * facts.active_parameters or facts.parameters < 1e9


@pytest.mark.parametrize("name", of_today())
@pytest.mark.filterwarnings("ignore")
def test_numbers_are_those_of_the_class_built_on_meta(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Parts, parameters in all and of one token, and the sizes, built from the configuration alone."""
    from qlora_engine.models import class_child, classes, spec

    monkeypatch.setenv("QLORA_HOME", str(tmp_path))
    model, facts = DISTINCT[name], DISTINCT[name].facts()
    text = spec.text_config(model.config)
    built = classes.facts_of_description(class_child.describe(text), model.config, text, name, origin="known")
    for figure in (
        "parameters",
        "active_parameters",
        "quantized_parameters",
        "hidden_size",
        "layers",
        "vocab_size",
        "max_positions",
        "is_tied",
        "experts",
    ):
        assert getattr(facts, figure) == getattr(built, figure), figure
    assert sorted(one.path for one in facts.linears) == sorted(one.path for one in built.linears)
    assert {(one.path, one.shape, one.count) for one in facts.stacked} == {
        (one.path, one.shape, one.count) for one in built.stacked
    }


@pytest.mark.parametrize(
    ("name", "nbytes"), [("llama-3.1-8b", 16_060_522_496), ("gpt-oss-20b", 13_761_264_768)]
)
def test_the_download_is_as_large_as_published(name: str, nbytes: int) -> None:
    model = known.find(name)
    assert model is not None
    assert model.download_bytes == nbytes


def test_names_lead_to_one_model() -> None:
    found: dict[str, str] = {}
    for model in known.known_models():
        for name in (model.name, model.title, model.hub_id, *model.aliases):
            assert name is None or found.setdefault(name.lower(), model.name) == model.name


@pytest.mark.parametrize("name", ["llama-65b", "LLaMA 65B", "huggyllama/llama-65b", "LLAMA-65B"])
def test_any_of_its_names_will_do(name: str) -> None:
    assert catalog.facts(name, offline=True).layers == 80
