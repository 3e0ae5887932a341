"""Every faster way computes what the plain modules compute: losses and gradients, alone and together, on six architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from qlora_engine.config import (
    LoraSettings,
    TrainingConfig,
    TrainingSettings,
)
from qlora_engine.control import Control
from qlora_engine.data import batches
from qlora_engine.memory import estimate
from qlora_engine.models import spec
from qlora_engine.training import steps
from qlora_engine.training.fast import elementwise, install, kept_weights, linears, segments
from tests.support.fast_models import LENGTHS, furthest, load, parts_of, rows, step
from tests.support.step_counts import Counts, StepCounts
from tests.support.tiny import make_tiny

ARCHITECTURES = ("llama", "qwen3", "mistral", "gpt_neox", "gemma3_text", "olmo2")
SWITCHES = {"join_rows": True, "fused_adapters": True, "fused_elementwise": True, "kept_weights_gib": 4.0}
OFF = TrainingSettings(join_rows=False, fused_adapters=False, fused_elementwise=False, kept_weights_gib=0.0)
ON = replace(OFF, **SWITCHES)
ALLOWED = 1e-4


@pytest.fixture(autouse=True)
def rotary_functions_stay() -> Iterator[None]:
    """The function of a model's source file is replaced for the process; a test leaves it as it was."""
    made: list[elementwise.Installed] = []
    original = elementwise.Installed.__init__

    def noting(self: elementwise.Installed, model: Any) -> None:
        made.append(self)
        original(self, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elementwise.Installed, "__init__", noting)
        yield
    for one in made:
        for module, own in one.rotary_modules:
            setattr(module, elementwise.ROTARY, own)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_switch_and_all_of_them_leave_losses_and_gradients_alone(
    tmp_path: Path, architecture: str
) -> None:
    folder = make_tiny(architecture, tmp_path / "model")
    wanted_loss, wanted = step(load(folder), install.FastPaths())
    choices = [replace(OFF, **{name: value}) for name, value in SWITCHES.items()]
    for settings in (*choices, ON):
        model = load(folder, is_checkpointed=settings is ON)
        fast = install.install(model, settings, rows(), device="cpu", spare_bytes=1 << 40)
        assert fast.why_not == {}
        assert fast.joins_rows == settings.join_rows
        assert fast.fuses_adapters == settings.fused_adapters
        assert bool(fast.kept_bytes) == bool(settings.kept_weights_gib)
        found_loss, found = step(model, fast)
        assert found_loss == pytest.approx(wanted_loss, rel=ALLOWED)
        assert furthest(found, wanted) < ALLOWED


def test_what_is_kept_has_the_bits_that_would_be_computed_again(two_layers: Path) -> None:
    results = []
    for budget in (0.0, 4.0):
        model = load(two_layers)
        settings = replace(ON, kept_weights_gib=budget)
        results.append(
            step(model, install.install(model, settings, rows(), device="cpu", spare_bytes=1 << 40))
        )
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_kept_weights_stay_within_what_is_allowed_and_free(two_layers: Path) -> None:
    model = load(two_layers)
    needed = kept_weights.needed_bytes(model)
    assert needed == sum(
        m.in_features * m.out_features * 4 for m in model.modules() if isinstance(m, Linear4bit)
    )
    facts = spec.facts_of_folder(two_layers)
    assert estimate.kept_weights_bytes(facts, TrainingConfig(), "cpu") == needed
    assert estimate.kept_weights_bytes(facts, TrainingConfig(), "cuda") == 0
    none = TrainingConfig(training=replace(ON, kept_weights_gib=0.0))
    assert estimate.kept_weights_bytes(facts, none, "cpu") == 0
    for spare, kept in ((needed - 1, 0), (needed, needed)):
        fast = install.install(load(two_layers), ON, rows(), device="cpu", spare_bytes=spare)
        assert fast.kept_bytes == kept
        assert ("kept_weights_gib" in fast.why_not) == (kept == 0)


@pytest.mark.parametrize("lora", [LoraSettings(rank=4, dropout=0.3), LoraSettings(rank=4, dora=True)])
def test_what_is_not_plain_lora_keeps_its_own_forward(two_layers: Path, lora: LoraSettings) -> None:
    model = load(two_layers, lora)
    fast = install.install(model, replace(OFF, fused_adapters=True), rows(), device="cpu", spare_bytes=0)
    assert not fast.fuses_adapters
    assert "fused_adapters" in fast.why_not


def test_layers_of_one_input_are_computed_together(two_layers: Path) -> None:
    model = load(two_layers)
    fast = install.install(model, ON, rows(), device="cpu", spare_bytes=0)
    assert [len(site.group.sites) for site in fast.sites] == [3, 3, 3, 1, 2, 2, 1] * 2


def test_switching_the_adapters_off_shows_the_base_again(two_layers: Path) -> None:
    plain, model = load(two_layers), load(two_layers)
    install.install(model, ON, rows(), device="cpu", spare_bytes=1 << 40)
    ids = torch.tensor([rows()[0].input_ids])
    for one in (plain, model):
        one.eval()
    with torch.no_grad(), plain.disable_adapter(), model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, _base_logits(plain, ids), atol=1e-3)


