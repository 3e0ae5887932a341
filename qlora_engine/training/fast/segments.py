"""Attention over rows laid end to end: each row attends to itself alone, and nothing between rows is computed. Imports torch.

transformers would build a mask of all tokens by all tokens and compute every pair of it. Here rows of similar length
are gathered into small batches for torch's own causal kernel; on CUDA its kernel for rows of different lengths is used.
Registered with transformers beside `sdpa`; outside of `running` it is `sdpa`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qlora_engine.data.batches import sent

NAME = "qlora_segments"
PLAIN = "sdpa"
CLOSE = 0.7
"""Rows are computed together while the shortest has this share of the longest's length: padding costs its square."""
UNKNOWN_TO_US = ("softcap", "s_aux", "position_bias")
KNOWN_LAYOUTS = 64

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows computed together: `rows` of `width` tokens, which begin at `start` in the buckets' own order."""

    start: int
    rows: int
    width: int

    @property
    def size(self) -> int:
        return self.rows * self.width


@dataclass(frozen=True, eq=False)
class Layout:
    """How `tokens` tokens of several rows lie. `read` (all buckets' tokens,) says where each token of the buckets lies, 0
    at `padding`, where there is none; `back` (tokens,) finds each in the buckets' order; `starts` (rows + 1,) int32 is where
    each row begins."""

    tokens: int
    longest: int
    buckets: tuple[Bucket, ...]
    read: torch.Tensor
    padding: torch.Tensor | None
    back: torch.Tensor
    starts: torch.Tensor

    @property
    def is_in_order(self) -> bool:
        """One row: nothing need be moved."""
        return len(self.buckets) == 1 and self.buckets[0].rows == 1


class _Now:
    layout: Layout | None = None


@contextlib.contextmanager
def running(batch: Any) -> Iterator[None]:
    """While inside, attention follows the rows of `batch`, the recomputation of a backward pass included. The state is the
    process's: on CUDA, backward runs on a thread of its own.

    transformers makes no mask for an attention without a function for masks; to make none it would first ask the device
    whether rows are packed, and wait for the answer."""
    lengths = getattr(batch, "lengths", ())
    _Now.layout = layout(tuple(lengths), str(batch.input_ids.device)) if lengths else None
    masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    mask = masks.pop(NAME, None) if lengths else None
    try:
        yield
    finally:
        _Now.layout = None
        if mask is not None:
            masks[NAME] = mask


