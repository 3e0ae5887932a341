"""The job being edited: a configuration, the preset it began from, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from qlora_engine import config_io, starter
from qlora_engine.config import Issue, TrainingConfig, changed_from, validate, with_value

CUSTOM = "custom"


@dataclass(frozen=True)
class Draft:
    """`base` is the configuration as the preset gave it: what "changed" is measured from."""

    config: TrainingConfig
    base: TrainingConfig
    preset: str
    is_cpu: bool

    @cached_property
    def issues(self) -> tuple[Issue, ...]:
        return tuple(validate(self.config))

    @cached_property
    def issue_by_path(self) -> Mapping[str, str]:
        return {issue.path: issue.message for issue in reversed(self.issues)}

    @cached_property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Options that differ from the preset; which model, data and name were chosen is no change."""
        chosen = ("model.name", "data.path", "data.held_out_path", "output.name", "output.runs_dir")
        found = changed_from(self.config, self.base)
        return {path: pair for path, pair in found.items() if path not in chosen}

    def edited(self, path: str, value: Any) -> Draft:
        return replace(self, config=with_value(self.config, path, value))

    def reset(self, path: str) -> Draft:
        """One option back to what the preset says."""
        from qlora_engine.config import get_value

        return self.edited(path, get_value(self.base, path))

    def on_device(self, *, is_cpu: bool) -> Draft:
        """The same job on another kind of device; only the optimizer that the preset gave moves with it."""
        optimizer = self.base.training.optimizer
        is_untouched = self.config.training.optimizer == optimizer
        wanted = starter.starter_job(is_cpu=is_cpu).training.optimizer
        moved = replace(self, is_cpu=is_cpu, base=with_value(self.base, "training.optimizer", wanted))
        return moved.edited("training.optimizer", wanted) if is_untouched and self.preset != CUSTOM else moved

    def with_preset(self, name: str, parameters: int | None) -> Draft:
        """Another recipe for the same model and data."""
        wanted = config_io.load_preset(name, parameters=parameters, is_cpu=self.is_cpu)
        config = replace(wanted, model=self.config.model, data=self.config.data, output=self.config.output)
        return Draft(config, config, name, self.is_cpu)


def starter_draft(*, is_cpu: bool) -> Draft:
    """What a newcomer finds chosen: the starter model, its dataset, and settings for a few minutes."""
    config = starter.starter_job(is_cpu=is_cpu)
    return Draft(config, config, starter.PRESET, is_cpu)


def recognised(config: TrainingConfig, *, is_cpu: bool) -> Draft:
    """A configuration that says nothing of where it came from: the preset whose values it has, else a recipe of its own."""
    recipes = [(starter.PRESET, starter.starter_job(is_cpu=is_cpu))] + [
        (preset.name, config_io.load_preset(preset.name, parameters=parameters, is_cpu=is_cpu))
        for preset in config_io.presets()
        for parameters in (None, config_io.LARGE_MODEL_PARAMETERS)
    ]
    for name, recipe in recipes:
        if replace(recipe, model=config.model, data=config.data, output=config.output) == config:
            return Draft(config, config, name, is_cpu)
    return Draft(config, config, CUSTOM, is_cpu)


def restored(plain: Mapping[str, Any], preset: str, *, is_cpu: bool) -> Draft | None:
    """A draft kept from last time; None when it no longer fits this program."""
    from qlora_engine.errors import EngineError

    try:
        config = config_io.from_dict(plain, "the last job")
    except EngineError:
        return None
    fresh = starter_draft(is_cpu=is_cpu)
    if preset == starter.PRESET and config.model.name == "starter" and config.data.path == "starter":
        return replace(fresh, config=config)
    try:
        base = replace(config_io.load_preset(preset, is_cpu=is_cpu), model=config.model, data=config.data)
    except EngineError:
        base, preset = config, CUSTOM
    return Draft(config, replace(base, output=config.output), preset, is_cpu)
