"""The queue: order, changes from several sides, and runners that are killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_engine.errors import EngineError
from qlora_engine.events import Event, RunFailed, RunFinished, RunStarted, RunStopped
from qlora_engine.jobs import Job
from qlora_engine.runs import ownership, plans, queue, queue_runner
from qlora_engine.runs.queue_runner import Runner
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import add_checkpoint, config_of, write_run

STAND_IN = Path(__file__).parents[2] / "support" / "queue_stand_in.py"
KILLS = int(os.environ.get("QLORA_QUEUE_KILLS", "6"))


def planned(name: str, **changes: object) -> RunFolder:
    return plans.create(config_of(output__name=name, **changes))


def names() -> list[str]:
    return [entry.run_dir.name for entry in queue.read().entries]


class Engine:
    """Ends each run as the test says."""

    def __init__(self, ends: dict[str, Event], seen: list[str]) -> None:
        self.ends, self.seen, self.is_stopped = ends, seen, threading.Event()

    def run(self, job: Job) -> Iterator[Event]:
        folder = RunFolder(Path(job.run_dir))  # type: ignore[attr-defined]
        self.seen.append(folder.run_id)
        yield RunStarted(folder.run_id, str(folder.path), 1, False, 0.0)
        yield self.ends.get(folder.run_id, RunFinished({}))

    def request_stop(self, mode: str = "save") -> None:
        self.is_stopped.set()


def test_order_moves_and_removals() -> None:
    folders = [planned(name) for name in "abcd"]
    for folder in folders:
        queue.add(folder)
    assert names() == ["a", "b", "c", "d"]
    queue.move(folders[3].path, 1)
    queue.move(folders[0].path, 99)
    assert names() == ["d", "b", "c", "a"]
    assert queue.places()[str(folders[1].path)] == 2
    queue.move(folders[1].path, queue.places()[str(folders[1].path)])
    assert names() == ["d", "b", "c", "a"]
    queue.remove(folders[1].path)
    queue.add(folders[1], first=True)
    assert names() == ["b", "d", "c", "a"]
    with pytest.raises(EngineError, match="in the queue already"):
        queue.add(folders[1])
    with pytest.raises(EngineError, match="not in the queue"):
        queue.remove(Path("/none"))
    taken = queue.take("cpu")
    assert taken is not None
    assert taken.run_dir.name == "b"
    for change in (lambda: queue.remove(taken.run_dir), lambda: queue.move(taken.run_dir, 2)):
        with pytest.raises(EngineError, match="is being run"):
            change()
    queue.move(folders[0].path, 1)
    assert names() == ["b", "a", "d", "c"]
    assert [queue.places()[str(entry.run_dir)] for entry in queue.read().entries] == [0, 1, 2, 3]


def test_only_what_can_be_run_is_queued() -> None:
    for folder in (write_run("done", [1.0]), write_run("live", [1.0], state="running")):
        if folder.run_id == "live":
            folder.claim()
        with pytest.raises(EngineError, match="cannot be queued"):
            queue.add(folder)
        folder.release()
    broken = write_run("broken", [1.0], state="crashed")
    add_checkpoint(broken, 1)
    assert [e.run_dir.name for e in queue.add(broken).entries] == ["broken"]


def test_a_pause_and_a_time_hold_back_what_waits() -> None:
    queue.add(planned("a"))
    queue.pause()
    assert queue.take("cpu") is None
    queue.pause(False)
    queue.start_at(1000.0)
    assert queue.take("cpu", now=999.0) is None
    assert queue.take("cpu", now=1000.0) is not None


def test_the_computer_is_awake_up_to_a_time_that_is_set_while_a_run_is_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever says "tonight" in a window finds the runner started already."""
    monkeypatch.setattr(queue_runner, "POLL_SECONDS", 0.02)
    seen: list[str] = []

    @contextlib.contextmanager
    def wish(wanted: bool, why: str) -> Iterator[None]:
        seen.append(f"{why}: {wanted}")
        queue.start_at(time.time() - 1)  # the time has come
        yield

    monkeypatch.setattr(queue_runner, "kept_awake", wish)
    for name in ("a", "b"):
        queue.add(planned(name))

    def hold(event: Event) -> None:
        if isinstance(event, RunStarted) and event.run_id == "a":
            queue.start_at(time.time() + 86_400)

    Runner("cpu", hold, lambda: Engine({}, seen)).run()  # type: ignore[arg-type, return-value]
    assert seen == ["a", "queue: True", "b"]


