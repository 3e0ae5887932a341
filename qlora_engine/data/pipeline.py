"""From a dataset to training rows: read, detect, render, mask, measure, split, cut, pack. Torch-free.

Nothing is dropped, cut or merged without being counted in the report. Whatever took time is kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine import row_numbers
from qlora_engine.config import DataSettings
from qlora_engine.control import Control
from qlora_engine.data import cache, doctor, parallel, sources, split, splitting
from qlora_engine.data.formats import Detection, detect
from qlora_engine.data.packing import PackedRows, pack
from qlora_engine.data.report import DataReport, Drops, Found, build_report
from qlora_engine.data.sources import RowStore
from qlora_engine.data.templates import chosen
from qlora_engine.data.tokenize import Policy, TokenRow
from qlora_engine.data.tokens import META_FILE, TOKENS_FILE, TokenRows, TokenStore
from qlora_engine.data.working import Plan
from qlora_engine.errors import EngineError
from qlora_engine.parsing import object_from_json

Report = Callable[[str, int, int | None, str], None]
LENGTH_PERCENTILE = 0.99
LENGTH_MULTIPLE = 8
SAMPLE_ROWS = 50
BLOCK_ROWS = 512
BY_HAND = "it is named in data.leave_out"
CUT_AWAY = "no trained token is left within the sequence length"


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Rows ready for training, made one by one from the memory-mapped cache. `held_out` shares no row's content with
    `train` and is never packed. `whole` are the training rows unpacked; `store` holds the rows as they were stored, and
    `held_store` those that are held out: a file of its own, or the same. `left_out` are those that a person left out."""

    train: Sequence[TokenRow]
    held_out: TokenRows
    report: DataReport
    seq_len: int
    whole: TokenRows
    store: RowStore
    plan: Plan
    held_store: RowStore
    held_plan: Plan
    left_out: row_numbers.Ranges = ()

    @property
    def has_held_out_file(self) -> bool:
        return self.held_out.store is not self.whole.store

    @property
    def longest_row_tokens(self) -> int:
        """Of the longest row that training really meets, packed ones as they are packed."""
        return self.report.longest_row_tokens

    @property
    def most_trained_tokens(self) -> int:
        """Of one row that training really meets, packed ones as they are packed."""
        return self.report.most_trained_tokens


@dataclass(frozen=True, eq=False)
class Tokenized:
    """Stored rows, how they are read, and the tokens that were made of them, with the cache's key."""

    store: RowStore
    plan: Plan
    key: str
    tokens: TokenStore


@dataclass(frozen=True)
class Request:
    """What `prepare` was asked, and whom it tells."""

    settings: DataSettings
    tokenizer: Any
    seed: int
    model_max_length: int | None = None
    is_offline: bool = False
    report_progress: Report | None = None
    control: Control | None = None
    processes: int | None = None

    def check(self) -> None:
        if self.control is not None:
            self.control.check()


def prepare(
    settings: DataSettings,
    tokenizer: Any,
    *,
    seed: int,
    model_max_length: int | None = None,
    is_offline: bool = False,
    report_progress: Report | None = None,
    control: Control | None = None,
    processes: int | None = None,
    is_look: bool = False,
) -> PreparedData:
    """Everything between a file and a batch. With `is_look`, what would block the start is only reported.

    Raises:
        EngineError: missing, empty, unreadable, wrong columns, nothing to train on.
        Cancelled: asked to stop.
    """
    require_fast(tokenizer)
    if settings.seq_len:
        _check_length(settings.seq_len, model_max_length)
    request = Request(
        settings, tokenizer, seed, model_max_length, is_offline, report_progress, control, processes
    )
    store = sources.open_store(settings, is_offline=is_offline, check=request.check)
    plan = plan_of(store, request)
    held_store = sources.open_held_out(settings, check=request.check)
    read = held = _tokens(store, plan, request)
    if held_store is not None:
        held_plan = replace(plan, detections=_held_detections(held_store, plan, settings))
        held = _tokens(held_store, held_plan, request)
    prepared = _from_cache_or_made(request, read, held)
    if not is_look:
        doctor.require_start(prepared.report.findings)
    return prepared


def plan_of(store: RowStore, request: Request) -> Plan:
    """How the rows of `store` are read and into what.

    Raises:
        EngineError: no format or no template fits.
    """
    settings, tokenizer = request.settings, request.tokenizer
    template = chosen(tokenizer, settings)
    ends = tokenizer.convert_tokens_to_ids(list(template.end_tokens))
    length = settings.seq_len or min(
        splitting.DEFAULT_TOKENS, request.model_max_length or splitting.DEFAULT_TOKENS
    )
    return Plan(
        detections=detections(store, settings),
        tokenizer=tokenizer,
        template=template,
        policy=Policy.of(settings),
        system_prompt=settings.system_prompt,
        text_tokens=length,
        overlap=settings.overlap,
        end_ids=tuple(sorted({end for end in ends if isinstance(end, int)})),
    )


