"""Weights that files hold otherwise than their layers do: inputs first, or several in one tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlora_engine.architectures import trial
from qlora_engine.errors import EngineError
from qlora_engine.export import whole_trip
from qlora_engine.export.deltas import CutDelta, Delta
from qlora_engine.export.nf4 import Quantizer
from qlora_engine.models import names

NF4 = Quantizer("nf4", True, torch.float32)


def _delta(rows: int, columns: int, seed: int) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    return Delta(torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator), 2.0)


def test_a_tensor_of_several_layers_gets_the_adapter_of_each() -> None:
    weight = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    first, third = _delta(3, 8, 1), _delta(5, 8, 2)
    whole = CutDelta(((0, 3, first), (5, 5, third)))
    wanted = torch.cat([first.merged_into(weight[:3]), weight[3:5], third.merged_into(weight[5:])])
    assert torch.equal(whole.merged_into(weight), wanted)
    for start, stop in ((0, 4), (2, 6), (4, 10)):
        found = whole.merged_into(weight[start:stop], start=start)
        torch.testing.assert_close(
            found, wanted[start:stop]
        )  # few rows are summed in another order than many
    assert whole.elements == first.elements + third.elements


def test_an_adapter_of_a_layer_kept_inputs_first_is_turned() -> None:
    delta, weight = _delta(6, 8, 3), torch.randn(8, 6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(delta.transposed().merged_into(weight), delta.merged_into(weight.T).T)
    with pytest.raises(EngineError, match="inputs first"):
        Delta(delta.a, delta.b, 1.0, torch.ones(6)).transposed()


def test_the_files_are_asked_which_tensors_are_several_layers(tmp_path: Path) -> None:
    folder = trial.make("sarvam_moe", tmp_path / "base")
    key = next(iter(names.cuts(folder)))
    parts = names.cuts(folder)[key]
    assert [part.parameter.rsplit(".", 2)[-2] for part in parts] == ["q_proj", "k_proj", "v_proj"]
    assert [part.start for part in parts] == [0, parts[0].rows, parts[0].rows + parts[1].rows]
    trip = whole_trip.trips(folder)[key.removesuffix(".weight")]
    weight = torch.randn(sum(part.rows for part in parts), 64, generator=torch.Generator().manual_seed(5))
    wanted = torch.cat([NF4.round_trip(weight[p.start : p.start + p.rows]) for p in parts])
    assert torch.equal(trip(weight, NF4), wanted)
