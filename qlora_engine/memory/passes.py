"""One decoder block, forward and backward, operation by operation: what is alive when. Pure arithmetic, no torch.

As transformers, PEFT's LoRA layers and bitsandbytes' 4-bit matmul run it: what autograd keeps, what each operation
allocates, when it is freed.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlora_engine.memory import static
from qlora_engine.memory.blocks import Block, Linear
from qlora_engine.memory.experts import TRACED_EXPERTS

FP32 = 4
INT64 = 8


@dataclass(frozen=True)
class Shape:
    """The micro-batch, rows x tokens; `element_bytes` of the compute type (2 on a GPU, 4 on the CPU), `stream_bytes` of the
    residual stream (4 when embeddings are fp32), `adapter_bytes` of the adapters. `trained`: tokens of a row that count in the
    loss, at most; 0 where that is not known, and all may."""

    micro_batch: int
    seq_len: int
    element_bytes: int
    stream_bytes: int
    adapter_bytes: int
    is_cuda: bool
    is_double_quant: bool
    is_packed: bool
    trained: int = 0

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.seq_len

    @property
    def trained_tokens(self) -> int:
        return self.micro_batch * min(self.trained or self.seq_len, self.seq_len)


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


def layer_kept(block: Block, shape: Shape, *, is_masked: bool = False) -> int:
    """Bytes that one block keeps for its backward pass when nothing is recomputed."""
    meter = Meter()
    _forward(block, shape, meter, is_masked=is_masked)
    return meter.live


def first_layer_spares(block: Block, shape: Shape) -> int:
    """Nothing before the first layer is trained: autograd skips its first norm, and its MLP where that reads the same
    norm and has no adapters."""
    spared = block.norm_copies * _norm_kept(block, block.hidden, shape) if block.has_first_norm else 0
    if block.is_parallel and block.mlp_out is not None and not any(one.rank for one in block.mlp_in):
        meter = Meter()
        _mlp_forward(block, block.mlp_out, shape, meter)
        spared += meter.live
    return spared


def run_again(block: Block, shape: Shape, *, is_masked: bool) -> tuple[int, int]:
    """With checkpointing the block runs once more, keeping all, then backward: the most of either, the former before any of its
    adapters has a gradient. Its input is kept already."""
    meter = Meter()
    _forward(block, shape, meter, is_masked=is_masked)
    kept = _input_kept(block, shape)
    return meter.peak - kept, backward(block, shape, is_masked=is_masked) + meter.live - kept


def _input_kept(block: Block, shape: Shape) -> int:
    """What a block keeps of its own input, uncopied: its first norm keeps it as it is where that computes in the input's
    type; where the block has no norm before attention, the adapters keep it."""
    if not block.has_first_norm:
        return _shared_input(block.attention_in, shape)
    is_copied = shape.stream_bytes != FP32 and not block.is_layer_norm
    return 0 if is_copied or block.norm_copies > 1 else block.hidden * shape.stream_bytes * shape.tokens


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
    if block.copies_output:
        meter.hold(_shared_input((block.attention_out,), shape))
    mask = _dropout_mask(block, shape) if block.residual_dropout else 0
    meter.hold(mask)
    residual = meter.hold(h * s * t)
    if block.mlp_out is None and block.computes_one_by_one:
        _one_by_one_forward(block, shape, meter)
    elif block.mlp_out is None:
        meter.touch(_experts_forward(block, shape))
        meter.hold(_experts_kept(block, shape))
    else:
        _mlp_forward(block, block.mlp_out, shape, meter)
    meter.hold(mask)
    meter.drop(residual)


def _experts_forward(block: Block, shape: Shape) -> int:
    """The rows copied for each expert, sorted, through the experts, and weighted: all held by one function."""
    rows = shape.tokens * block.experts_per_token
    return rows * shape.element_bytes * (4 * block.hidden + 3 * block.expert_inner)


def _one_by_one_forward(block: Block, shape: Shape, meter: Meter) -> None:
    """Which token goes where, of all experts; then each: its rows taken out, through its weights, added to the sum. The last
    one is the highest: what those before it keep is there."""
    t, c, n = shape.tokens, shape.element_bytes, _rows_of_one(block, shape)
    inner, out = block.expert_inner * c * n, block.hidden * c * n
    kept = _one_by_one_kept(block, shape)
    masks = INT64 * t * block.experts_per_token * (block.experts + 1)
    meter.hold(kept + masks + block.hidden * c * t)
    last = 3 * inner + 2 * out
    meter.touch(_expert_weight(block, shape, 2) + 2 * inner + out - last)
    meter.touch(_expert_weight(block, shape, 1) + 4 * inner + 2 * out - last)
    meter.drop(masks + block.hidden * c * t)


def _rows_of_one(block: Block, shape: Shape) -> int:
    """Rows of one expert, each of which receives its share."""
    return -(-shape.tokens * block.experts_per_token // max(1, min(block.experts, TRACED_EXPERTS)))


def _expert_weight(block: Block, shape: Shape, matrices: int) -> int:
    """Of one expert, dequantized: gate and up are two matrices in one."""
    return _dequantized(Linear(block.hidden, matrices * block.expert_inner, 0), shape)


def _one_by_one_kept(block: Block, shape: Shape) -> int:
    """As in one product, the rows that were added, and where; adapters keep their input and its product with A."""
    rows = shape.tokens * block.experts_per_token
    kept = _experts_kept(block, shape) + rows * (2 * INT64 + (block.hidden + 1) * shape.element_bytes)
    if block.expert_rank:
        kept += rows * shape.adapter_bytes * (block.hidden + block.expert_inner + 2 * block.expert_rank)
    return kept


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
    meter.touch(inner)
    product = meter.hold(0 if block.is_relu else inner)  # what a ReLU keeps is its product
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
    values are repeated for every query head (for one head that is a view). Values out of a fused projection are a view,
    which keeps the whole."""
    t, c = shape.tokens, shape.element_bytes
    q, kv = block.query, block.key
    is_repeated = is_masked and kv not in (q, block.head_dim)
    more = (q + kv) * FP32 * t if block.has_head_norms else 0
    if len(block.attention_in) == 1 and not is_repeated:
        more += (q + kv) * c * t
    if block.is_eager:
        return (3 * q + kv) * c * t + 2 * FP32 * block.heads * shape.seq_len * t + more
    mask = shape.seq_len * c * t if is_masked else 0
    return (2 * q + 2 * (q if is_repeated else kv)) * c * t + FP32 * block.heads * t + mask + more


