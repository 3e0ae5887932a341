"""`qlora init` and `qlora check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io
from qlora_engine.cli.commands import job


def test_init_writes_a_file_that_check_accepts(qlora: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    assert qlora("init", file).code == 0
    assert "# Size of the adapters." in file.read_text(encoding="utf-8")
    result = qlora("check", file, "--json")
    assert result.code == 0
    assert result.document == {"path": str(file), "is_valid": True, "problems": [], "findings": []}


def test_init_takes_presets_and_settings(qlora: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    result = qlora("init", file, "--preset", "guanaco", "--set", "lora.rank=8", "--cpu", "--json")
    assert result.code == 0
    config = config_io.load(file)
    assert (config.lora.rank, config.lora.alpha) == (8, 16.0)
    assert config.training.optimizer == "adamw_torch_fused"
    assert result.document["config"]["lora"]["rank"] == 8


@pytest.mark.parametrize(
    ("version", "optimizer", "words"),
    [(None, "adamw_torch_fused", "without"), ("575.10", "paged_adamw_8bit", "with")],
)
def test_init_chooses_for_this_machine(
    version: str | None,
    optimizer: str,
    words: str,
    qlora: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "driver", lambda: (version, None))
    result = qlora("init", tmp_path / "job.toml")
    assert f"for a machine {words} an NVIDIA GPU" in result.out
    assert config_io.load(tmp_path / "job.toml").training.optimizer == optimizer


def test_each_option_stands_below_its_own_comment(qlora: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    qlora("init", file, "--set", 'data.columns={instruction = "question"}')
    lines = file.read_text(encoding="utf-8").splitlines()
    assert (
        lines.index('columns = {instruction = "question"}')
        == lines.index("# A file whose rows are never trained on. Empty: a share of the dataset.") - 1
    )
    assert config_io.load(file).data.columns == {"instruction": "question"}


def test_init_keeps_an_existing_file(qlora: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text("mine", encoding="utf-8")
    result = qlora("init", file)
    assert result.code == 2
    assert "exists already" in result.error
    assert file.read_text(encoding="utf-8") == "mine"
    assert qlora("init", file, "--force").code == 0


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lora.rnak=8", "did you mean 'lora.rank'"),
        ("lora.rank", "write it as lora.rank=8"),
        ("lora.rank=0", "lora.rank: must be at least 1, not 0"),
        ("training.learning_rate=nan", "training.learning_rate: must be a finite number"),
        ("quantization.quant_type=nf5", "did you mean 'nf4'"),
    ],
)
def test_wrong_settings_are_refused_with_the_next_step(
    setting: str, words: str, qlora: Any, tmp_path: Path
) -> None:
    result = qlora("init", tmp_path / "job.toml", "--set", setting)
    assert result.code == 2
    assert words in result.error
    assert "; hint: " in result.error
    assert not (tmp_path / "job.toml").exists()


def test_check_prints_every_problem_at_once(qlora: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        "[lora]\nrank = 0\nrnk = 3\n[training]\nlearning_rate = nan\nepochs = -1\n[dta]\n",
        encoding="utf-8",
    )
    result = qlora("check", file)
    assert result.code == 2
    for path in ("lora.rank", "training.learning_rate", "training.epochs"):
        assert f"{file}: {path}: must be" in result.err
    assert result.error == f"error: {file} has 5 problems; hint: correct the named settings"
    document = qlora("check", file, "--json").document
    assert [problem["path"] for problem in document["problems"]] == [
        "lora.rnk",
        "dta",
        "lora.rank",
        "training.epochs",
        "training.learning_rate",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[lora]\nrnak = 8\n", "did you mean 'rank'"),
        ("[lor]\nrank = 8\n", "did you mean 'lora'"),
        ("schema_version = 99\n", "newer program"),
        ("[lora\n", "not valid TOML"),
        ("lora = 3\n", "lora: must be a table"),
    ],
)
def test_a_broken_job_file_is_explained(text: str, words: str, qlora: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text, encoding="utf-8")
    result = qlora("check", file)
    assert result.code == 2
    assert words in result.err


def test_a_missing_job_file_says_how_to_get_one(qlora: Any, tmp_path: Path) -> None:
    for command in ("check", "train"):
        result = qlora(command, tmp_path / "none.toml")
        assert result.code == 2
        assert "hint: write one with `qlora init" in result.error


def test_init_below_a_file(qlora: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = qlora("init", tmp_path / "file" / "job.toml")
    assert result.code == 2
    assert "cannot be written" in result.error
