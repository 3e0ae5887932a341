"""Embeddings that are enlarged on request: new rows are learned, saved with the adapter, merged, and resumed bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_engine import adapters, config_io
from qlora_engine.client import InlineEngine
from qlora_engine.config import LoraSettings, ModelSettings, QuantizationSettings, TrainingConfig
from qlora_engine.control import Control
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.device import plan_device
from qlora_engine.errors import EngineError
from qlora_engine.evaluate.origin import find_origin
from qlora_engine.evaluate.session import load_chat_model
from qlora_engine.events import EvaluationFinished, ModelLoaded, Noticed, StepFinished
from qlora_engine.export import source, verify, verify_child
from qlora_engine.jobs import ExportJob, TrainJob
from qlora_engine.models import catalog, loading, names, new_rows, resizing
from qlora_engine.models.tokenizer_file import load_tokenizer
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import recipe
from qlora_engine.training.guard import AdapterGuard
from tests.engine.evaluate.test_chat import returned
from tests.support import tiny_runs
from tests.support.run_folders import seal_adapter
from tests.support.tiny import make_tiny, make_tiny_seeing, with_new_tokens, write_rows

NEW = 6
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
    "opt": {},
    "gemma3_text": {"layer_types": ["full_attention"]},
    "gemma3": {},
    "mistral3": {},
}
"""Tied, with a head of its own, in a decoder within the model, embeddings that are scaled, and both ways in one that also sees."""
SEEING = ("gemma3", "mistral3")
MakeRun = Callable[..., TrainingConfig]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Settings of a run on a tiny model whose rows are full of tokens that it has no embeddings for."""

    def make(kind: str, **changes: Any) -> TrainingConfig:
        folder = tmp_path / kind
        if not folder.exists():
            is_seeing = kind in SEEING
            made = (
                make_tiny_seeing(kind, folder)
                if is_seeing
                else make_tiny(kind, folder, num_hidden_layers=1, **KINDS[kind])
            )
            with_new_tokens(made, NEW)
        rows = [
            {"instruction": "Say it", "input": "", "output": f"zork{n % 4} fox zork{n % 3}"}
            for n in range(20)
        ]
        data = write_rows(tmp_path / "new.jsonl", rows)
        values: dict[str, Any] = {
            "model__resize_embeddings": True,
            "training__early_stopping": None,
            **changes,
        }
        return tiny_runs.tiny_config(folder, data, tmp_path / "runs", **values)

    return make


def export(run: Path, kind: str, out: Path, **options: Any) -> Path:
    list(InlineEngine().run(ExportJob(str(run), kind, str(out), {"verify": False, **options})))
    return out


def checks(run: Path, out: Path, kind: str) -> dict[str, tuple[bool | None, str]]:
    """Name -> (whether it passed, what was found) of the proof of a written export."""
    details = json.loads((out / "proof.json").read_text())["details"]
    found: dict[str, tuple[bool | None, str]] = {}

    def tell(name: str, passed: bool | None, detail: str, **numbers: Any) -> None:
        found[name] = passed, detail

    with torch.no_grad():
        verify_child.check(verify.request_of(source.open_source(str(run)), out, kind, details), tell)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_are_learned_and_every_form_of_them_is_the_same_model(
    make_run: MakeRun, kind: str, tmp_path: Path
) -> None:
    """`model.resize_embeddings`: the same run without it is refused. The adapter is loaded as its card says."""
    config = make_run(
        kind, training__max_steps=40, training__learning_rate=0.02, training__eval_every_steps=40
    )
    events = tiny_runs.train(config)
    before, after = tiny_runs.of(events, EvaluationFinished)
    assert after.loss < before.loss - 0.5
    run, base = tiny_runs.run_dir(events), Path(config.model.name)
    merged = export(run, "merged", tmp_path / "merged", dtype="fp32")
    stored = json.loads((merged / "config.json").read_text())
    rows = stored.get("text_config", stored)["vocab_size"]
    assert rows == len(AutoTokenizer.from_pretrained(merged)) >= 320 + NEW  # the class of qwen2 adds one
    kind_of_model = names.plain_class(base)
    plain = kind_of_model.from_pretrained(base, dtype=torch.float32)
    plain.resize_token_embeddings(rows)
    tuned = PeftModel.from_pretrained(plain, run / "adapter").eval()
    again = kind_of_model.from_pretrained(merged, dtype=torch.float32).eval()
    prompt = torch.tensor([[7, 320, 9, 325, 322, 40]])
    with torch.no_grad():
        wanted, found = tuned(input_ids=prompt).logits, again(input_ids=prompt).logits
    assert found.shape[-1] == rows
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    said = export(run, "adapter", tmp_path / "adapter").joinpath("README.md").read_text()
    assert f"resize_token_embeddings({rows})" in said
    with pytest.raises(EngineError, match=r"embeddings for 320") as refused:
        tiny_runs.train(make_run(kind, model__resize_embeddings=False))
    assert "model.resize_embeddings" in str(refused.value.hint)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(make_run: MakeRun, kind: str) -> None:
    straight = tiny_runs.finished_run(make_run(kind, output__name="straight", training__max_steps=4))
    control, seen = Control(), []
    config = make_run(kind, output__name="stopped", training__max_steps=4)
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        seen.append(event)
        if isinstance(event, StepFinished) and event.step == 2:
            control.request_stop()
    stopped = tiny_runs.run_dir(seen)
    tiny_runs.resume(stopped)
    wanted, found = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (straight, stopped))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert sum("trainable_tokens_delta" in name for name in wanted) == (1 if kind == "llama" else 2)


