"""The training loss: negative log-likelihood summed over trained tokens, whole or in chunks. Imports the ML stack.

The chunked form never holds all logits: for each chunk of trained tokens it computes the logits in fp32, the loss,
and at once the gradient with respect to the hidden states, and keeps only that. The head is frozen but for new rows of it,
whose gradient is summed on the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from qlora_engine.models.new_rows import Table, table_of
from qlora_engine.training.router_loss import RouterLoss

CHUNK_TOKENS = 1024
IGNORED = -100


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of `hidden @ weight.T` against `labels`, where the head's last rows are `new` if there are any."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        new: torch.Tensor | None,
        labels: torch.Tensor,
        chunk_tokens: int,
        softcap: float | None,
        scale: float,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        head = Table(weight, bias, None if new is None else new.to(weight.dtype))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_new = torch.zeros_like(new) if new is not None and ctx.needs_input_grad[3] else None
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            chunk_loss, chunk_gradient, of_chunk = _chunk(
                hidden[rows], head, labels[rows], softcap, scale, wants_gradient=gradient is not None
            )
            total += chunk_loss
            if gradient is not None and chunk_gradient is not None:
                gradient[rows] = chunk_gradient
            if of_new is not None and of_chunk is not None:
                of_new += of_chunk
        ctx.save_for_backward(gradient, of_new)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        gradient, of_new = ctx.saved_tensors
        of_new = None if of_new is None else of_new * grad_output.to(of_new.dtype)
        return gradient * grad_output.to(gradient.dtype), None, None, of_new, None, None, None, None


def chunked_cross_entropy(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    head_bias: torch.Tensor | None = None,
    new_rows: torch.Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    softcap: float | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Summed negative log-likelihood (0-d, fp32) of `labels` (T,) given `hidden` (T, H) and a frozen head (V, H).

    `scale` multiplies the logits (Cohere, Granite), `softcap` bounds them by `c * tanh(logits / c)` (Gemma 2).
    `new_rows` (n, H) stand for the head's last n rows and are trained. Peak memory: 4 bytes x chunk_tokens x V above the
    inputs in fp32, 6 with a head of 16 bits, 8 with a soft cap. The gradient reaches `hidden` and `new_rows` only.
    """
    return _ChunkedCrossEntropy.apply(
        hidden, head_weight, head_bias, new_rows, labels, chunk_tokens, softcap, scale
    )


def full_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood (0-d, fp32) with all logits (B, S, V) in memory, as transformers computes it.

    `labels` (B, S) are not shifted; position t is predicted from t - 1; -100 is not counted.
    """
    shifted = logits[:, :-1].float().reshape(-1, logits.shape[-1])
    return functional.cross_entropy(shifted, labels[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="sum")


def summed_loss(
    model: Any, batch: Any, *, kind: str = "chunked", chunk_tokens: int = CHUNK_TOKENS
) -> torch.Tensor:
    """Summed negative log-likelihood of the trained tokens of `batch` (data.batches.Batch), 0-d fp32.

    `kind`: `chunked` or `full`. Divide by the trained tokens of the whole optimizer step (CORRECTNESS 22).
    """
    causal = causal_of(model)
    if kind == "full":
        return full_cross_entropy(causal(**model_inputs(batch)).logits, batch.labels)
    hidden = _backbone(causal)(**model_inputs(batch)).last_hidden_state
    return _chunked(causal, hidden, batch, chunk_tokens)


def _chunked(causal: Any, hidden: torch.Tensor, batch: Any, chunk_tokens: int) -> torch.Tensor:
    flat_hidden, flat_labels = _predicting(hidden, batch)
    head = table_of(causal.get_output_embeddings())
    softcap, scale = logit_shape(causal.config)
    return chunked_cross_entropy(
        flat_hidden,
        head.weight,
        flat_labels,
        head_bias=head.bias,
        new_rows=head.new,
        chunk_tokens=chunk_tokens,
        softcap=softcap,
        scale=scale,
    )


def loss_with_router(
    model: Any, batch: Any, router: RouterLoss, *, kind: str = "chunked"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what `summed_loss` gives, the routers' loss times the trained tokens of `batch`), from one pass.

    Divided by the trained tokens of the step, the second is the mean over its micro-batches, as the first is.
    """
    causal = causal_of(model)
    inputs = {**model_inputs(batch), "output_router_logits": True}
    if kind == "full":
        found = causal(**inputs)
        summed = full_cross_entropy(found.logits, batch.labels)
    else:
        found = _backbone(causal)(**inputs)
        summed = _chunked(causal, found.last_hidden_state, batch, CHUNK_TOKENS)
    extra = router.of(found.router_logits, batch.attention_mask)
    return summed, extra * batch.trained


