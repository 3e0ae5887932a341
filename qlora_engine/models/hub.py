"""The hub: facts of a model before its weights, and its download with progress. Imports huggingface_hub lazily."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.models import spec
from qlora_engine.models.spec import ModelFacts

Report = Callable[[str, int, int | None, str], None]
WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "*.model",
    "README.md",
    "LICENSE*",
)
UNWANTED = ("original/*", "consolidated*", "*.bin", "*.pt", "*.pth", "onnx/*", "*.gguf")


def facts_of_hub(name: str, revision: str | None) -> ModelFacts:
    """Facts from the hub's config.json and safetensors headers (range requests); no weight is downloaded.

    Raises:
        EngineError: not found, gated, no connection, or no safetensors.
    """
    import huggingface_hub

    config_file = _asking(
        name, lambda: huggingface_hub.hf_hub_download(name, "config.json", revision=revision)
    )
    config = json.loads(Path(config_file).read_text(encoding="utf-8"))
    facts = spec.facts_from_config(config, name, origin="hub")
    metadata = _asking(name, lambda: huggingface_hub.get_safetensors_metadata(name, revision=revision))
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1}
    stored = sum(count * sizes.get(dtype, 2) for dtype, count in metadata.parameter_count.items())
    main = max(metadata.parameter_count, key=lambda dtype: metadata.parameter_count[dtype], default=None)
    return replace(facts, revision=revision, stored_bytes=stored, stored_dtype=main)


def download(name: str, revision: str | None, control: Control, report: Report) -> Path:
    """The snapshot folder, downloaded where it is not cached; resumes what an earlier try left.

    Raises:
        EngineError: not found, gated, no connection, or only pickles.
        Cancelled: asked to stop; what was downloaded is kept.
    """
    import huggingface_hub

    info = _asking(
        name, lambda: huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
    )
    files = [(f.rfilename, f.size or 0) for f in info.siblings or [] if _is_wanted(f.rfilename)]
    if not any(file.endswith(".safetensors") for file, _ in files):
        raise EngineError(
            "model.pickle", f"{name} has no safetensors files, only formats that are not read here",
            "choose a model that publishes safetensors",
        )  # fmt: skip
    total, done = sum(size for _, size in files), 0
    folder = None
    for file, size in files:
        control.check()
        report("downloading", done, total, "bytes")
        bar = _bar_class(control, partial(_report_more, report, done, total))
        fetch = partial(huggingface_hub.hf_hub_download, name, file, revision=info.sha, tqdm_class=bar)
        path = _asking(name, fetch)
        folder = Path(path).parents[len(Path(file).parts) - 1]
        done += size
    report("downloading", total, total, "bytes")
    assert folder is not None
    return folder


def _report_more(report: Report, base: int, total: int, count: int) -> None:
    report("downloading", min(base + count, total), total, "bytes")


def _is_wanted(file: str) -> bool:
    from fnmatch import fnmatch

    return any(fnmatch(file, p) for p in WANTED) and not any(fnmatch(file, p) for p in UNWANTED)


def _bar_class(control: Control, on_bytes: Callable[[int], None]) -> Any:
    """A tqdm that reports bytes to `on_bytes` and raises `Cancelled` inside the download when asked to stop."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self._count = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            control.check()
            self._count += int(n or 0)
            on_bytes(self._count)
            return None

    return Bar


def _asking(name: str, call: Callable[[], Any]) -> Any:
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
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise EngineError(
            "hub.not_found", f"{name} has no such file or revision", "check model.revision"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise EngineError(
            "hub.unreachable", f"{name} could not be reached on the hub: {type(error).__name__}",
            "check the connection and try again (what was downloaded is kept), or choose a model on this disk",
        ) from error  # fmt: skip