def _base_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with model.disable_adapter():
        return model(ids).logits


def test_generation_with_padding_is_untouched(two_layers: Path) -> None:
    """Outside of a step attention is the plain one, with its mask."""
    plain, model = load(two_layers), load(two_layers)
    install.install(model, ON, rows(), device="cpu", spare_bytes=1 << 40)
    ids = torch.tensor([rows()[0].input_ids[:12], [0] * 5 + rows()[2].input_ids[:7]])
    mask = (torch.arange(12) >= torch.tensor([[0], [5]])).long()
    found = [
        one.eval().generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for one in (model, plain)
    ]  # fmt: skip
    assert torch.equal(found[0], found[1])


def test_a_model_that_lets_rows_see_each_other_gets_padded_ones(
    two_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that carries a state along would: here every token also gets what came before it."""
    model = load(two_layers)
    embedding = model.get_base_model().get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: output + output.cumsum(1).roll(1, 1) * 0.1)
    fast = install.install(model, ON, rows(), device="cpu", spare_bytes=0)
    assert not fast.joins_rows
    assert "logits differ" in fast.why_not["join_rows"]
    assert [len(row.input_ids) for row in fast.arranged(rows())] == sorted(LENGTHS)
    assert fast.batch(rows(), 0).attention_mask is not None


def test_attention_that_drops_weights_gets_padded_rows(tmp_path: Path) -> None:
    """gpt2 does by default, in training alone, where rows end to end then ended the run."""
    model = load(make_tiny("gpt2", tmp_path / "gpt2", n_layer=1, n_embd=64, n_head=4, n_positions=256))
    before = torch.get_rng_state()
    fast = install.install(model, TrainingSettings(), rows(), device="cpu", spare_bytes=1 << 30)
    assert torch.equal(torch.get_rng_state(), before)
    assert "dropout" in fast.why_not["join_rows"]
    step(model, fast)


def test_a_wrong_fast_path_is_found_out(two_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = linears._add_product
    monkeypatch.setattr(
        linears, "_add_product", lambda y, inner, up, scale: original(y, inner, up, 1.1 * scale)
    )
    fast = install.install(load(two_layers), ON, rows(), device="cpu", spare_bytes=1 << 40)
    assert not fast.fuses_adapters
    assert "logits differ" in fast.why_not["fused_adapters"]


def test_a_model_that_follows_is_tried_once_and_another_change_by_change(two_layers: Path) -> None:
    """Plain, to see what shares an input, as in training, and with everything on: 6 short passes, which a start waits for."""
    passes = []
    for spoils in (False, True):
        model, seen = load(two_layers), []
        model.get_base_model().register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        if spoils:
            embedding = model.get_base_model().get_input_embeddings()
            embedding.register_forward_hook(lambda module, inputs, output: output + output.cumsum(1) * 0.1)
        fast = install.install(model, ON, rows((50, 20, 30)), device="cpu", spare_bytes=1 << 40)
        assert fast.joins_rows != spoils
        passes.append(len(seen))
    assert passes[0] == 6
    assert passes[1] > 12


def test_the_mode_of_every_module_is_switched_four_times(
    two_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switch takes as long as a short pass: for the whole trial, and for the pass that is made as in training."""
    model, switched = load(two_layers), []
    kind = type(model.get_base_model())
    original = kind.train
    monkeypatch.setattr(kind, "train", lambda self, mode=True: switched.append(mode) or original(self, mode))
    install.install(model, ON, rows((50, 20, 30)), device="cpu", spare_bytes=1 << 40)
    assert switched == [False, True, False, True]
    assert all(module.training for module in model.modules())


def test_windows_and_rows_of_any_lengths_attend_as_with_a_mask() -> None:
    generator = torch.Generator().manual_seed(1)
    for lengths, window in (((9,), None), ((3, 17, 4, 17, 1), None), ((40, 38, 7), 5), ((6, 6), 100)):
        total = sum(lengths)
        q = torch.randn(1, 4, total, 16, generator=generator, requires_grad=True)
        k, v = (torch.randn(1, 2, total, 16, generator=generator, requires_grad=True) for _ in "kv")
        place = segments.layout(lengths, "cpu")
        row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        distance = torch.arange(total)[:, None] - torch.arange(total)[None, :]
        is_seen = (row[:, None] == row[None, :]) & (distance >= 0) & (distance < (window or total))
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=is_seen, enable_gqa=True)
        found = segments._SegmentAttention.apply(q, k, v, place, None, window)
        torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-4, atol=1e-5)
        upstream = torch.randn(found.shape, generator=generator)
        for a, b in zip(
            torch.autograd.grad(found, (q, k, v), upstream),
            torch.autograd.grad(wanted.transpose(1, 2), (q, k, v), upstream), strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------ what needs no clock


def counted(run: Callable[[], Any]) -> Counts:
    run()
    with StepCounts() as counter:
        run()
    return counter.counts()


@pytest.mark.parametrize("lengths", [((20, 20), (35, 5)), ((40,), (38,), (9,), (8,), (3,))])
def test_a_step_dispatches_reads_and_allocates_little(
    two_layers: Path, lengths: tuple[tuple[int, ...], ...]
) -> None:
    """A whole step against one of PEFT's own modules on the same rows: packed ones under a mask, as the best of plain
    loops do, and padded ones."""
    made = [
        replace(row, lengths=some) for row, some in zip(rows(tuple(map(sum, lengths))), lengths, strict=True)
    ]
    plain_model, model = load(two_layers), load(two_layers)
    optimizer = torch.optim.AdamW(
        [p for p in plain_model.parameters() if p.requires_grad], lr=0.0, fused=True
    )

    def plain_step() -> None:
        batch = batches.collate(made, 0)
        out = plain_model(
            input_ids=batch.input_ids, labels=batch.labels, attention_mask=batch.attention_mask,
            position_ids=batch.position_ids, use_cache=False,
        )  # fmt: skip
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(plain_model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()

    plain = counted(plain_step)
    fast = install.install(model, ON, rows(), device="cpu", spare_bytes=1 << 40)
    parts = parts_of(model, fast)
    ours = counted(lambda: steps.optimizer_step(parts, made, len(made), Control()))
    assert ours.operators <= 0.7 * plain.operators, (ours, plain)
    assert ours.allocated_bytes <= 0.8 * plain.allocated_bytes
    assert ours.dequantizations == 0
    assert plain.dequantizations >= 2 * 7 * 2 - 3  # forward and backward of each layer
    assert ours.host_reads == 0, (
        ours.read_by
    )  # but for the one pair of numbers at its end, loss and gradient norm


def test_a_step_waits_for_the_device_once(two_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many micro-batches: for its loss and gradient norm, on which hangs whether the weights may be touched."""
    read: list[str] = []
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        original = getattr(torch.Tensor, name)

        def reading(
            tensor: Any, *rest: Any, name: str = name, original: Any = original, **options: Any
        ) -> Any:
            if tensor.is_floating_point():  # numbers of the data were never on the device
                read.append(name)
            return original(tensor, *rest, **options)

        monkeypatch.setattr(torch.Tensor, name, reading)
    model = load(two_layers)
    fast = install.install(model, ON, rows(), device="cpu", spare_bytes=1 << 40)
    parts = parts_of(model, fast)
    parts.optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True
    )
    read.clear()
    steps.optimizer_step(parts, rows()[:3], 1, Control())
    assert read == ["tolist"]


def test_without_kept_weights_each_is_dequantized_once_a_pass(two_layers: Path) -> None:
    model = load(two_layers)
    fast = install.install(model, replace(ON, kept_weights_gib=0.0), rows(), device="cpu", spare_bytes=0)
    counts = counted(lambda: step(model, fast, micro_batch=6))
    assert (
        counts.dequantizations == 2 * 7 * 2 - 3
    )  # nothing is before the first layer whose gradient were wanted


def test_kept_weights_can_be_given_up(two_layers: Path) -> None:
    for settings in (ON, replace(OFF, kept_weights_gib=4.0)):
        model = load(two_layers)
        fast = install.install(model, settings, rows(), device="cpu", spare_bytes=1 << 40)
        wanted_loss, wanted = step(model, fast)
        assert fast.release_kept(model)
        assert not fast.kept_bytes
        assert not fast.release_kept(model)
        with StepCounts() as counter:
            found_loss, found = step(model, fast)
        assert counter.counts().dequantizations > 0
        assert found_loss == wanted_loss
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_wrong_gradient_is_found_out_and_what_is_right_stays(
    two_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits alone would not show it."""
    original = linears.Site.weight
    monkeypatch.setattr(linears.Site, "weight", lambda site: original(site) * 1.1)
    fast = install.install(load(two_layers), ON, rows(), device="cpu", spare_bytes=1 << 40)
    assert not fast.fuses_adapters
    assert "gradients differ" in fast.why_not["fused_adapters"]
    assert fast.kept_bytes


def test_settings_are_told_apart(two_layers: Path) -> None:
    model = load(two_layers)
    fast = install.install(model, OFF, rows(), device="cpu", spare_bytes=1 << 40)
    assert fast.to_json() == install.FastPaths().to_json()
    assert SimpleNamespace(**fast.to_json()).kept_bytes == 0


def test_a_replaced_rotary_function_is_the_models_own_in_other_types() -> None:
    """It stays for the process, and so meets a later model that computes in 16 bits with cosines in 32."""
    from transformers.models.olmo2 import modeling_olmo2

    own = elementwise._ORIGINALS.get(modeling_olmo2.__name__) or modeling_olmo2.apply_rotary_pos_emb
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 8, generator=generator).bfloat16() for heads in (4, 2))
    angles = torch.randn(1, 5, 4, generator=generator).repeat(1, 1, 2)
    for found, wanted in zip(
        elementwise._rotate_in_fp32(own, q, k, angles.cos(), angles.sin()),
        own(q, k, angles.cos(), angles.sin()),
        strict=True,
    ):
        assert found.dtype == wanted.dtype == torch.bfloat16
        assert torch.equal(found, wanted)
