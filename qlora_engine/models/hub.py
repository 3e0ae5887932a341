"""The hub: facts of a model before its weights, and its download, which can be stopped and goes on where it stopped.

Imports huggingface_hub lazily. Files land in its cache, where every other program finds them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.models import hub_transfer, spec
from qlora_engine.models.files import StoredTensor, read_chat_template
from qlora_engine.models.hub_cache import hub_cache_dir
from qlora_engine.models.spec import ModelFacts

Report = Callable[[str, int, int | None, str], None]
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
SMALL = re.compile(r"[^/]+\.(json|jinja|model|py|txt)|README\.md|LICEN[CS]E[^/]*|tokenizer[^/]*")
UNWANTED = re.compile(r"(consolidated|pytorch_model|tf_model|flax_model|adapter_)")
FACT_FILES = ("config.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Listing:
    """What the hub says of one revision: its commit, the files to fetch (weights last) with their sizes."""

    name: str
    commit: str
    files: tuple[tuple[str, int], ...]
    licence: str | None
    dtypes: dict[str, int]

    @property
    def weight_bytes(self) -> int:
        return sum(size for file, size in self.files if WEIGHTS.fullmatch(file))

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.files)


def facts_of_hub(name: str, revision: str | None) -> ModelFacts:
    """Facts from the hub's small files; no weight is downloaded.

    Raises:
        EngineError: not found, gated, no connection, or no safetensors.
    """
    listing = list_files(name, revision)
    present = [file for file, _ in listing.files if file in FACT_FILES]
    if "config.json" not in present:
        raise EngineError(
            "model.no_config", f"{name} has no config.json, so it is not a transformers model",
            "choose a model in the transformers format",
        )  # fmt: skip
    folder = [_fetch_small(listing, file).parent for file in present][-1]
    config = spec.read_config(folder)
    if spec.brings_code(config):
        facts = spec.facts_from_headers(config, _remote_headers(listing), name, origin="hub")
    else:
        facts = spec.facts_from_config(config, name, origin="hub")
    return replace(
        facts,
        revision=listing.commit,
        stored_bytes=listing.weight_bytes,
        stored_dtype=max(listing.dtypes, key=lambda dtype: listing.dtypes[dtype], default=None),
        licence=listing.licence,
        chat_template=read_chat_template(folder),
    )


def download(name: str, revision: str | None, control: Control, report: Report) -> Path:
    """The snapshot folder, downloaded where it is not cached; goes on with what an earlier try left, to the byte.

    Raises:
        EngineError: not found, gated, no connection, no room, damaged on the way, or only pickles.
        Cancelled: asked to stop; what was downloaded is kept.
    """
    listing = list_files(name, revision)
    _require_room(listing)
    total, done = listing.total_bytes, 0
    folder = hub_cache_dir()
    for file, size in listing.files:
        control.check()
        report("downloading", done, total, "bytes")
        if WEIGHTS.fullmatch(file):
            asking(
                name, partial(_fetch_weights, listing, file, partial(_heard, control, report, done, total))
            )
        folder = _fetch_small(listing, file).parent
        done += size
    report("downloading", total, total, "bytes")
    _write_reference(listing, revision)
    return folder


def list_files(name: str, revision: str | None) -> Listing:
    """The files that a training needs, small ones first: weights on disk then mean that nothing is missing.

    Raises:
        EngineError: not found, gated, no connection, or no safetensors.
    """
    import huggingface_hub

    info = asking(
        name, lambda: huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
    )
    wanted = [(f.rfilename, int(f.size or 0)) for f in info.siblings or [] if _is_wanted(f.rfilename)]
    if not any(WEIGHTS.fullmatch(file) for file, _ in wanted):
        raise EngineError(
            "model.pickle", f"{name} has no safetensors files, only formats that are not read here",
            "choose a model that publishes safetensors",
        )  # fmt: skip
    wanted.sort(key=lambda entry: (bool(WEIGHTS.fullmatch(entry[0])), entry[0]))
    stored = getattr(info.safetensors, "parameters", None) or {}
    card = info.card_data.to_dict() if info.card_data is not None else {}
    licence = card.get("license")
    return Listing(name, info.sha, tuple(wanted), str(licence) if licence else None, dict(stored))


def asking(name: str, call: Callable[[], Any]) -> Any:
    """`call`, with the hub's errors as sentences.

    Raises:
        EngineError: what went wrong and the next step.
    """
    from huggingface_hub import errors

    try:
        return call()
    except errors.GatedRepoError as error:
        raise EngineError(
            "hub.gated", f"{name} is gated: its authors ask for an agreement",
            "accept it on the model's page, then log in with `hf auth login`",
        ) from error  # fmt: skip
    except errors.RepositoryNotFoundError as error:
        raise EngineError(
            "hub.not_found",
            f"the hub has no model {name}",
            "check the spelling; private models need `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EngineError(
            "hub.not_found", f"{name} has no such revision", "check model.revision, or leave it empty"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(name, error) from error
    except hub_transfer.connection_errors() as error:
        raise _unreachable(name, error) from error
    except OSError as error:
        raise EngineError(
            "disk.write", f"{name} could not be written to {hub_cache_dir()}: {error.strerror or error}",
            "free some space or set HF_HOME to another folder; what was downloaded is kept",
        ) from error  # fmt: skip


def _unreachable(name: str, error: Exception) -> EngineError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    why = f"the server answered {status}" if status else type(error).__name__
    return EngineError(
        "hub.unreachable",
        f"{name} could not be reached on the hub: {why}",
        "check the connection and try again (what was downloaded is kept), or choose a model on this disk",
    )


def _is_wanted(file: str) -> bool:
    return bool(WEIGHTS.fullmatch(file) or SMALL.fullmatch(file)) and not UNWANTED.match(file)


def _fetch_small(listing: Listing, file: str) -> Path:
    import huggingface_hub

    fetched = asking(
        listing.name,
        lambda: huggingface_hub.hf_hub_download(
            listing.name,
            file,
            revision=listing.commit,
            cache_dir=str(hub_cache_dir()),
            tqdm_class=hub_transfer.silent_bar(),
        ),
    )
    return Path(fetched)


def _heard(control: Control, report: Report, base: int, total: int, count: int) -> None:
    control.check()
    report("downloading", min(base + count, total), total, "bytes")


def _fetch_weights(listing: Listing, file: str, on_bytes: Callable[[int], None]) -> None:
    blobs = _root(listing) / "blobs"
    hub_transfer.fetch_blob(listing.name, file, listing.commit, blobs, on_bytes)


def _root(listing: Listing) -> Path:
    return hub_cache_dir() / f"models--{listing.name.replace('/', '--')}"


def _write_reference(listing: Listing, revision: str | None) -> None:
    """`refs/main` -> commit, so that the model is found without asking the hub."""
    if revision == listing.commit:
        return
    reference = _root(listing) / "refs" / (revision or "main")
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(listing.commit, encoding="utf-8")


def _require_room(listing: Listing) -> None:
    place = next(p for p in (hub_cache_dir(), *hub_cache_dir().parents) if p.exists())
    here = _root(listing)
    present = sum(f.stat().st_size for f in here.glob("blobs/*") if f.is_file()) if here.exists() else 0
    needed, free = listing.total_bytes - present, shutil.disk_usage(place).free
    if needed > free:
        raise EngineError(
            "disk.full",
            f"downloading {listing.name} needs {needed / 2**30:.2f} GiB, and the disk of {place} has {free / 2**30:.2f} GiB left",
            "free some space, or set HF_HOME to another disk",
        )


def _remote_headers(listing: Listing) -> dict[str, StoredTensor]:
    """Names and shapes of the tensors, read by range requests."""
    import huggingface_hub

    metadata = asking(
        listing.name,
        lambda: huggingface_hub.HfApi().get_safetensors_metadata(listing.name, revision=listing.commit),
    )
    return {
        name: StoredTensor(file, tensor.dtype, tuple(tensor.shape), _size(tensor.data_offsets))
        for file, found in metadata.files_metadata.items()
        for name, tensor in found.tensors.items()
    }


def _size(offsets: tuple[int, int]) -> int:
    return offsets[1] - offsets[0]
