"""Well-known models by name, so that their memory can be estimated offline. Torch-free.

`resources/models/*.json` each hold `{"name", "aliases", "title", "hub_id", "licence", "is_chat", "config": {...}}`, where the
family is not counted without torch also `parts`, as its class described them (`classes.description`), and `variants`: other
models of the same sizes, each with what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from qlora_engine import parsing, paths
from qlora_engine.models.spec import ModelFacts, facts_from_config

WEIGHT_BYTES = 2
"""Published weights are in 16 bits, unless their configuration says otherwise."""


@dataclass(frozen=True)
class KnownModel:
    """A published model: its config is stored here, its weights are not. `is_chat`: it was tuned to answer; None where that
    is not known."""

    name: str
    title: str
    aliases: tuple[str, ...]
    hub_id: str | None
    licence: str | None
    config: Mapping[str, Any]
    is_chat: bool | None = None
    parts: Mapping[str, Any] | None = field(default=None, repr=False)
    stated_bytes: int | None = None

    def facts(self) -> ModelFacts:
        return self._facts

    @cached_property
    def _facts(self) -> ModelFacts:
        found = facts_from_config(self.config, self.name, origin="known", described=self.parts)
        return replace(found, licence=self.licence)

    @property
    def download_bytes(self) -> int:
        """Of its weights: as published, else 2 bytes a parameter, 1 for those that are stored in FP8."""
        if self.stated_bytes is not None:
            return self.stated_bytes
        facts = self.facts()
        in_8_bits = facts.quantized_parameters if facts.packing == "FP8" else 0
        return WEIGHT_BYTES * facts.parameters - in_8_bits

    def matches(self, query: str) -> bool:
        """Whether every word of `query` is in its names, its licence, or its type."""
        kind = str(self.config.get("model_type", ""))
        names = (self.name, self.title, self.hub_id, self.licence, kind, *self.aliases)
        text = " ".join(one for one in names if one).lower()
        return all(word in text for word in query.lower().split())


@cache
def known_models() -> tuple[KnownModel, ...]:
    """All of `resources/models`, by name."""
    files = (paths.resources_dir() / "models").glob("*.json")
    found = [one for file in files for one in _read(parsing.from_json(file.read_text(encoding="utf-8")))]
    return tuple(sorted(found, key=lambda one: one.name))


def find(name: str) -> KnownModel | None:
    """The known model of that name, alias or hub id; case does not matter."""
    wanted = name.strip().lower()
    for model in known_models():
        if wanted in {n.lower() for n in (model.name, model.title, *model.aliases, model.hub_id or "") if n}:
            return model
    return None


def _read(plain: Mapping[str, Any]) -> Iterator[KnownModel]:
    first = KnownModel(
        name=plain["name"],
        title=plain.get("title", plain["name"]),
        aliases=tuple(plain.get("aliases", ())),
        hub_id=plain.get("hub_id"),
        licence=plain.get("licence"),
        config=plain["config"],
        is_chat=plain.get("is_chat"),
        parts=plain.get("parts"),
        stated_bytes=plain.get("download_bytes"),
    )
    yield first
    for other in plain.get("variants", ()):
        yield replace(
            first,
            name=other["name"],
            title=other["title"],
            aliases=tuple(other.get("aliases", ())),
            hub_id=other["hub_id"],
            licence=other.get("licence", first.licence),
            is_chat=other["is_chat"],
            config={**first.config, **other.get("config", {})},
        )
