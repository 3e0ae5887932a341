"""A right export is proven, a spoiled one is not, by the check that is there for it."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_engine.events import (
    CheckFinished,
    Event,
    RunFinished,
)
from qlora_engine.export import source, verify, verify_child
from tests.engine.export.conftest import Export, RunOf, export_events, failed, proven
from tests.engine.export.merged import VARIANTS
from tests.support import tiny_runs
from tests.support.run_folders import seal_adapter


def checks_of(events: list[Event]) -> dict[str, bool | None]:
    return {e.name: e.passed for e in tiny_runs.of(events, CheckFinished)}


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["merged", "adapter"])
def test_a_right_export_is_proven_in_a_process_of_its_own(
    run_of: RunOf, tmp_path: Path, format_: str
) -> None:
    events = export_events(run_of("lora"), format_, tmp_path / "out")
    end = events[-1]
    assert isinstance(end, RunFinished)
    checks = checks_of(events)
    assert end.result["is_proven"], checks
    assert all(checks.values())
    assert len(checks) == (11 if format_ == "merged" else 6)
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert proof["is_proven"] is True
    assert set(proof["sha256"]) == {p.name for p in (tmp_path / "out").iterdir()} - {"proof.json"}


@pytest.mark.parametrize(
    ("format_", "variant", "options"),
    [
        ("merged", "lora", {"dtype": "fp16"}), ("merged", "rslora", {"into": "dequantized"}), ("merged", "dora", {}),
        ("adapter", "dora", {}), ("merged", "loftq", {"dtype": "fp32"}),
    ],
)  # fmt: skip
def test_right_exports_of_every_kind_pass_every_check(
    run_of: RunOf, export: Export, format_: str, variant: str, options: dict[str, Any]
) -> None:
    run = run_of(variant, **{"loftq": {"lora__init": "loftq"}, **VARIANTS}[variant])
    checks = proven(run, export(run, format_, **options), format_)
    assert failed(checks) == [], checks
    assert len(checks) == (10 if format_ == "merged" else 5)


def flip_a_weight(folder: Path) -> None:
    file = min(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(n for n in sorted(tensors) if "lora_B" in n or "mlp" in n)
    changed = tensors[name].float()
    changed[0, 0] += 5.0
    tensors[name] = changed.to(tensors[name].dtype)
    save_file(tensors, file, metadata={"format": "pt"})


def forget_the_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def forget_the_ends(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 2}))


def cut(folder: Path) -> None:
    file = min(folder.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 10)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor], str], None]) -> None:
    """Rewrite an adapter's file; `change` gets all tensors and the name of one B matrix."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors, max(n for n in tensors if "lora_B" in n))
    save_file(tensors, file, metadata={"format": "pt"})


def lose_a_key(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def silence_a_key(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].zero_()


def rename_a_key(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("model.layers", "model.language_model.layers")] = tensors.pop(name)


ACCIDENTS: dict[str, tuple[Callable[[dict[str, torch.Tensor], str], None], str]] = {
    "missing": (lose_a_key, "is not in the adapter file"),
    "renamed": (rename_a_key, "belongs to no module of the base"),
    "all zero": (silence_a_key, "is all zero"),
}


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize(("change", "words"), ACCIDENTS.values(), ids=ACCIDENTS)
def test_an_adapter_that_does_not_fit_fails_the_proof_by_name(
    run_of: RunOf,
    export: Export,
    tmp_path: Path,
    kind: str,
    change: Callable[[dict[str, torch.Tensor], str], None],
    words: str,
) -> None:
    """The run's own adapter is changed before anything is exported: export and reference agree, and nothing but the names
    could tell."""
    run = Path(shutil.copytree(run_of("lora"), tmp_path / "run"))
    out = export(run_of("lora"), kind)
    told: dict[str, str] = {}

    def tell(name: str, passed: bool | None, detail: str, **numbers: Any) -> None:
        if passed is False:
            told[name] = detail

    for folder in (run / "adapter", *([out] if kind == "adapter" else [])):
        change_tensors(folder, change)
    seal_adapter(run)
    details = json.loads((out / "proof.json").read_text())["details"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of missing keys
        verify_child.check(verify.request_of(source.open_source(str(run)), out, kind, details), tell)
    detail = told["every tensor of the adapter has its module"]
    assert "layers.1" in detail
    assert words in detail


def test_an_adapter_that_does_nothing_proves_nothing(run_of: RunOf, export: Export, tmp_path: Path) -> None:
    """All of it zero: base, trained and exported model agree in everything."""
    run = Path(shutil.copytree(run_of("lora"), tmp_path / "run"))

    def silence(tensors: dict[str, torch.Tensor], name: str) -> None:
        for other in tensors:
            if "lora_B" in other:
                tensors[other].zero_()

    change_tensors(run / "adapter", silence)
    seal_adapter(run)
    for kind in ("adapter", "merged"):
        checks = proven(run, export(run, kind, kind), kind)
        assert {"the adapter acts", "every tensor of the adapter has its module"} <= set(failed(checks))
        assert checks["logits equal base + adapter"][0] is True, "this is what once called it proven"


SPOILED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a weight of a merge": ("merged", flip_a_weight, "logits equal base + adapter"),
    "a weight of an adapter": ("adapter", flip_a_weight, "logits equal base + adapter"),
    "the template": ("merged", forget_the_template, "chat template renders the same"),
    "an end token": ("merged", forget_the_ends, "stops on its end tokens"),
}


@pytest.mark.parametrize(("format_", "spoil", "check"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_export_fails_a_check(
    run_of: RunOf, export: Export, format_: str, spoil: Callable[[Path], None], check: str
) -> None:
    run = run_of("lora")
    out = export(run, format_)
    spoil(out)
    assert check in failed(proven(run, out, format_))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "check"), [(flip_a_weight, "logits equal base + adapter"), (cut, "the proof ran to its end")]
)
def test_what_is_spoiled_between_writing_and_proving_is_not_called_proven(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], check: str
) -> None:
    original = verify.prove

    def spoiled(found: Any, folder: Path, *rest: Any) -> Iterator[Any]:
        spoil(folder)
        return original(found, folder, *rest)

    monkeypatch.setattr(verify, "prove", spoiled)
    events = export_events(run_of("lora"), "merged", tmp_path / "out")
    end = events[-1]
    assert isinstance(end, RunFinished)
    assert checks_of(events)[check] is False
    assert end.result["is_proven"] is False