def test_each_runner_takes_the_first_that_may_run_on_its_gpu() -> None:
    queue.add(planned("cuda", model__device="cuda"))
    queue.add(planned("pinned"), gpu="gpu1")
    queue.add(planned("any"))

    def taken(place: str) -> str | None:
        entry = queue.take(place)
        return entry.run_dir.name if entry else None

    assert [taken("cpu"), taken("gpu1"), taken("gpu1"), taken("gpu0"), taken("gpu0")] == [
        "any", "cuda", "pinned", None, None,
    ]  # fmt: skip


def test_a_failing_run_is_passed_over_and_told() -> None:
    for name in ("a", "bad", "stopped", "c"):
        queue.add(planned(name))
    seen: list[str] = []
    ends: dict[str, Event] = {
        "bad": RunFailed("x", "no rows", "add some"),
        "stopped": RunStopped("", True, {}),
    }
    runner = Runner("cpu", make_engine=lambda: Engine(ends, seen))  # type: ignore[arg-type, return-value]
    runner.run()
    assert seen == ["a", "bad", "stopped", "c"]
    found = queue.read()
    assert found.entries == ()
    assert [(d.run_dir.name, d.state, d.error) for d in found.done] == [
        ("a", "finished", ""), ("bad", "failed", "no rows; add some"), ("stopped", "stopped", ""), ("c", "finished", ""),
    ]  # fmt: skip
    assert runner.count == 4


def test_a_stopped_runner_lets_its_run_wait_again() -> None:
    for name in ("a", "b"):
        queue.add(planned(name))
    seen: list[str] = []
    runner = Runner(
        "cpu",
        hear=lambda event: runner.stop() if isinstance(event, RunStarted) else None,
        make_engine=lambda: Engine({"a": RunStopped("", True, {})}, seen),  # type: ignore[arg-type, return-value]
    )
    runner.run()
    assert (seen, names()) == (["a"], ["a", "b"])
    assert all(entry.runner is None for entry in queue.read().entries)


def test_one_runner_a_gpu(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(ownership, "TAKING_SECONDS", 0.05)
    home.mkdir(parents=True, exist_ok=True)
    lock = ownership.Lock(home / "queue-gpu0.lock")
    assert lock.take()
    assert queue_runner.is_at_work("gpu0")
    with pytest.raises(EngineError, match="on GPU 0 already"):
        Runner("gpu0").run()
    Runner("gpu1").run()
    lock.release()
    assert not queue_runner.is_at_work("gpu0")


def test_runners_are_started_where_something_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(queue_runner, "_start", started.append)
    monkeypatch.setattr(queue_runner, "places_here", lambda: ["gpu0", "gpu1"])
    assert queue_runner.ensure_running() == []
    queue.add(planned("a"))
    assert queue_runner.ensure_running() == ["gpu0"]
    queue.add(planned("b"), gpu="gpu1")
    assert queue_runner.ensure_running() == started[1:] == ["gpu0", "gpu1"]


@pytest.mark.parametrize("is_loading", [False, True], ids=["at work", "still loading"])
def test_a_runner_waits_for_the_run_of_one_that_was_killed(
    is_loading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_runner, "POLL_SECONDS", 0.02)
    folder = planned("orphan")
    queue.add(folder)
    queue.add(planned("next"))
    assert queue.take("cpu") is not None
    queue.note_engine(folder.path, os.getpid())
    gone = {**ownership.identity(os.getpid()), "pid": 2**22 - 3, "place": "cpu"}
    queue._change(
        lambda q: queue.replace(
            q, entries=tuple(queue.replace(e, runner=gone) if e.runner else e for e in q.entries)
        )
    )
    if not is_loading:
        folder.claim()
    seen: list[str] = []

    def go_on() -> None:
        if is_loading:
            folder.claim()
            threading.Event().wait(0.1)
        folder.update(state="finished")
        folder.release()

    timer = threading.Timer(0.2, go_on)
    timer.start()
    Runner("cpu", make_engine=lambda: Engine({}, seen)).run()  # type: ignore[arg-type, return-value]
    timer.join()
    assert seen == ["next"]
    assert [d.run_dir.name for d in queue.read().done] == ["orphan", "next"]


def test_an_engine_that_comes_second_leaves_the_run_to_the_first() -> None:
    folder = planned("twice")
    queue.add(folder)
    ends: dict[str, Event] = {"twice": RunFailed("run.begun", "it has begun", "")}

    def begun(event: Event) -> None:
        if isinstance(event, RunStarted):
            folder.update(state="finished")

    Runner("cpu", begun, lambda: Engine(ends, [])).run()  # type: ignore[arg-type, return-value]
    assert [(d.state, d.error) for d in queue.read().done] == [("finished", "")]


def test_a_run_started_by_hand_has_the_gpu_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_runner, "places_here", lambda: ["cpu"])
    monkeypatch.setattr(queue_runner, "POLL_SECONDS", 0.02)
    by_hand = write_run("by-hand", [1.0], state="running")
    by_hand.claim()
    queue.add(planned("waits"))
    seen: list[str] = []
    runner = Runner("cpu", make_engine=lambda: Engine({}, seen))  # type: ignore[arg-type, return-value]
    thread = threading.Thread(target=runner.run)
    thread.start()
    thread.join(0.3)
    assert seen == []
    by_hand.update(state="finished")
    by_hand.release()
    thread.join(20)
    assert seen == ["waits"]