def detections(store: RowStore, settings: DataSettings) -> tuple[Detection, ...]:
    """How each source is read: the first as set, others so too where it fits them."""
    found = []
    for index in range(len(store.sources)):
        sample = store.sample(index, SAMPLE_ROWS)
        if not sample:
            raise _nothing_readable(store, index)
        try:
            found.append(detect(sample, settings))
        except EngineError:
            if index == 0:
                raise
            found.append(detect(sample, replace(settings, format="auto", columns={})))
    return tuple(found)


def _nothing_readable(store: RowStore, source: int) -> EngineError:
    number = 1 + sum(len(earlier) for earlier in store.sources[:source])
    file, place = store.place(number)
    try:
        store.row(number)
        reason = "it is empty"
    except sources.UnreadableRow as problem:
        reason = str(problem)
    return EngineError(
        "data.unreadable", f"no row of {store.sources[source].name} can be read: {file}, row {place}: {reason}",
        "correct the file, or choose another",
    )  # fmt: skip


def _held_detections(held: RowStore, plan: Plan, settings: DataSettings) -> tuple[Detection, ...]:
    try:
        return detections(held, settings)
    except EngineError:
        return plan.detections[:1]


def _tokens(store: RowStore, plan: Plan, request: Request) -> Tokenized:
    """Every row as tokens: from the cache, else made now."""
    key = cache.key_of([store.sha256, [len(source) for source in store.sources], _fingerprint(plan)])
    kept = cache.find("tokens", key)
    if kept is not None:
        try:
            return Tokenized(store, plan, key, TokenStore(kept))
        except (OSError, ValueError, KeyError):
            pass  # damaged: made again
    entry = cache.keep("tokens", key, lambda folder: _tokenize_all(store, plan, request, folder))
    cache.trim()
    return Tokenized(store, plan, key, TokenStore(entry))


def _fingerprint(plan: Plan) -> list[Any]:
    """What determines tokens besides the rows."""
    tokenizer = plan.tokenizer
    backend = tokenizer.backend_tokenizer.to_str()
    named = [str(tokenizer.special_tokens_map), getattr(tokenizer, "add_bos_token", None)]
    has_text = any(detection.format == "text" for detection in plan.detections)
    return [
        hashlib.sha256(backend.encode()).hexdigest(), named, repr(plan.template), asdict(plan.policy),
        [repr(detection) for detection in plan.detections], plan.system_prompt, plan.end_ids,
        [plan.text_tokens, plan.overlap] if has_text else None,
    ]  # fmt: skip


def _tokenize_all(store: RowStore, plan: Plan, request: Request, folder: Path) -> None:
    import pyarrow as pa

    processes = request.processes or parallel.processes_for(len(store))
    problems: dict[str, list[int]] = {}
    noted: dict[str, list[tuple[int, int]]] = {}
    done = rows = 0
    writer = None
    with pa.OSFile(str(folder / TOKENS_FILE), "wb") as sink:
        for part in parallel.run(plan, store.blocks(BLOCK_ROWS), processes, request.check):
            for number, reason in part.problems:
                problems.setdefault(reason, []).append(number)
            for name, ranges in part.noted.items():
                noted.setdefault(name, []).extend(ranges)
            for batch in pa.ipc.open_stream(part.stream) if part.stream else ():
                writer = writer or pa.ipc.new_stream(sink, batch.schema)
                writer.write_batch(batch)
                rows += batch.num_rows
            done += part.numbers
            if request.report_progress is not None:
                request.report_progress("tokenizing", done, len(store), "rows")
        if writer is not None:
            writer.close()
    if not rows:
        (folder / TOKENS_FILE).unlink()
    store.require_unchanged()
    meta = {
        "rows": rows,
        "numbers": len(store),
        "problems": problems,
        "noted": {name: row_numbers.joined(found) for name, found in noted.items()},
    }
    (folder / META_FILE).write_text(json.dumps(meta), encoding="utf-8")


def _from_cache_or_made(request: Request, read: Tokenized, held: Tokenized) -> PreparedData:
    settings, store = request.settings, read.store
    weights = [source.weight for source in store.sources]
    key = cache.key_of([
        read.key, held.key if held is not read else "", request.seed, settings.seq_len, settings.held_out_fraction, settings.packing, weights,
        request.model_max_length, settings.bad_rows, settings.leave_out, store.origin, store.notes, read.plan.template.why,
    ])  # fmt: skip
    entry = cache.find("prepared", key)
    prepared = _loaded(entry, request, read, held) if entry else None
    if prepared is None:
        prepared = _made(request, read, held)
        made = prepared
        cache.keep("prepared", key, lambda folder: _save(made, folder))
    return prepared