def _experts_kept(block: Block, shape: Shape) -> int:
    """Mixture of experts, a row for each expert of a token: gate and up together, the activation, the output."""
    rows = shape.tokens * block.experts_per_token
    return rows * shape.element_bytes * (3 * block.expert_inner + block.hidden)


# ------------------------------------------------------------ backward


def backward(block: Block, shape: Shape, *, is_masked: bool) -> int:
    """The most that a block's backward pass holds beyond what was kept; what was kept is let go on the way."""
    t, c = shape.tokens, shape.element_bytes
    meter = Meter()
    if not block.has_first_norm or block.outer_norms > 2:
        meter.touch(5 * block.hidden * FP32 * t)  # a norm after the MLP
    if block.mlp_out is not None:
        _mlp_backward(block, block.mlp_out, shape, meter)
    elif block.computes_one_by_one:
        _one_by_one_backward(block, shape, meter)
    else:
        _experts_backward(block, shape, meter)
    meter.touch(4 * block.hidden * FP32 * t)
    done = block.outer_norms - 1 if block.has_first_norm else block.outer_norms
    meter.drop(block.hidden * c * t + done * block.norm_copies * _norm_kept(block, block.hidden, shape))
    copy = _shared_input((block.attention_out,), shape) if block.copies_output else 0
    dropped = _dropout_backward(block, shape, meter)
    _linear_backward(block.attention_out, shape, meter, frees=copy)
    meter.drop(dropped)
    meter.touch(_attention_backward(block, shape, is_masked=is_masked))
    meter.drop(_attention_kept(block, shape, is_masked=is_masked) + block.query * c * t)
    meter.hold((block.query + 2 * block.key) * c * t)
    _inputs_backward(block.attention_in, shape, meter, frees=_shared_input(block.attention_in, shape))
    return meter.peak


def _mlp_backward(block: Block, out: Linear, shape: Shape, meter: Meter) -> None:
    """Leaves the gradient of its input."""
    inner = block.inner * shape.element_bytes * shape.tokens
    dropped = _dropout_backward(block, shape, meter)
    _linear_backward(out, shape, meter, frees=0 if block.is_relu else _shared_input((out,), shape))
    meter.drop(dropped)
    if block.is_squared:
        meter.touch(3 * inner)
    if not block.is_gated:
        meter.hold(inner if block.activation_steps == 1 else 2 * inner)
        meter.drop(inner * (2 if block.activation_steps == 1 else 6))
    else:
        meter.hold(2 * inner)
        if len(block.mlp_in) == 1:
            meter.drop(2 * inner)  # the product's gradient and the activation; the other factor is a view
            _fused_backward(inner, meter)
        else:
            meter.drop(3 * inner)  # the product's gradient, and the two factors that were kept
    frees = 0 if block.is_parallel else _shared_input(block.mlp_in, shape)
    between = inner if len(block.mlp_in) > 1 else 0
    _inputs_backward(block.mlp_in, shape, meter, frees=frees, activation=between)


