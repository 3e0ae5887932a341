"""Uploads a proven export to a hub: private unless asked otherwise, what is there already is not sent again. Torch-free.

Imports huggingface_hub lazily. The token is the hub's own (`hf auth login`, or HF_TOKEN); it is never stored or shown here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.bridge import Emit, events_while
from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, Noticed, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import PushJob
from qlora_engine.models import hub_transfer
from qlora_engine.models.hub_cache import is_offline

REPOSITORY_PARTS = 2


@dataclass(frozen=True)
class Upload:
    """What would be sent: files with their sizes, largest last, and what the export's proof says."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    is_proven: bool

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self.files)


def prepare(folder: Path, *, allow_unproven: bool = False) -> Upload:
    """What an upload of an export would send.

    Raises:
        EngineError: not an export, or one that is not proven.
    """
    try:
        proof = parsing.from_json((folder / "proof.json").read_text(encoding="utf-8"))
        is_proven = bool(proof["is_proven"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            "push.no_export", f"{folder} is not an export: it has no proof.json", "export a run first"
        ) from error
    if not is_proven and not allow_unproven:
        raise EngineError(
            "push.unproven", f"the export in {folder} is not proven to be the trained model",
            "export it again with its proof, or say --unproven to upload it all the same",
        )  # fmt: skip
    sizes = [
        (str(f.relative_to(folder).as_posix()), f.stat().st_size) for f in folder.rglob("*") if f.is_file()
    ]
    return Upload(folder, tuple(sorted(sizes, key=lambda entry: (entry[1], entry[0]))), is_proven)


def push_job(job: PushJob, control: Control) -> Iterator[Event]:
    """Upload an export; result: {"path", "repository", "url", "is_private", "files", "bytes"}.

    Raises:
        EngineError: not proven, no token, not allowed, no connection.
        Cancelled: asked to stop; what was sent stays on the hub, without a commit that shows it.
    """
    import huggingface_hub

    upload = prepare(Path(job.folder).expanduser().resolve(), allow_unproven=job.allow_unproven)
    if len(job.repository.split("/")) != REPOSITORY_PARTS or not all(job.repository.split("/")):
        raise EngineError("push.name", f"{job.repository!r} names no repository", "write it as owner/name")
    if is_offline(offline=False):
        raise EngineError(
            "hub.offline", "this program was told to stay offline", "unset HF_HUB_OFFLINE, and try again"
        )
    if huggingface_hub.get_token() is None:
        raise EngineError(
            "hub.no_token", "you are not logged in to the hub", "log in with `hf auth login`, with a token that may write"
        )  # fmt: skip
    seen = "everybody can see it" if job.is_public else "private: only you and whom you let in"
    yield Noticed(
        "info", "push.plan",
        f"Uploading {len(upload.files)} files, {upload.nbytes / 1e9:.3f} GB, to {job.repository} ({seen})",
    )  # fmt: skip
    if not upload.is_proven:
        yield Noticed("warning", "push.unproven", "This export is not proven to be the trained model")
    yield PhaseChanged("uploading", f"Uploading to {job.repository}")
    url = yield from events_while(lambda emit: _send(upload, job, control, emit))
    yield RunFinished({
        "path": str(upload.folder), "repository": job.repository, "url": url, "is_private": not job.is_public,
        "files": len(upload.files), "bytes": upload.nbytes,
    })  # fmt: skip


def _send(upload: Upload, job: PushJob, control: Control, emit: Emit) -> str:
    """Every file's content first, one at a time, and last the commit that shows them all together."""
    import huggingface_hub

    api, name = huggingface_hub.HfApi(), job.repository

    def create() -> Any:
        return api.create_repo(name, private=not job.is_public, exist_ok=True)

    url = str(_asking(name, create))
    _require_visibility(name, _asking(name, lambda: api.model_info(name)).private, job)
    additions, sent = [], 0
    for file, size in upload.files:
        control.check()
        addition = huggingface_hub.CommitOperationAdd(file, upload.folder / file)
        _asking(name, lambda one=addition: api.preupload_lfs_files(name, [one], free_memory=False))  # type: ignore[misc]
        additions.append(addition)
        sent += size
        emit(Progressed("uploading", sent, upload.nbytes, "bytes"))
    control.check()
    _asking(
        name, lambda: api.create_commit(name, additions, commit_message="Upload an export of QLoRA Studio")
    )
    return url


def _require_visibility(name: str, is_private: bool | None, job: PushJob) -> None:
    """A repository that was there keeps its visibility: nothing becomes public by surprise."""
    if is_private is False and not job.is_public:
        raise EngineError(
            "push.public", f"{name} is there already and everybody can see it",
            "choose another name, make it private on the hub, or say --public",
        )  # fmt: skip


def _asking(name: str, call: Callable[[], Any]) -> Any:
    """`call`, with the hub's errors as sentences.

    Raises:
        EngineError: what went wrong and the next step.
    """
    from huggingface_hub import errors

    broken: tuple[type[Exception], ...] = (RuntimeError, OSError, errors.HfHubHTTPError)
    try:
        return call()
    except (*broken, *hub_transfer.connection_errors()) as error:
        status = _status(error)
        if status in (401, 403):
            raise EngineError(
                "hub.denied", f"the hub does not let you write to {name} (it answered {status})",
                "check the owner's name, and log in with a token that may write: `hf auth login`",
            ) from error  # fmt: skip
        why = f"the server answered {status}" if status else type(error.__cause__ or error).__name__
        raise EngineError(
            "hub.unreachable", f"the upload to {name} broke off: {why}",
            "try again: what has arrived is not sent a second time", is_input_error=False,
        ) from error  # fmt: skip


def _status(error: BaseException | None) -> int | None:
    """The answer's status, of the error or of what caused it."""
    while error is not None:
        found = getattr(getattr(error, "response", None), "status_code", None)
        if found is not None:
            return int(found)
        error = error.__cause__
    return None