def test_chat_hears_the_new_rows_of_checkpoints_and_adapters_and_none_beside_them(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = tiny_runs.finished_run(make_run("qwen2", training__max_steps=2, output__name="first"))
    other = tiny_runs.finished_run(make_run("qwen2", training__max_steps=3, output__name="second"))
    none = tmp_path / "none.jsonl"
    write_rows(none, [{"instruction": f"Say {n}", "input": "", "output": f"Fox {n}"} for n in range(20)])
    without = tiny_runs.finished_run(
        make_run("qwen2", model__resize_embeddings=False, data__path=str(none), output__name="plain", training__max_steps=2)
    )  # fmt: skip
    prompt = torch.tensor([[7, 320, 9, 325]])

    def logits(chat: Any, side: str) -> torch.Tensor:
        with torch.no_grad(), chat.speaking(side) as model:
            return model(prompt).logits.clone()

    def opened(place: Path) -> Any:
        return returned(load_chat_model(find_origin(str(place), {"device": "cpu"}), Control()))

    alone = {name: logits(opened(place), "tuned") for name, place in (("second", other), ("first", run))}
    chat = opened(without)
    for place in (run, other):
        chat.add_run(RunFolder(place))
    for side in ("first", "plain", "second", "tuned", "base", "first"):
        if side in alone:
            assert torch.equal(logits(chat, side), alone[side]), side
    turned = opened(other)
    turned.add_run(RunFolder(without))
    assert torch.equal(logits(turned, "tuned"), alone["second"])
    assert torch.equal(logits(turned, "plain")[..., :320], logits(chat, "tuned")[..., :320])
    base = logits(chat, "base")
    assert torch.equal(base[..., 320:], base[..., 320:321].expand(-1, -1, base.shape[-1] - 320)), (
        "each the mean of the old rows"
    )
    for file in (run / "adapter").iterdir():
        file.unlink()
    (run / "adapter").rmdir()
    assert torch.equal(logits(opened(run), "tuned"), alone["first"]), "its last checkpoint"


@pytest.mark.parametrize("kind", ["merged", "gguf", "ollama"])
def test_the_proof_of_a_merge_reads_new_tokens(make_run: MakeRun, kind: str, tmp_path: Path) -> None:
    run = tiny_runs.finished_run(make_run("llama", training__learning_rate=0.02))
    found = checks(run, export(run, kind, tmp_path / kind), kind)
    assert [name for name, (passed, _) in found.items() if passed is False] == []


def test_input_rows_that_are_not_what_was_trained_fail_the_proof(make_run: MakeRun, tmp_path: Path) -> None:
    """Without a prompt of new tokens nothing would read them."""
    run = tiny_runs.finished_run(make_run("qwen2", training__learning_rate=0.02))
    out = export(run, "merged", tmp_path / "merged", dtype="fp32")
    (file,) = out.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][320:] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    assert checks(run, out, "merged")["logits equal base + adapter"][0] is False


