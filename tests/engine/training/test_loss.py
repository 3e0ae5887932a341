"""The chunked loss equals the whole one, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from qlora_engine.data.batches import Batch
from qlora_engine.training import loss
from tests.support.step_counts import StepCounts

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gemma2 (soft cap)": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)
    ),
    "cohere (scale)": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25, pad_token_id=0)),
}


def make_batch(rows: int = 3, length: int = 11) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, :4] = -100
    return Batch(ids, labels, None, None, ids.numel())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_chunked_equals_full_in_value_and_gradient(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().requires_grad_(False)
    adapted = model.model.layers[0].mlp.up_proj.weight
    adapted.data = adapted.data * 20
    adapted.requires_grad_(True)
    batch = make_batch()
    results = {}
    for kind in ("full", "chunked"):
        total = loss.summed_loss(model, batch, kind=kind, chunk_tokens=5)
        (gradient,) = torch.autograd.grad(total, adapted)
        results[kind] = (total.detach(), gradient)
    torch.testing.assert_close(results["chunked"][0], results["full"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results["chunked"][1], results["full"][1], rtol=1e-4, atol=1e-6)
    assert results["full"][1].abs().max() > 0


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    chunk=st.integers(1, 50),
    softcap=st.none() | st.floats(1.0, 30.0),
    has_bias=st.booleans(),
    new=st.integers(0, 6),
)
def test_the_chunk_size_changes_nothing(
    tokens: int, chunk: int, softcap: float | None, has_bias: bool, new: int
) -> None:
    """Nor do rows of the head that are trained: theirs is the gradient that the whole head would have there."""
    torch.manual_seed(tokens)
    hidden = torch.randn(tokens, 16, dtype=torch.float64, requires_grad=True)
    weight, bias = (
        torch.randn(23, 16, dtype=torch.float64),
        torch.randn(23, dtype=torch.float64) if has_bias else None,
    )
    rows = torch.randn(new, 16, dtype=torch.float64, requires_grad=True) if new else None
    labels = torch.randint(0, 23, (tokens,))
    chunked = loss.chunked_cross_entropy(
        hidden, weight, labels, head_bias=bias, new_rows=rows, chunk_tokens=chunk, softcap=softcap, scale=0.7
    )
    head = weight if rows is None else torch.cat([weight[: 23 - new], rows])
    logits = torch.nn.functional.linear(hidden, head, bias) * 0.7
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    whole = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(chunked.double(), whole, rtol=1e-5, atol=1e-5)
    trained = [hidden] if rows is None else [hidden, rows]
    for got, expected in zip(
        torch.autograd.grad(chunked, trained), torch.autograd.grad(whole, trained), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_untrained_tokens_do_not_count() -> None:
    torch.manual_seed(0)
    model = FAMILIES["llama"]()
    batch = make_batch()
    before = float(loss.summed_loss(model, batch).detach())
    batch.input_ids[:, -1] = 5  # nothing after it is predicted from it, and it is not a label here
    batch.labels[:, -1] = -100
    fewer = float(loss.summed_loss(model, batch).detach())
    assert fewer < before
    assert batch.trained == 3 * 6


def test_no_logits_of_all_tokens_are_ever_made() -> None:
    made: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (97,):
                made.append(out.numel() // 97)
            return out

    hidden, weight, labels = (
        torch.randn(64, 16, requires_grad=True),
        torch.randn(97, 16),
        torch.randint(0, 97, (64,)),
    )
    with Watch():
        loss.chunked_cross_entropy(hidden, weight, labels, chunk_tokens=8).backward()
    assert made
    assert max(made) == 8


def test_a_head_that_does_something_else_is_noticed() -> None:
    torch.manual_seed(0)
    model = FAMILIES["llama"]()
    batch = make_batch()
    assert loss.is_chunkable(model, batch)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.5)
    assert not loss.is_chunkable(model, batch)


def test_dropout_does_not_make_the_head_look_different() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.5)).train()
    before = torch.get_rng_state()
    assert loss.is_chunkable(model, make_batch())
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_no_second_tensor_of_logits_is_made() -> None:
    """They are the largest tensor of a step."""
    hidden, head = torch.randn(64, 8, requires_grad=True), torch.randn(1024, 8)
    with StepCounts() as counted:
        loss.chunked_cross_entropy(hidden, head, torch.arange(64)).backward()
    assert counted.counts().allocated_bytes < 1.5 * 64 * 1024 * 4