def _made(request: Request, read: Tokenized, held: Tokenized) -> PreparedData:
    import numpy as np

    settings, store, plan = request.settings, read.store, read.plan
    tokens, held_tokens = read.tokens, held.tokens
    left = row_numbers.parsed(settings.leave_out)
    numbers = tokens.column("number")
    kept = np.flatnonzero(~row_numbers.among(left, numbers))
    sides = (
        split.by_file(tokens, held_tokens, kept)
        if held is not read
        else split.by_share(tokens, settings.held_out_fraction, request.seed, kept)
    )
    drops = _drops(tokens, left, len(store))
    for reason, places in sides.left_out.items():
        drops.add(reason, *numbers[places].tolist())
    both = np.concatenate([tokens.lengths[sides.train], held_tokens.lengths[sides.held_out]])
    seq_len = settings.seq_len or automatic_length(both, request.model_max_length)
    train = _with_answers(TokenRows(tokens, sides.train, seq_len), drops)
    train = replace(
        train, places=split.weighted(tokens, train.places, [source.weight for source in store.sources])
    )
    held_out = _with_answers(TokenRows(held_tokens, sides.held_out, seq_len), drops)
    packed = pack(train, seq_len) if settings.packing and len(train) else None
    found = Found(
        store=store, detections=plan.detections, template=plan.template, tokens=tokens, held_tokens=held_tokens,
        sides=sides, train=train, held_out=held_out, packed=packed, seq_len=seq_len,
        is_automatic_length=settings.seq_len is None, drops=drops, kept=kept,
    )  # fmt: skip
    report = build_report(found)
    findings = doctor.findings(found, report, settings)
    notices = tuple(finding.text for finding in findings)
    report = replace(report, findings=tuple(f.to_json() for f in findings), notices=notices)
    fed: Sequence[TokenRow] = train if packed is None else packed
    return PreparedData(fed, held_out, report, seq_len, train, store, plan, held.store, held.plan, left)


def _drops(tokens: TokenStore, left: row_numbers.Ranges, total: int) -> Drops:
    """Rows that cannot be used, and those that a person left out, whatever else is to be said of them."""
    drops = Drops(doctor.unread(tokens.problems, left))
    for first, last in row_numbers.within(left, total):
        drops.add(BY_HAND, *range(first, last + 1))
    return drops


def _save(prepared: PreparedData, folder: Path) -> None:
    import numpy as np

    np.save(folder / "train.npy", prepared.whole.places)
    np.save(folder / "held_out.npy", prepared.held_out.places)
    if isinstance(prepared.train, PackedRows):
        np.save(folder / "members.npy", prepared.train.members)
        np.save(folder / "edges.npy", prepared.train.edges)
    (folder / "report.json").write_text(json.dumps(prepared.report.to_json()), encoding="utf-8")


def _loaded(entry: Path, request: Request, read: Tokenized, held: Tokenized) -> PreparedData | None:
    import numpy as np

    try:
        report = DataReport(**object_from_json((entry / "report.json").read_bytes()))
        whole = TokenRows(read.tokens, np.load(entry / "train.npy"), report.seq_len)
        held_out = TokenRows(held.tokens, np.load(entry / "held_out.npy"), report.seq_len)
        train: Sequence[TokenRow] = whole
        if report.packed_rows is not None:
            train = PackedRows(whole, np.load(entry / "members.npy"), np.load(entry / "edges.npy"))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return PreparedData(
        train, held_out, report, report.seq_len, whole, read.store, read.plan, held.store, held.plan,
        row_numbers.parsed(request.settings.leave_out),
    )  # fmt: skip


def automatic_length(lengths: Any, model_max_length: int | None) -> int:
    """The 99th percentile of the rows' lengths, rounded up to a multiple of 8, at most what the model can see."""
    import numpy as np

    if not len(lengths):
        return LENGTH_MULTIPLE
    ordered = np.sort(lengths)
    wanted = int(ordered[min(len(ordered) - 1, int(LENGTH_PERCENTILE * len(ordered)))])
    rounded = -(-wanted // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return min(rounded, model_max_length) if model_max_length else rounded


def _with_answers(rows: TokenRows, drops: Drops) -> TokenRows:
    """Without the rows that have nothing left to train within the length."""
    is_kept = rows.trained_counts > 0
    drops.add(CUT_AWAY, *rows.numbers[~is_kept].tolist())
    return replace(rows, places=rows.places[is_kept])


def _check_length(seq_len: int, model_max_length: int | None) -> None:
    if model_max_length and seq_len > model_max_length:
        raise EngineError(
            "data.seq_len", f"the sequence length is {seq_len} tokens, and the model sees at most {model_max_length}",
            "lower data.seq_len",
        )  # fmt: skip


def require_fast(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise EngineError(
            "data.tokenizer", "this model's tokenizer has no fast version, which the answer mask needs",
            "convert it with transformers to tokenizer.json first",
        )  # fmt: skip
