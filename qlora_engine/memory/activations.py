"""What a step holds besides what stays: activations, temporaries and gradients at its peak. Pure arithmetic, no torch.

A decoder block is followed operation by operation, as transformers, PEFT's LoRA layers and bitsandbytes' 4-bit matmul
run it: what autograd keeps, what each operation allocates, when it is freed. Nothing is fitted; the rehearsal, which runs
the real classes, checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qlora_engine.config import TrainingConfig
from qlora_engine.memory import static
from qlora_engine.memory.blocks import Block, Linear, block_of, caps_logits, sliding_layers
from qlora_engine.models.spec import ModelFacts

FP32 = 4
CHUNK_TOKENS = 1024
"""training/loss.py computes the logits of so many trained tokens at a time."""


@dataclass(frozen=True)
class Shape:
    """The micro-batch, rows x tokens; `element_bytes` of the compute type (2 on a GPU, 4 on the CPU), `stream_bytes` of the
    residual stream (4 when embeddings are fp32), `adapter_bytes` of the adapters."""

    micro_batch: int
    seq_len: int
    element_bytes: int
    stream_bytes: int
    adapter_bytes: int
    is_cuda: bool
    is_double_quant: bool
    is_packed: bool

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.seq_len


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


class Meter:
    """Live bytes and their peak."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0

    def hold(self, size: int) -> int:
        """Allocate, and go on holding."""
        self.live += size
        self.peak = max(self.peak, self.live)
        return size

    def drop(self, size: int) -> None:
        self.live -= size

    def touch(self, size: int) -> None:
        """Allocate for one operation only."""
        self.peak = max(self.peak, self.live + size)


