"""What a step holds besides what stays: activations, temporaries and gradients at its peak. Pure arithmetic, no torch.

A decoder block is followed operation by operation, as transformers, PEFT's LoRA layers and bitsandbytes' 4-bit matmul
run it: what autograd keeps, what each operation allocates, when it is freed. Nothing is fitted; the rehearsal, which runs
the real classes, checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qlora_engine.config import TrainingConfig
from qlora_engine.memory import generic, static
from qlora_engine.memory.blocks import Block, block_of, caps_logits, sliding_layers
from qlora_engine.memory.passes import FP32, Shape, backward, first_layer_spares, layer_kept, run_again
from qlora_engine.models.spec import ModelFacts

CHUNK_TOKENS = 1024
"""training/loss.py computes the logits of so many trained tokens at a time."""


@dataclass(frozen=True)
class Moving:
    """The peak of a step beyond what stays, and where it is."""

    activations: int
    step_temporary: int
    gradients: int
    operation: str

    @property
    def total(self) -> int:
        return self.activations + self.step_temporary + self.gradients


def moving(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> Moving:
    """The highest of: the loss, the backward pass of the last and of the first block, the optimizer's step. Of a class that
    no block describes: its count, brought to scale by its rehearsal where there was one."""
    if facts.source != "table":
        return _counted(facts, config, shape)
    return max(_candidates(facts, config, shape), key=lambda found: found.total)


def counted_bytes(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> generic.Count:
    """The count of a class (memory.generic)."""
    return generic.count(facts, config, shape, _loss_bytes(facts, config, shape))


def gradient_bytes(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> int:
    """Of every adapter, all there at once."""
    return shape.adapter_bytes * sum(n * count for n, count in static.adapter_tensors(facts, config))


def _counted(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> Moving:
    found = counted_bytes(facts, config, shape)
    gradients = gradient_bytes(facts, config, shape)
    side = "double_quant" if shape.is_double_quant else "single_quant"
    points = generic.points_of(facts, config, "cuda" if shape.is_cuda else "cpu", side)
    optimizer = Moving(0, _optimizer_temporary(facts, config, shape), gradients, "optimizer")
    if points is None:
        rough = Moving(
            round(found.kept),
            round(max(found.working, found.loss)),
            gradients,
            "a block or the loss, by count",
        )
        return max(rough, optimizer, key=lambda one: one.total)
    kept, working = generic.scaled(points, found.total)
    return max(Moving(kept, working, gradients, "rehearsed, scaled"), optimizer, key=lambda one: one.total)


def _candidates(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> Iterator[Moving]:
    block = block_of(facts, config)
    layers = facts.layers
    masked = _masked_layers(facts, block, shape)
    adapters = sum(elements * count for elements, count in static.adapter_tensors(facts, config))
    grads = adapters * shape.adapter_bytes
    has_all = config.training.effective_batch > shape.micro_batch
    carried, fresh = (grads, 0) if has_all else (0, grads // layers)
    stream = block.hidden * shape.stream_bytes * shape.tokens
    tables = _tables(facts, block, shape)
    loss = _loss_bytes(facts, config, shape)
    if config.training.gradient_checkpointing:
        found = _recomputing(block, config, shape, layers, masked)
        total, one, back, last = found.total, found.first, found.back, found.last
        yield Moving(tables + one, stream + found.again, grads - fresh, "backward pass of the first layer")
        if found.is_last_again:
            yield Moving(tables + total, stream + found.again, carried, "backward pass of the last layer")
    else:
        kept = [layer_kept(block, shape, is_masked=m) for m in (True, False)]
        total = masked * kept[0] + (layers - masked) * kept[1] - first_layer_spares(block, shape)
        one = max(kept[0 if m else 1] for m in _kinds(masked, layers))
        back = last = max(backward(block, shape, is_masked=m) for m in _kinds(masked, layers))
    yield Moving(tables + total, loss, carried, "loss")
    yield Moving(tables + total, stream + last, carried + fresh, "backward pass of the last layer")
    yield Moving(tables + one, stream + back, grads, "backward pass of the first layer")
    yield Moving(0, _optimizer_temporary(facts, config, shape), grads, "optimizer")


@dataclass(frozen=True)
class _Recomputing:
    """Bytes: what all blocks keep and what the first does; the forward pass of a recomputed one, and a backward pass with what
    that kept; the backward pass of the last block, which is a recomputed one or not."""

    total: int
    first: int
    again: int
    back: int
    last: int
    is_last_again: bool


def _recomputing(
    block: Block, config: TrainingConfig, shape: Shape, layers: int, masked: int
) -> _Recomputing:
    every = config.training.checkpoint_every or 1
    count, is_last_again = -(-layers // every), (layers - 1) % every == 0
    stream = block.hidden * shape.stream_bytes * shape.tokens
    first = (
        stream if block.has_rotary else 2 * stream
    )  # learned positions are added to embeddings, which stay
    both = [run_again(block, shape, is_masked=m) for m in _kinds(masked, layers)]
    again, back = max(again for again, _ in both), max(back for _, back in both)
    away, returned = (count, stream) if generic.is_on_host(config, shape) else (0, 0)
    kept = [layer_kept(block, shape, is_masked=m) for m in (True, False)]
    plain = (layers - count) * (masked * kept[0] + (layers - masked) * kept[1]) // layers
    alone = max(backward(block, shape, is_masked=m) for m in _kinds(masked, layers))
    return _Recomputing(
        total=(count - 1 - away) * stream + first + plain,
        first=first - returned,
        again=again + returned,
        back=back + returned,
        last=back + returned if is_last_again else alone,
        is_last_again=is_last_again,
    )


def _masked_layers(facts: ModelFacts, block: Block, shape: Shape) -> int:
    """Layers whose attention needs a mask of all pairs of tokens, and so cannot be flash attention."""
    if block.is_eager:
        return 0
    if shape.is_packed:
        return facts.layers
    return sliding_layers(facts) if block.window and block.window <= shape.seq_len else 0


def _kinds(masked: int, layers: int) -> tuple[bool, ...]:
    """Which kinds of layer there are: with a mask, without."""
    return ((True,) if masked else ()) + ((False,) if masked < layers else ())


def _tables(facts: ModelFacts, block: Block, shape: Shape) -> int:
    """Cosines and sines of the positions, and the masks where attention needs them."""
    pairs = shape.micro_batch * shape.seq_len**2
    rotary = 2 * block.head_dim * shape.element_bytes * shape.tokens if block.has_rotary else 0
    kinds = 2 if 0 < sliding_layers(facts) < facts.layers else 1
    if block.is_eager:
        return rotary + kinds * pairs * shape.stream_bytes
    masks = kinds if shape.is_packed else int(bool(_masked_layers(facts, block, shape)))
    return rotary + masks * pairs


# ------------------------------------------------------------ loss and optimizer


def _loss_bytes(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> int:
    """Final norm, logits, loss and their gradient at the highest point."""
    t, h, v = shape.tokens, facts.hidden_size, facts.vocab_size
    s = shape.stream_bytes
    has_cap = caps_logits(facts)
    final_norm = (FP32 + s) * h * t
    if config.training.loss == "full":
        return final_norm + v * t * _full_per_entry(has_cap, s)
    chunk = min(CHUNK_TOKENS, shape.trained_tokens)
    gathered = 2 * h * s * shape.trained_tokens
    return final_norm + gathered + chunk * v * logit_bytes(facts, shape)


def logit_bytes(facts: ModelFacts, shape: Shape) -> int:
    """Bytes per token and vocabulary entry of a chunk: the logits in fp32, worked on where they lie, beside the head's own of
    16 bits; a soft cap keeps its slope, in fp32."""
    if caps_logits(facts):
        return 2 * FP32
    return FP32 + (shape.stream_bytes if shape.stream_bytes < FP32 else 0)


def _full_per_entry(has_cap: bool, stream: int) -> int:
    """Bytes per token and vocabulary entry: log-softmax, its gradient and the logits' gradient, all fp32; a soft cap
    keeps the bounded logits."""
    return 3 * FP32 + (stream if has_cap else 0)


def _optimizer_temporary(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> int:
    """bitsandbytes' CPU optimizers work on fp32 copies of one tensor at a time; its CUDA kernels need nothing."""
    if shape.is_cuda or not config.training.optimizer.endswith(("8bit", "32bit")):
        return 0
    return 5 * FP32 * max((elements for elements, _ in static.adapter_tensors(facts, config)), default=0)


def numbers(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> Mapping[str, int | str]:
    """What the activations' formula was computed from."""
    if facts.source != "table":
        is_measured = generic.is_measured(facts, config, "cuda" if shape.is_cuda else "cpu")
        return {
            "tokens": shape.tokens,
            "layers": facts.layers,
            "by": "its own rehearsal, scaled"
            if is_measured
            else "a count of its layers; rehearse it to know",
        }
    block = block_of(facts, config)
    found: dict[str, int | str] = {"tokens": shape.tokens, "layers": facts.layers}
    if config.training.gradient_checkpointing:
        found["kept per token and layer"] = block.hidden * shape.stream_bytes
        if config.training.checkpoint_every > 1:
            found["layers that recompute"] = -(-facts.layers // config.training.checkpoint_every)
    else:
        found["kept per token and layer"] = layer_kept(block, shape) // max(1, shape.tokens)
    return found
