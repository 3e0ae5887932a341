"""The help that ships with the program: complete, and in step with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import paths
from qlora_engine.cli import reference
from qlora_engine.cli.main import COMMANDS
from qlora_engine.config import DataSettings, TrainingConfig, all_knobs, with_value
from qlora_engine.data import formats, sources
from qlora_engine.memory import estimate
from qlora_engine.models import catalog

PAGES = (
    "start",
    "qlora",
    "model",
    "data",
    "memory",
    "train",
    "try",
    "export",
    "runs",
    "trouble",
    "glossary",
    "options",
)
README = Path(__file__).resolve().parents[3] / "README.md"


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_there(page: str) -> None:
    text = (paths.resources_dir() / "help" / f"{page}.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "!" not in text.replace("!=", "")


def test_the_reference_is_what_the_knobs_say() -> None:
    """Regenerate with `python -m qlora_engine.cli.reference`."""
    assert reference.reference_path().read_text(encoding="utf-8") == reference.markdown()


def test_the_reference_names_every_option() -> None:
    text = reference.markdown()
    for path in all_knobs():
        assert f"`{path.split('.', 1)[1]}`" in text


def estimated(model: str, **settings: Any) -> Any:
    """The job that README and help compute with: the defaults, one row of 1,024 tokens at a time."""
    config = TrainingConfig()
    for path, value in settings.items():
        config = with_value(config, path.replace("__", "."), value)
    return estimate.estimate(catalog.facts(model), config, seq_len=1024, micro_batch=1, device="cuda")


def test_the_hardware_table_is_what_the_estimate_says() -> None:
    rows = re.findall(
        r"^\| ([a-z0-9.-]+) \| ([\d.]+) GiB \| ([\d.]+) GiB \| (\d+) GB \|$",
        README.read_text("utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == 7
    for model, double, single, gpu in rows:
        found = estimated(model)
        assert float(double) == pytest.approx(found.double_quant.device_likely / 2**30, rel=0.05), model
        assert float(single) == pytest.approx(found.single_quant.device_likely / 2**30, rel=0.05), model
        assert found.double_quant.device_likely < int(gpu) * 1e9, model


def test_the_page_on_qlora_has_computed_numbers() -> None:
    page = (paths.resources_dir() / "help" / "qlora.md").read_text(encoding="utf-8")
    found = estimated("llama-3.1-8b")
    double, single = found.double_quant.parts, found.single_quant.parts
    assert (
        f"**{double['quantized_weights'] / 2**30:.2f} GiB instead of {4 * double['quantized_weights'] / 2**30:.2f} GiB**"
        in page
    )
    constants = [part["quantization_constants"] / 2**20 for part in (double, single)]
    assert f"**{constants[0]:.0f} MiB instead of {constants[1]:.0f} MiB**" in page
    assert f"{double['unquantized_weights'] / 2**30:.2f} GiB" in page
    assert f"{double['adapters'] / 2**20:.0f} MiB in 32 bits" in page
    large = estimated("llama-65b")
    constants = [
        side.parts["quantization_constants"] / 2**30 for side in (large.double_quant, large.single_quant)
    ]
    assert f"{constants[0]:.2f} GiB instead of {constants[1]:.2f} GiB" in page
    assert float(re.findall(r"\| QLoRA \| ([\d.]+) GiB", page)[0]) == pytest.approx(
        found.double_quant.device_likely / 2**30, rel=0.05
    )


def test_examples_of_the_data_page_are_read(tmp_path: Path) -> None:
    page = (paths.resources_dir() / "help" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^    (\{.+\})$", page, re.MULTILINE)
    wanted = ["alpaca", "messages", "sharegpt", "prompt_completion", "oasst", "transcript", "tool_questions"]
    wanted.append("prompt_completion")  # with a mark
    assert [formats.detect([json.loads(row)], DataSettings()).format for row in rows] == wanted
    for number, row in enumerate(rows):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(row + "\n", encoding="utf-8")
        assert sources.open_store(DataSettings(path=str(file))).row(1) == json.loads(row)


def test_help_names_only_commands_that_exist() -> None:
    for page in PAGES:
        text = (paths.resources_dir() / "help" / f"{page}.md").read_text(encoding="utf-8")
        for name in re.findall(r"`qlora (\w+)", text) + re.findall(r"^    qlora (\w+)", text, re.MULTILINE):
            assert name in COMMANDS, f"{page}.md names `qlora {name}`"