def moving(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> Moving:
    """The highest of: the loss, the backward pass of the last and of the first block, the optimizer's step."""
    return max(_candidates(facts, config, shape), key=lambda found: found.total)


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
        one = stream
        again = max(_again(block, shape, is_masked=m) for m in _kinds(masked, layers))
        total = layers * stream
    else:
        kept = [layer_kept(block, shape, is_masked=m) for m in (True, False)]
        total = masked * kept[0] + (layers - masked) * kept[1] + stream
        one = max(kept[0 if m else 1] for m in _kinds(masked, layers))
        again = max(_backward(block, shape, is_masked=m) for m in _kinds(masked, layers))
    yield Moving(tables + total, loss, carried, "loss")
    yield Moving(tables + total, stream + again, carried + fresh, "backward pass of the last layer")
    yield Moving(tables + one, stream + again, grads, "backward pass of the first layer")
    yield Moving(0, _optimizer_temporary(facts, config, shape), grads, "optimizer")


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


def layer_kept(block: Block, shape: Shape, *, is_masked: bool = False) -> int:
    """Bytes that one block keeps for its backward pass when nothing is recomputed."""
    meter = Meter()
    _forward(block, shape, meter, is_masked=is_masked)
    return meter.live


def _again(block: Block, shape: Shape, *, is_masked: bool) -> int:
    """With checkpointing: the block runs once more, keeping all, then backward."""
    meter = Meter()
    _forward(block, shape, meter, is_masked=is_masked)
    return max(meter.peak, _backward(block, shape, is_masked=is_masked) + meter.live)


def _tables(facts: ModelFacts, block: Block, shape: Shape) -> int:
    """Cosines and sines of the positions, and the masks where attention needs them."""
    pairs = shape.micro_batch * shape.seq_len**2
    rotary = 2 * block.head_dim * shape.element_bytes * shape.tokens if block.has_rotary else 0
    kinds = 2 if 0 < sliding_layers(facts) < facts.layers else 1
    if block.is_eager:
        return rotary + kinds * pairs * shape.stream_bytes
    masks = kinds if shape.is_packed else int(bool(_masked_layers(facts, block, shape)))
    return rotary + masks * pairs


# ------------------------------------------------------------ forward


def _forward(block: Block, shape: Shape, meter: Meter, *, is_masked: bool) -> None:
    """One block forward; afterwards `meter.live` is what autograd keeps."""
    t, s = shape.tokens, shape.stream_bytes
    h = block.hidden
    for _ in range(block.outer_norms * block.norm_copies):
        meter.hold(_norm_kept(block, h, shape))
    normed = meter.hold(h * s * t)
    _group(block.attention_in, shape, meter)
    meter.drop(normed)
    meter.hold(_shared_input(block.attention_in, shape))
    meter.hold(_attention_kept(block, shape, is_masked=is_masked))
    meter.touch((block.query + block.key) * shape.element_bytes * t)
    _group((block.attention_out,), shape, meter)
    if block.is_eager or block.copies_attention:
        meter.hold(_shared_input((block.attention_out,), shape))
    if block.residual_dropout:
        meter.hold(2 * h * (1 if shape.is_cuda else s) * t)
    residual = meter.hold(h * s * t)
    if block.mlp_out is None:
        meter.hold(_experts_kept(block, shape))
    else:
        _mlp_forward(block, block.mlp_out, shape, meter)
    meter.drop(residual)


def _mlp_forward(block: Block, out: Linear, shape: Shape, meter: Meter) -> None:
    t, c = shape.tokens, shape.element_bytes
    normed = meter.hold(block.hidden * shape.stream_bytes * t)
    inner = block.inner * c * t
    for index, linear in enumerate(block.mlp_in):
        gate = meter.hold(inner if index else 0)  # its activation stands beside the second projection
        _group((linear,), shape, meter)
        meter.hold(linear.out * c * t)
        meter.drop(gate)
    meter.drop(normed)
    if not block.is_parallel:
        meter.hold(_shared_input(block.mlp_in, shape))
    meter.hold(inner * (block.activation_steps if block.is_gated else block.activation_steps - 1))
    product = meter.hold(inner)
    _group((out,), shape, meter)
    meter.drop(product)
    if not block.is_relu:
        meter.hold(_shared_input((out,), shape))


def _group(linears: tuple[Linear, ...], shape: Shape, meter: Meter) -> None:
    """Linear layers one after the other; each leaves what its adapter keeps."""
    t, c, a = shape.tokens, shape.element_bytes, shape.adapter_bytes
    for linear in linears:
        out = linear.out * t
        meter.touch(_dequantized(linear, shape) + out * c)
        if linear.rank:
            meter.hold(linear.kept(shape) * t)
            meter.touch(out * c + 2 * out * a)


def _dequantized(linear: Linear, shape: Shape) -> int:
    """A weight dequantized to the compute type; with double quantization its constants too."""
    weight = linear.weights * shape.element_bytes
    return weight + (linear.weights // static.BLOCK * FP32 if shape.is_double_quant else 0)


def _norm_kept(block: Block, size: int, shape: Shape) -> int:
    """RMS norms keep their input in fp32; layer norms keep it as it is."""
    return size * (shape.stream_bytes if block.is_layer_norm else FP32) * shape.tokens


def _shared_input(linears: tuple[Linear, ...], shape: Shape) -> int:
    """The input that adapters keep without a cast, once for all that read it."""
    if shape.adapter_bytes != shape.element_bytes:
        return 0
    sizes = {linear.in_ for linear in linears if linear.rank and not linear.has_dropout}
    return sum(sizes) * shape.element_bytes * shape.tokens


def _attention_kept(block: Block, shape: Shape, *, is_masked: bool) -> int:
    """Queries, keys, values, the output and its log-sums; with a mask it is copied in the compute type, and keys and
    values are repeated for every query head."""
    t, c = shape.tokens, shape.element_bytes
    q, kv = block.query, block.key
    norms = (q + kv) * FP32 * t if block.has_head_norms else 0
    if len(block.attention_in) == 1 and not (is_masked and q != kv):
        norms += (
            (q + kv if q != kv or not block.copies_attention else q) * c * t
        )  # values are a view of the fused projection, which stays whole
    if block.is_eager:
        return (3 * q + kv) * c * t + 2 * FP32 * block.heads * shape.seq_len * t + norms
    if is_masked:
        return (4 * q * c + shape.seq_len * c + FP32 * block.heads) * t + norms
    return (2 * q + 2 * kv) * c * t + FP32 * block.heads * t + norms


def _experts_kept(block: Block, shape: Shape) -> int:
    """Mixture of experts, a row for each expert of a token: gate and up together, the activation, the output."""
    rows = shape.tokens * block.experts_per_token
    return rows * shape.element_bytes * (3 * block.expert_inner + block.hidden)


# ------------------------------------------------------------ backward


def _backward(block: Block, shape: Shape, *, is_masked: bool) -> int:
    """The most that a block's backward pass holds beyond what was kept; what was kept is let go on the way."""
    t, c, s = shape.tokens, shape.element_bytes, shape.stream_bytes
    meter = Meter()
    if block.mlp_out is not None:
        _mlp_backward(block, block.mlp_out, shape, meter)
    meter.touch(4 * block.hidden * FP32 * t)
    meter.drop(block.outer_norms * block.norm_copies * _norm_kept(block, block.hidden, shape) // 2)
    meter.hold(block.hidden * s * t)
    _linear_backward(block.attention_out, shape, meter)
    meter.touch(_attention_backward(block, shape, is_masked=is_masked))
    meter.drop(_attention_kept(block, shape, is_masked=is_masked) - (block.query + 2 * block.key) * c * t)
    for linear in reversed(block.attention_in):
        _linear_backward(linear, shape, meter)
        meter.drop(linear.out * c * t)
    return meter.peak


def _mlp_backward(block: Block, out: Linear, shape: Shape, meter: Meter) -> None:
    t, c = shape.tokens, shape.element_bytes
    inner = block.inner * c * t
    _linear_backward(out, shape, meter)
    meter.drop(_shared_input((out,), shape) if not block.is_relu else 0)
    if block.is_gated:
        meter.hold(2 * inner)
        meter.drop(3 * inner)  # the product's gradient, and the two factors that were kept
    else:
        meter.hold(inner)
        meter.drop(inner * block.activation_steps)
    for index, linear in enumerate(reversed(block.mlp_in)):
        if index and block.is_gated:
            meter.hold(inner)
            meter.drop(2 * inner)
        _linear_backward(linear, shape, meter)
        meter.drop(linear.out * c * t)


def _linear_backward(linear: Linear, shape: Shape, meter: Meter) -> None:
    """The adapter's gradients in its own type, then the weight dequantized again for the base's."""
    t, c, a = shape.tokens, shape.element_bytes, shape.adapter_bytes
    if linear.rank:
        meter.touch((2 * linear.out * a if a != c else linear.out * a) * t)
        meter.touch(linear.in_ * a * t)
        meter.drop(linear.kept(shape) * t)
        meter.touch(linear.in_ * (a + c if a != c else a) * t)
    meter.hold(linear.in_ * c * t)
    meter.touch(_dequantized(linear, shape) + (linear.in_ * c * t if linear.rank else 0))


def _attention_backward(block: Block, shape: Shape, *, is_masked: bool) -> int:
    """Gradients of queries, keys and values. On CUDA flash attention sums the first in fp32 and spreads the others."""
    t, c = shape.tokens, shape.element_bytes
    if block.is_eager:
        return block.heads * shape.seq_len * t * (2 * FP32 - (c if c != FP32 else 0))
    inner = block.query * FP32 * t if shape.is_cuda else 0
    if (shape.is_cuda or is_masked) and block.key != block.query:
        inner += 2 * block.query * c * t
    return inner + (2 * block.query + 2 * block.key) * c * t


# ------------------------------------------------------------ loss and optimizer


def _loss_bytes(facts: ModelFacts, config: TrainingConfig, shape: Shape) -> int:
    """Final norm, logits, loss and their gradient at the highest point."""
    t, h, v = shape.tokens, facts.hidden_size, facts.vocab_size
    s = shape.stream_bytes
    has_cap = caps_logits(facts)
    final_norm = (FP32 + s) * h * t
    if config.training.loss == "full":
        return final_norm + v * t * _full_per_entry(has_cap, s)
    chunk = min(CHUNK_TOKENS, t)
    gathered = 2 * h * s * t
    per_entry = 3 * FP32 if has_cap else 2 * FP32
    return final_norm + gathered + chunk * v * per_entry


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
    block = block_of(facts, config)
    found: dict[str, int | str] = {"tokens": shape.tokens, "layers": facts.layers}
    if config.training.gradient_checkpointing:
        found["kept per token and layer"] = block.hidden * shape.stream_bytes
    else:
        found["kept per token and layer"] = layer_kept(block, shape) // max(1, shape.tokens)
    return found
