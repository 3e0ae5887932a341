"""An adapter's weights go back to the modules they came from, whatever a class's old files called them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict

from qlora_engine.architectures import trial
from qlora_engine.models.experts import lora


def test_names_within_names_are_left_alone(tmp_path: Path, home: Path) -> None:
    """Its old files say `shared_expert.`, which PEFT also finds in `shared_experts.`, and then drops such weights."""
    model = trial.prepare(trial.make("laguna", tmp_path / "base")).model
    wanted = {name: torch.randn_like(t) for name, t in get_peft_model_state_dict(model).items()}
    assert any("shared_experts" in name for name in wanted)
    lora.put(model, wanted)
    found = get_peft_model_state_dict(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    lost = next(iter(wanted)).replace("q_proj", "no_proj")
    with pytest.raises(ValueError, match="no_proj"):
        lora.put(model, {lost: next(iter(wanted.values()))})