def test_new_rows_that_are_zero_or_gone_fail_the_proof_by_name(make_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_runs.finished_run(make_run("qwen2", training__max_steps=2))
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(one for one in tensors if "lm_head" in one)
    tensors[name].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    seal_adapter(run)
    found = checks(run, export(run, "adapter", tmp_path / "zero"), "adapter")
    passed, said = found["every tensor of the adapter has its module"]
    assert passed is False
    assert said == f"{name} is all zero: nothing was trained there (1 such)"
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    seal_adapter(run)
    out = export(run, "adapter", tmp_path / "gone")
    with pytest.raises(KeyError, match=name):  # of PEFT; the last line of the child is what the proof says
        checks(run, out, "adapter")


def test_a_lora_file_of_llama_cpp_has_no_place_for_them(make_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_runs.finished_run(make_run("llama", training__max_steps=2))
    events = list(InlineEngine().run(ExportJob(str(run), "gguf-lora", str(tmp_path / "out"), {})))
    assert "enlarged the embeddings to 326 rows" in str(events[-1])


def test_each_new_row_is_the_mean_and_a_tied_head_the_same_tensor(tmp_path: Path) -> None:
    for kind in ("llama", "qwen2"):
        folder = make_tiny(kind, tmp_path / kind, num_hidden_layers=1, **KINDS[kind])
        plan = plan_device(ModelSettings(device="cpu"))
        old = loading.load_quantized(folder, QuantizationSettings(), plan).model
        model = loading.load_quantized(folder, QuantizationSettings(), plan, rows=330).model
        inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert (head.weight is inputs.weight) == (kind == "llama")
        assert (inputs.num_embeddings, head.out_features, model.config.vocab_size) == (330, 330, 330)
        for table, before in ((inputs, old.get_input_embeddings()), (head, old.get_output_embeddings())):
            assert torch.equal(table.weight[:320], before.weight)
            torch.testing.assert_close(table.weight[320:], before.weight.mean(0).expand(10, -1))


def test_what_cannot_be_enlarged_is_refused_before_the_load_with_its_reason(tmp_path: Path) -> None:
    biased = catalog.facts(str(make_tiny("phi", tmp_path / "phi")))
    plain = catalog.facts(str(make_tiny("llama", tmp_path / "llama")))
    gemma3n = {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 256}
    layered = replace(plain, config={"text_config": gemma3n})
    without = replace(plain, config={"text_config": {**gemma3n, "hidden_size_per_layer_input": 0}})
    assert resizing.grown(without, 400).new_rows == 80
    for facts, words in (
        (biased, "bias for every entry"),
        (layered, "more tables than one"),
    ):
        with pytest.raises(EngineError, match=words):
            resizing.grown(facts, 400)
        assert resizing.grown(facts, 320) is facts, "with nothing to add there is nothing to refuse"


def test_the_refusal_comes_before_the_load(tmp_path: Path) -> None:
    folder = with_new_tokens(make_tiny("phi", tmp_path / "phi"), NEW)
    config = tiny_runs.tiny_config(
        folder, tiny_runs.data_file(tmp_path), tmp_path / "runs", model__resize_embeddings=True
    )
    seen = []
    with pytest.raises(EngineError, match="bias for every entry"):
        seen.extend(recipe.train(TrainJob(config_io.to_dict(config)), Control()))
    assert not tiny_runs.of(seen, ModelLoaded)


def test_a_tokenizer_that_fits_changes_nothing_and_that_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    folder = with_new_tokens(make_tiny("llama", tmp_path / "fits", num_hidden_layers=1), 0)
    config = tiny_runs.tiny_config(
        folder, tiny_runs.data_file(tmp_path), tmp_path / "runs", model__resize_embeddings=True, training__max_steps=1
    )  # fmt: skip
    events = tiny_runs.train(config)
    (said,) = [e for e in tiny_runs.of(events, Noticed) if e.code == "model.resized"]
    assert "stay as they are" in said.message
    assert "token" not in " ".join(
        load_file(tiny_runs.run_dir(events) / "adapter" / "adapter_model.safetensors")
    )


def test_files_say_how_many_rows_the_tokenizer_needs(tmp_path: Path) -> None:
    folder = with_new_tokens(make_tiny("llama", tmp_path / "llama"), NEW)
    assert resizing.rows_needed_by(folder) == 320 + NEW
    settings = ModelSettings(name=str(folder), resize_embeddings=True)
    facts = catalog.facts_for(settings)
    assert (facts.vocab_size, facts.new_rows) == (320 + NEW, NEW)
    assert catalog.facts_for(replace(settings, resize_embeddings=False)).new_rows == 0
    (folder / "tokenizer.json").write_text("{")
    (folder / "tokenizer_config.json").unlink()
    assert resizing.rows_needed_by(folder) is None


@pytest.mark.parametrize("form", ["text", "object", "listed already"])
def test_a_token_that_loading_adds_because_it_is_named_has_its_row(tmp_path: Path, form: str) -> None:
    folder = make_tiny("llama", tmp_path / "llama", num_hidden_layers=1)
    file = folder / "tokenizer_config.json"
    stored = json.loads(file.read_text())
    known = resizing.rows_needed_by(folder)
    assert known is not None
    added = {"__type": "AddedToken", "content": "<new-pad>", "special": True, "normalized": False}
    name = {"text": "<new-pad>", "object": added, "listed already": stored["eos_token"]}[form]
    file.write_text(json.dumps({**stored, "pad_token": name}))
    loaded = load_tokenizer(folder)
    assert resizing.rows_needed_by(folder) == known + (form != "listed already")
    assert resizing.rows_needed(loaded) == resizing.rows_needed_by(folder)


def test_a_new_row_whose_token_was_read_must_move(tmp_path: Path) -> None:
    folder = make_tiny("qwen2", tmp_path / "qwen2", num_hidden_layers=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    new_rows.grow(model, 324)
    tuned, _ = adapters.attach(model, LoraSettings(), new=4)
    guard = AdapterGuard(tuned)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name or "lm_head" in name:
            parameter.data += 1
    embedding = next(p for n, p in tuned.named_parameters() if "embed_tokens" in n and p.requires_grad)
    embedding.data[1] += 1
    row = TokenRow(
        [7, 320, 321, 8, 323], [False, False, False, True, False], 0
    )  # nothing trained comes after 323
    told = {e.code: e.message for e in guard.after(0.1, True, lambda: [row]) if isinstance(e, Noticed)}
    assert told.keys() == {"embeddings.unmoved", "embeddings.waiting"}
    assert told["embeddings.unmoved"].startswith("1 new rows")
    assert told["embeddings.unmoved"].endswith(": 320")
    assert told["embeddings.waiting"].startswith("2 of 4")