def _dropout_mask(block: Block, shape: Shape) -> int:
    """One byte per element on CUDA (aten/native/cuda/Dropout.cu), as wide as its input on the CPU."""
    return block.hidden * (1 if shape.is_cuda else shape.stream_bytes) * shape.tokens


def _dropout_backward(block: Block, shape: Shape, meter: Meter) -> int:
    """The mask goes, a gradient of its own comes and is held until the layer before is done."""
    if not block.residual_dropout:
        return 0
    meter.drop(_dropout_mask(block, shape))
    return meter.hold(block.hidden * shape.stream_bytes * shape.tokens)


def _fused_backward(inner: int, meter: Meter) -> None:
    """Gate and up in one tensor: the activation's gradient, then both gradients put together."""
    meter.hold(inner)
    meter.drop(3 * inner)
    meter.hold(2 * inner)
    meter.drop(2 * inner)


def _experts_backward(block: Block, shape: Shape, meter: Meter) -> None:
    """Leaves the gradient of its input. The experts are frozen, but their rows lead to the adapters before them."""
    t, c = shape.tokens, shape.element_bytes
    rows = t * block.experts_per_token * c
    inner, out = rows * block.expert_inner, rows * block.hidden
    meter.hold(out)
    meter.hold(inner)
    meter.drop(2 * out)
    meter.hold(2 * inner)
    meter.drop(2 * inner)
    _fused_backward(inner, meter)
    meter.hold(out)
    meter.drop(2 * inner)
    meter.hold(block.hidden * c * t)
    meter.drop(out)


def _one_by_one_backward(block: Block, shape: Shape, meter: Meter) -> None:
    """Leaves the gradient of its input, to which each expert adds one as large: the second is the highest."""
    c, n = shape.element_bytes, _rows_of_one(block, shape)
    inner, out, into = block.expert_inner * c * n, block.hidden * c * n, block.hidden * c * shape.tokens
    kept = _one_by_one_kept(block, shape)
    before = meter.live
    for number in range(2):
        meter.touch(2 * out)
        meter.drop(out)
        meter.hold(inner)
        meter.touch(_expert_weight(block, shape, 1) + out)
        meter.drop(out)
        meter.hold(2 * inner)
        meter.drop(2 * inner)
        _fused_backward(inner, meter)
        meter.touch(out + _expert_weight(block, shape, 2))
        meter.drop(2 * inner)
        meter.touch(out + into)
        if not number:
            meter.hold(into)
    meter.drop(meter.live - before + kept - into)


def _inputs_backward(
    linears: tuple[Linear, ...], shape: Shape, meter: Meter, *, frees: int, activation: int = 0
) -> None:
    """Projections of one input, the last first; their gradients are summed into one. `activation`: between two of them,
    the bytes that the activation's gradient takes."""
    t, c = shape.tokens, shape.element_bytes
    for index, linear in enumerate(reversed(linears), 1):
        if index > 1 and activation:
            meter.hold(activation)
            meter.drop(2 * activation)
        _linear_backward(linear, shape, meter, frees=frees if index == len(linears) else 0)
        meter.drop(linear.out * c * t)
        if index > 1:
            meter.drop(linear.in_ * c * t)


def _linear_backward(linear: Linear, shape: Shape, meter: Meter, *, frees: int = 0) -> None:
    """The adapter's gradients in its own type, then the weight dequantized again for the base's, then their sum: in place
    where the adapter's was cast, else a third tensor. `frees`: an input that only this adapter still keeps."""
    t, c, a = shape.tokens, shape.element_bytes, shape.adapter_bytes
    into = linear.in_ * c * t
    if linear.rank:
        meter.touch((2 * linear.out * a if a != c else linear.out * a) * t)
        meter.touch(linear.in_ * a * t)
        meter.drop(linear.kept(shape) * t + frees)
        meter.touch(linear.in_ * (a + c if a != c else a) * t)
    meter.hold(into)
    meter.touch(_dequantized(linear, shape) + (into if linear.rank else 0))
    if linear.rank and a == c:
        meter.touch(2 * into)


def _attention_backward(block: Block, shape: Shape, *, is_masked: bool) -> int:
    """Gradients of queries, keys and values. On CUDA flash attention sums the first in fp32 and spreads the others."""
    t, c = shape.tokens, shape.element_bytes
    if block.is_eager:
        return block.heads * shape.seq_len * t * (2 * FP32 - (c if c != FP32 else 0))
    inner = block.query * FP32 * t if shape.is_cuda else 0
    if (shape.is_cuda or is_masked) and block.key != block.query:
        inner += 2 * block.query * c * t
    return inner + (2 * block.query + 2 * block.key) * c * t