def test_a_deleted_run_does_not_stop_the_queue() -> None:
    folder = planned("gone")
    queue.add(folder)
    queue.add(planned("b"))
    shutil.rmtree(folder.path)
    seen: list[str] = []
    Runner("cpu", make_engine=lambda: Engine({}, seen)).run()  # type: ignore[arg-type, return-value]
    assert seen == ["b"]
    assert queue.read().done[0].state == "gone"


def test_a_damaged_queue_is_told_and_kept_aside(home: Path) -> None:
    queue.add(planned("a"))
    file = home / queue.QUEUE_FILE
    file.write_text(file.read_text(encoding="utf-8").replace("auto", "cuda"), encoding="utf-8")
    assert "cannot be read" in queue.read().problem
    queue.add(planned("b"))
    assert names() == ["b"]
    assert (home / "queue.damaged.json").exists()


def test_many_add_at_once_and_none_is_lost() -> None:
    folders = [planned(f"r{number}") for number in range(12)]
    threads = [threading.Thread(target=queue.add, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names()) == sorted(folder.run_id for folder in folders)


def test_killed_at_random_no_run_is_lost_or_run_twice_and_the_order_stays(home: Path) -> None:
    """`QLORA_QUEUE_KILLS=50` for the whole campaign."""
    wanted = [f"{'bad' if number % 7 == 3 else 'run'}{number:03}" for number in range(max(4, KILLS))]
    for name in wanted:
        queue.add(planned(name))
    subprocess.run([sys.executable, str(STAND_IN), str(KILLS), "5"], check=True, timeout=300)
    lines = (home / "ledger").read_text(encoding="utf-8").split("\n")
    begun = [line.removeprefix("begin ") for line in lines if line.startswith("begin ")]
    assert list(dict.fromkeys(begun)) == wanted
    assert begun == sorted(begun, key=wanted.index)  # once the next has begun, none before it begins again
    assert queue.read().entries == ()
    done = [(d.run_dir.name, d.state) for d in queue.read().done]
    assert done == [(name, "failed" if name.startswith("bad") else "finished") for name in wanted]
    for name in wanted:
        folder = RunFolder(home / "runs" / name)
        assert folder.state() == dict(done)[name]
        assert len(folder.checkpoints()) == (4 if folder.state() == "finished" else 0)
    assert int(next(line for line in lines if line.startswith("killed ")).split()[1]) == KILLS