@lru_cache(maxsize=KNOWN_LAYOUTS)
def layout(lengths: tuple[int, ...], device: str) -> Layout:
    """The layout of rows of these lengths, one after the other."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    total = starts[-1]
    back = torch.empty(total, dtype=torch.int64)
    buckets, reads, used = [], [], 0
    for members in _alike(lengths):
        width = lengths[members[0]]
        places = torch.full((len(members), width), total, dtype=torch.int64)
        for index, row in enumerate(members):
            inside = torch.arange(lengths[row])
            places[index, : lengths[row]] = inside + starts[row]
            back[starts[row] : starts[row + 1]] = inside + used + index * width
        buckets.append(Bucket(used, len(members), width))
        reads.append(places.flatten())
        used += places.numel()
    read = torch.cat(reads)
    padding = (read == total).nonzero().flatten()
    read[padding] = 0
    return Layout(
        tokens=total,
        longest=max(lengths),
        buckets=tuple(buckets),
        read=sent(read, device),
        padding=sent(padding, device) if len(padding) else None,
        back=sent(back, device),
        starts=sent(torch.tensor(starts, dtype=torch.int32), device),
    )


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows of similar length, the longest first."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if group and lengths[row] < CLOSE * lengths[group[0]]:
            yield group
            group = []
        group.append(row)
    yield group


class _SegmentAttention(torch.autograd.Function):
    """Causal attention within each row, on the CPU: (1, H, T, D), (1, K, T, D) twice -> (1, T, H, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        place: Layout, scale: float | None, window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        heads, kept, outs = (query.shape[1], key.shape[1], key.shape[1]), [], []
        states = _in_buckets((query, key, value), place)
        for bucket in place.buckets:
            q, k, v = _of_bucket(states, bucket, heads)
            mask = _window_mask(bucket.width, window, q)
            out, log_sum = _flash(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale)
            kept += [q, k, v, out, log_sum]
            outs.append(out.transpose(1, 2).reshape(bucket.size, -1))
        ctx.save_for_backward(*kept)
        ctx.place, ctx.scale, ctx.window = place, scale, window
        return _in_order(outs, place).view(1, place.tokens, heads[0], -1)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        place, kept, found = ctx.place, ctx.saved_tensors, []
        heads = [states.shape[1] for states in kept[:3]]
        arriving = grad_output.reshape(place.tokens, -1).contiguous()
        if not place.is_in_order:
            arriving = arriving.index_select(0, place.read)
            if place.padding is not None:
                arriving.index_fill_(0, place.padding, 0.0)  # nothing comes from where there is no token
        for index, bucket in enumerate(place.buckets):
            q, k, v, out, log_sum = kept[5 * index : 5 * index + 5]
            (grad,) = _of_bucket(arriving, bucket, heads[:1])
            mask = _window_mask(bucket.width, ctx.window, q)
            three = _flash_backward(
                grad, q, k, v, out, log_sum, 0.0, mask is None, attn_mask=mask, scale=ctx.scale
            )
            together = torch.cat([one.transpose(1, 2) for one in three], 2)
            found.append(together.view(bucket.size, -1))
        leaving = _in_order(found, place).view(1, place.tokens, sum(heads), -1).transpose(1, 2)
        return (*leaving.split(heads, 1), None, None, None)


def _in_buckets(states: Sequence[torch.Tensor], place: Layout) -> torch.Tensor:
    """Queries, keys and values, each (1, H, T, D), side by side: (the buckets' tokens, all H * D)."""
    flat = [one.transpose(1, 2).reshape(place.tokens, -1) for one in states]
    together = torch.cat(flat, 1)
    return together if place.is_in_order else together.index_select(0, place.read)


def _of_bucket(states: torch.Tensor, bucket: Bucket, heads: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """(the buckets' tokens, all H * D), contiguous -> (rows, H, width, D) for each of `heads`, one view each."""
    step = states.shape[1]
    head = step // sum(heads)
    found, begin = [], states.storage_offset() + bucket.start * step
    for count in heads:
        shape, strides = (bucket.rows, count, bucket.width, head), (bucket.width * step, head, step, 1)
        found.append(states.as_strided(shape, strides, begin))
        begin += count * head
    return tuple(found)


def _in_order(parts: Sequence[torch.Tensor], place: Layout) -> torch.Tensor:
    """The buckets' results one after the other -> (T, ...)."""
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return whole if place.is_in_order else whole.index_select(0, place.back)


def _window_mask(width: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """What a sliding window hides beside the future; None where the whole row is inside of it."""
    if window is None or width <= window:
        return None
    distance = torch.arange(width, device=like.device)
    distance = distance[:, None] - distance[None, :]
    is_seen = (distance >= 0) & (distance < window)
    return torch.zeros(width, width, dtype=like.dtype, device=like.device).masked_fill_(~is_seen, -torch.inf)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface."""
    place = _Now.layout
    if place is None:
        plain = ALL_ATTENTION_FUNCTIONS[PLAIN]
        return plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more)
    unknown = [name for name in UNKNOWN_TO_US if more.get(name) is not None]
    unknown += ["dropout"] if dropout else []
    is_causal = more.get("is_causal")
    if unknown or attention_mask is not None or query.shape[2] != place.tokens or is_causal is False:
        raise ValueError(f"this attention cannot follow rows laid end to end: {unknown or query.shape}")
    window = more.get("sliding_window")
    if query.device.type == "cuda":
        return _on_cuda(query, key, value, place, scaling, window), None
    return _SegmentAttention.apply(query, key, value, place, scaling, window), None


def _on_cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, place: Layout, scale: float | None, window: int | None
) -> torch.Tensor:  # fmt: skip
    """torch's flash attention for rows of different lengths; 16-bit types only (torch 2.10 and newer)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    left = -1 if window is None or window > place.longest else window - 1
    out = varlen_attn(
        q, k, v, place.starts, place.starts, place.longest, place.longest,
        scale=scale, window_size=(left, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out.unsqueeze(0)


def install(model: Any) -> None:
    """Have every part of `model` that uses `sdpa` use this.

    Raises:
        ValueError: no part of it does.
    """
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    using = [c for c in configs.values() if getattr(c, "_attn_implementation", None) == PLAIN]
    if not using:
        raise ValueError(f"its attention is not {PLAIN}")
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[PLAIN])
    for config in using:
        config._attn_implementation_internal = NAME


def remove(model: Any) -> None:
    """Back to `sdpa`."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == NAME:
            config._attn_implementation_internal = PLAIN