def predicting_states(causal: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head sees where a trained token is predicted (T, H), and those tokens (T,)."""
    return _predicting(_backbone(causal)(**model_inputs(batch)).last_hidden_state, batch)


def _predicting(hidden: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if batch.predicting is None:
        return gather_trained(hidden, batch.labels)
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.predicting), batch.targets


def logits_of(causal: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The model's own logits (T, V), fp32, of hidden states (T, H), where `is_chunkable`; without gradients."""
    with torch.no_grad():
        head = table_of(causal.get_output_embeddings())
        return _shaped_logits(hidden, head, *logit_shape(causal.config))


def gather_trained(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (T, H) that predict a trained token, and those tokens (T,), from (B, S, H) and (B, S)."""
    targets = labels[:, 1:]
    where = targets != IGNORED
    return hidden[:, :-1][where], targets[where]


def row_losses(model: Any, batch: Any) -> list[tuple[float, int]]:
    """For each row of `batch`: (summed negative log-likelihood, trained tokens). Not for packed rows."""
    losses = []
    with torch.no_grad():
        for row in range(batch.input_ids.shape[0]):
            one = batch.rows(row, row + 1)
            losses.append((float(summed_loss(model, one)), one.trained))
    return losses


def token_losses(model: Any, batch: Any, *, kind: str = "chunked") -> tuple[float, int]:
    """(summed negative log-likelihood, trained tokens) of `batch`, without gradients."""
    with torch.no_grad():
        return float(summed_loss(model, batch, kind=kind)), batch.trained


def causal_of(model: Any) -> Any:
    """The causal language model inside a PEFT wrapper, adapters still in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logit_shape(config: Any) -> tuple[float | None, float]:
    """What a family does to its logits besides the head's product: (soft cap or None, scale)."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcap = getattr(text, "final_logit_softcapping", None)
    scale = getattr(text, "logit_scale", None)
    divisor = getattr(text, "logits_scaling", None)
    return softcap, float(scale) if scale else (1.0 / divisor if divisor else 1.0)


def is_chunkable(model: Any, batch: Any) -> bool:
    """True when head(hidden) reproduces the model's own logits on `batch`: no family-specific step is missing.

    Without dropout, which would make two passes differ and draw random numbers.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            full = float(summed_loss(model, batch, kind="full"))
            chunked = float(summed_loss(model, batch, kind="chunked"))
    finally:
        model.train(was_training)
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2
    return abs(full - chunked) <= tolerance * max(1.0, abs(full))


def _backbone(causal: Any) -> Any:
    backbone = getattr(causal, causal.base_model_prefix, None)
    if backbone is None:  # llama4's prefix is that of the model around it
        backbone = getattr(causal, "model", None)
    if backbone is None or backbone is causal:
        raise ValueError(f"{type(causal).__name__} has no backbone named {causal.base_model_prefix!r}")
    return backbone


def model_inputs(batch: Any) -> dict[str, Any]:
    """What a causal language model is called with."""
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }


def _shaped_logits(hidden: torch.Tensor, head: Table, softcap: float | None, scale: float) -> torch.Tensor:
    logits = functional.linear(hidden, head.weight, head.bias)
    if head.new is not None:
        bias = None if head.bias is None else head.bias[head.old :]
        logits[:, head.old :] = functional.linear(hidden, head.new.to(hidden.dtype), bias)
    logits = logits.float()
    if scale != 1.0:
        logits *= scale
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _chunk(
    hidden: torch.Tensor,
    head: Table,
    labels: torch.Tensor,
    softcap: float | None,
    scale: float,
    *,
    wants_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Summed loss of one chunk and its gradient with respect to `hidden` and to the head's new rows, in `hidden`'s type."""
    logits = _shaped_logits(hidden, head, softcap, scale)
    index = labels.unsqueeze(-1)
    expected = logits.gather(-1, index)
    slope = None
    if wants_gradient and softcap is not None:
        slope = logits.div(softcap).square_().neg_().add_(1.0)
    highest = logits.amax(-1, keepdim=True)
    powers = logits.sub_(highest).exp_()  # the logits' own memory: they are the largest tensor of a step
    sums = powers.sum(-1, keepdim=True)
    loss = sums.log().add_(highest).sub_(expected).sum()
    if not wants_gradient:
        return loss, None, None
    gradient = powers.div_(sums)
    gradient.scatter_add_(-1, index, gradient.new_full(index.shape, -1.0))
    if slope is not None:
        gradient *= slope
        del slope
    if scale != 1.0:
        gradient *= scale
    gradient = gradient.to(head.weight.dtype)
    if head.new is None:
        return loss, (gradient @ head.weight).to(hidden.dtype), None
    of_old, of_new = gradient.tensor_split([head.old], dim=1)
    return loss, (of_old @ head.weight[: head.old] + of_new @ head.new).to(hidden.dtype), of_new.T @ hidden
