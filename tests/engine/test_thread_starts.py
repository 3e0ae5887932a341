"""A thread that memory ends before it begins, or before it can say so, is an error and no wait without end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from qlora_engine import bridge, thread_starts
from qlora_engine.out_of_memory import is_out_of_memory

pytestmark = pytest.mark.timeout(60)
"""Without its bound each of these waits for ever."""

BEGINNING = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)  # put back afterwards
    thread_starts.bound()


@pytest.mark.usefixtures("bounded")
def test_a_thread_that_never_begins_is_memory_that_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, BEGINNING, lambda *_, **__: None)
    monkeypatch.setattr(thread_starts, "SLICES", 3)
    with pytest.raises(RuntimeError) as caught:
        threading.Thread(target=print).start()
    assert is_out_of_memory(caught.value)


@pytest.mark.usefixtures("bounded")
def test_threads_that_begin_are_as_ever() -> None:
    said: list[int] = []
    threads = [threading.Thread(target=said.append, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == list(range(20))
    with pytest.raises(RuntimeError, match="once"):
        threads[0].start()


@pytest.mark.usefixtures("bounded")
def test_a_slow_beginning_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = getattr(threading, BEGINNING)

    def late(*arguments: object, **named: object) -> object:
        function, *rest = arguments

        def wait_and_run(*inner: object) -> None:
            time.sleep(1.5 * thread_starts.SLICE_SECONDS)
            function(*inner)  # type: ignore[operator]

        return begin(wait_and_run, *rest, **named)

    monkeypatch.setattr(threading, BEGINNING, late)
    said: list[str] = []
    thread = threading.Thread(target=said.append, args=("here",))
    thread.start()
    thread.join()
    assert said == ["here"]


def test_work_whose_thread_ends_without_a_word_is_memory_that_ran_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bridge, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(threading.Thread, "run", lambda _: None)
    with pytest.raises(MemoryError):
        list(bridge.events_while(lambda _: 1))


def test_an_engine_is_bounded() -> None:
    code = (
        "import sys, threading; from qlora_engine import worker; worker.main(); "
        "print(threading.Thread.start.__module__, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "qlora_engine.thread_starts" in done.stderr
