"""Blocks of rows through `working.work`, here or in processes of their own, in order. Torch-free.

The processes are started, never forked, and end with whoever started them.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import IO, Any

from qlora_engine import child
from qlora_engine.data import last_resort
from qlora_engine.data.plain_tokenizer import PlainTokenizer
from qlora_engine.data.sources import Block
from qlora_engine.data.working import Part, Plan, work
from qlora_engine.errors import EngineError

WORTH_ROWS = 8_000
"""Fewer rows are done before a process has started."""
MOST = 16
SIZE = struct.Struct("<Q")


def processes_for(rows: int) -> int:
    """How many processes `rows` rows are worth on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if rows < WORTH_ROWS else min(cores, MOST)


def run(plan: Plan, blocks: Iterable[Block], processes: int, check: Callable[[], None]) -> Iterator[Part]:
    """What became of each block, in order.

    Raises:
        EngineError: a file has gone, or a process has died.
        Cancelled: `check` raised it.
    """
    if processes <= 1:
        for block in blocks:
            check()
            yield work(plan, block)
        return
    crew = _Crew(replace(plan, tokenizer=PlainTokenizer.of(plan.tokenizer)), processes)
    try:
        yield from crew.run(blocks, check)
    finally:
        crew.close()


@dataclass(frozen=True)
class Failure:
    """An error of another process, in a form that crosses over: an EngineError's fields, or a bug's traceback."""

    code: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        if isinstance(error, EngineError):
            return cls(error.code, error.message, error.hint)
        return cls("", "".join(traceback.format_exception(error)))

    def as_error(self) -> Exception:
        return EngineError(self.code, self.message, self.hint) if self.code else RuntimeError(self.message)


class _Crew:
    """The processes, each driven by a thread that waits for it."""

    def __init__(self, plan: Plan, count: int) -> None:
        self._workers = [_Worker(plan) for _ in range(count)]
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(count, "tokenizing")

    def run(self, blocks: Iterable[Block], check: Callable[[], None]) -> Iterator[Part]:
        waiting: deque[Future[Part]] = deque()
        for block in blocks:
            check()
            waiting.append(self._threads.submit(self._ask, block))
            if len(waiting) > 2 * len(self._workers):
                yield waiting.popleft().result()
        while waiting:
            check()
            yield waiting.popleft().result()

    def _ask(self, block: Block) -> Part:
        worker = self._free.get()
        try:
            return worker.ask(block)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.end()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.wait()


class _Worker:
    """One process: a plan, then blocks in and parts out."""

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            child.command("qlora_engine.data.tokenizing_child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**child.environment(), "TOKENIZERS_PARALLELISM": "false"},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._plan: Plan | None = plan
        self._template = plan.template.name

    def ask(self, block: Block) -> Part:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._plan is not None:
                send(self._process.stdin, self._plan)
                self._plan = None
            send(self._process.stdin, block)
            answer = receive(self._process.stdout)
        except (OSError, EOFError, ValueError) as error:
            raise self._died() from error
        if isinstance(answer, Failure):
            raise answer.as_error()
        assert isinstance(answer, Part)
        return answer

    def _died(self) -> EngineError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.poll()
        if last_resort.did_end(code):
            message = f"the chat template {self._template} runs without an end"
            return EngineError("data.template", message, last_resort.HINT)
        return EngineError(
            "data.worker",
            f"a process that tokenizes ended (exit code {code})",
            "close other programs if memory is short, and start again",
            is_input_error=False,
        )

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

    def wait(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue


def send(pipe: IO[bytes], message: Any) -> None:
    """One message to the other end, which is this program too."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    pipe.write(SIZE.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """The next message of the other end. Never used on a file.

    Raises:
        EOFError: the other end has gone.
    """
    head = pipe.read(SIZE.size)
    if len(head) < SIZE.size:
        raise EOFError
    data = pipe.read(SIZE.unpack(head)[0])
    return pickle.loads(data)
