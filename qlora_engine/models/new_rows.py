"""New rows of the embeddings, and of a head of its own: added, trained whole beside the adapters, saved as PEFT loads them.

PEFT trains rows of a table (`LoraConfig.trainable_token_indices`) in a wrapper that copies the whole table at every forward
and takes a gradient of all of it. The layer here is the same to PEFT, with the same names and shapes; it computes with the
table as it lies and with the new rows apart, which are the last. Imports the ML stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from torch.nn import functional

DELTA = "trainable_tokens_delta"
OWNER = ".token_adapter."
"""Stands between the path of a table and what PEFT keeps of its rows."""


@dataclass(frozen=True)
class Table:
    """An embedding (rows, width) or a head. `new` (n, width) stands for the last n rows where they are trained, else None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    new: torch.Tensor | None = None

    @property
    def old(self) -> int:
        """How many rows are as the base has them."""
        return self.weight.shape[0] - (0 if self.new is None else self.new.shape[0])


class NewRows(TrainableTokensLayer):
    """The rows of one table, the last of it, whatever adapter they are of."""

    def forward_adapters(self, x: torch.Tensor, active_adapters: Any, *args: Any, **kwargs: Any) -> Any:
        """`x`: token numbers for an embedding, hidden states for a head. Raises ValueError for several adapters at once."""
        if self.merged or self.new is None:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        plain, first = self.base_layer(x), self.first
        new = self.new.to(plain.dtype)
        if isinstance(self.base_layer, nn.Linear):
            return torch.cat([plain[..., :first], functional.linear(x, new)], dim=-1)
        rows = functional.embedding((x - first).clamp(min=0), new)
        scale = self._get_embed_scale()
        rows = rows if scale is None else rows * scale.to(rows.dtype)
        return torch.where((x >= first).unsqueeze(-1), rows, plain)

    @property
    def new(self) -> nn.Parameter | None:
        """The rows that count now; None where no adapter is on."""
        names = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.token_indices]
        if len(names) > 1:
            raise ValueError("new rows of several adapters at once")
        return self.trainable_tokens_delta[names[0]] if names else None

    @property
    def first(self) -> int:
        """The number of the first new row."""
        assert self.new is not None
        return int(self.base_layer.weight.shape[0]) - int(self.new.shape[0])


class Wrapper(TrainableTokensWrapper):
    """PEFT's own, which other adapters may be beside that trained no rows."""

    def adapter_state_dict_load_map(self, adapter_name: str) -> Any:
        is_its = adapter_name in self.token_adapter.token_indices
        return super().adapter_state_dict_load_map(adapter_name) if is_its else {}

    def adapter_state_dict(self, adapter_name: str, state_dict: Any) -> Any:
        is_its = adapter_name in self.token_adapter.token_indices
        return super().adapter_state_dict(adapter_name, state_dict) if is_its else {}


def grow(model: Any, rows: int) -> None:
    """Give the embeddings of `model`, and a head of its own, at least `rows` rows; each new one is the mean of the old ones,
    so that a new token is as likely as the average one and every load makes the same."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    for table in tables:
        weight = table.weight
        missing = rows - weight.shape[0]
        if missing > 0:  # a head that is tied has them already
            mean = weight.data.mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
            weight.data = torch.cat([weight.data, mean.expand(missing, -1)])
    tables[0].num_embeddings, tables[1].out_features = (table.weight.shape[0] for table in tables)
    model.config.get_text_config().vocab_size = tables[0].num_embeddings
    if hasattr(model, "vocab_size"):
        model.vocab_size = tables[0].num_embeddings


def indices(model: Any, count: int) -> dict[str, list[int]] | None:
    """What PEFT is told to train the last `count` rows of each table: the table's name -> their numbers. A head that is tied
    follows the embeddings."""
    if not count:
        return None
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    chosen = {id(inputs)} | (set() if head.weight is inputs.weight else {id(head)})
    rows = inputs.weight.shape[0]
    names = [name for name, module in model.named_modules() if id(module) in chosen]
    return {_short(name, model): list(range(rows - count, rows)) for name in names}


def fit(model: Any, config: Any) -> None:
    """Grow a bare `model` as an adapter's configuration needs it."""
    numbers = (config.trainable_token_indices or {}).values()
    rows = max((number + 1 for some in numbers for number in some), default=0)
    if rows > model.get_input_embeddings().weight.shape[0]:
        grow(model, rows)


def teach(peft_model: Any) -> None:
    """Have the rows of every adapter on `peft_model` computed as they are here. What PEFT keeps to take them out of the
    table again goes: they are never put into it."""
    for module in peft_model.modules():
        if isinstance(module, TrainableTokensWrapper):
            module.__class__ = Wrapper
        elif isinstance(module, TrainableTokensLayer):
            module.__class__ = NewRows
            for name in list(module.trainable_tokens_original):
                del module.trainable_tokens_original[name]


def table_of(module: Any) -> Table:
    """What an embedding or a head computes with now."""
    if not isinstance(module, TrainableTokensWrapper):
        return Table(module.weight, getattr(module, "bias", None))
    layer = module.token_adapter
    return Table(layer.base_layer.weight, getattr(layer.base_layer, "bias", None), layer.new)


def trained(model: Any) -> Iterator[tuple[int, nn.Parameter]]:
    """(number of the first, rows) of what is trained of each table; a head that is tied has none of its own."""
    for module in model.modules():
        if isinstance(module, NewRows) and module.tied_adapter is None and module.new is not None:
            yield module.first, module.new


def of_file(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Of an adapter's file: parameter of the base -> its last rows."""
    end = f"{OWNER}{DELTA}"
    return {
        f"{key.removeprefix(prefix).removesuffix(end)}.weight": rows
        for key, rows in tensors.items()
        if key.endswith(end)
    }


def _short(name: str, model: Any) -> str:
    """The end of a path by which PEFT finds that module alone."""
    parts = name.split(".")
    ends = (".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1))
    paths = [path for path, _ in model.named_modules() if path != name]
    return next(end for end in ends if not any(path.endswith(end) for path in paths))
