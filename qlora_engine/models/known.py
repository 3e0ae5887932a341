"""Well-known models by name, so that their memory can be estimated offline. Torch-free.

`resources/models/*.json` each hold `{"name", "aliases", "title", "hub_id", "licence", "config": {...}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from qlora_engine import parsing, paths
from qlora_engine.models.spec import ModelFacts, facts_from_config


@dataclass(frozen=True)
class KnownModel:
    """A published model: its config is stored here, its weights are not."""

    name: str
    title: str
    aliases: tuple[str, ...]
    hub_id: str | None
    licence: str | None
    config: Mapping[str, Any]

    def facts(self) -> ModelFacts:
        found = facts_from_config(self.config, self.name, origin="known")
        return replace(found, licence=self.licence)


@cache
def known_models() -> tuple[KnownModel, ...]:
    """All of `resources/models`, by name."""
    files = sorted((paths.resources_dir() / "models").glob("*.json"))
    return tuple(_read(parsing.from_json(file.read_text(encoding="utf-8"))) for file in files)


def find(name: str) -> KnownModel | None:
    """The known model of that name, alias or hub id; case does not matter."""
    wanted = name.strip().lower()
    for model in known_models():
        names = {model.name, model.title, *model.aliases, model.hub_id or ""}
        if wanted in {n.lower() for n in names if n}:
            return model
    return None


def _read(plain: Mapping[str, Any]) -> KnownModel:
    return KnownModel(
        name=plain["name"],
        title=plain.get("title", plain["name"]),
        aliases=tuple(plain.get("aliases", ())),
        hub_id=plain.get("hub_id"),
        licence=plain.get("licence"),
        config=plain["config"],
    )
