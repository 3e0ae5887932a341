"""Experiments: the grid, its preview, its runs, and what counts as a difference."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, RunFinished
from qlora_engine.jobs import Job
from qlora_engine.runs import notes, queue, sweep
from qlora_engine.runs.index import RunIndex
from qlora_engine.runs.margin import margin, t_quantile
from qlora_engine.runs.queue_runner import Runner
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import config_of, write_run


class Learner:
    """An engine whose result depends on seed and rank alone; weight decay changes nothing."""

    def run(self, job: Job) -> Iterator[Event]:
        folder = RunFolder(Path(job.run_dir))  # type: ignore[attr-defined]
        config = folder.job()
        chance = random.Random(config.training.seed)
        loss = 1.0 + chance.random() + 0.1 / config.lora.rank + chance.random() / 1000
        folder.update(state="finished", loss_after=loss, best_loss=loss)
        yield RunFinished({})


def carried_out(wanted: sweep.Sweep) -> sweep.Planned:
    planned = sweep.plan(wanted)
    for path in (path for row in planned.runs for path in row):
        queue.add(RunFolder(path))
    Runner("cpu", make_engine=Learner).run()  # type: ignore[arg-type]
    return sweep.find(planned.sweep_id)


def test_student_s_t_is_that_of_the_tables() -> None:
    for freedom, value in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)):
        assert t_quantile(freedom) == pytest.approx(value, abs=0.001)


@pytest.mark.parametrize(
    ("base", "other", "verdict"),
    [
        ([1.0, 1.2, 1.1], [0.9, 1.1, 1.001], "better"),
        ([1.0, 1.2, 1.1], [1.1, 1.3, 1.199], "worse"),
        ([1.0, 1.2, 1.1], [1.0, 1.2, 1.1], "same"),
        ([1.0, 1.2, 1.1], [1.0 + 1e-9, 1.2, 1.1], "same"),
        ([1.0, 1.2, 1.1], [0.9, 1.3, 1.1], "same"),
        ([1.0], [1.0], "same"),
        ([1.0], [0.9], "unknown"),
        ([1.0, None], [0.9, 0.8], "unknown"),
        ([None, 1.0], [0.9, None], "missing"),
    ],
)
def test_what_counts_as_a_difference(
    base: list[float | None], other: list[float | None], verdict: str
) -> None:
    found = margin(base, other)
    assert found.verdict == verdict
    assert {
        "better": "0.0997 lower ± 0.0014 over 3 seeds", "same": "no measurable difference",
        "worse": "0.0997 higher", "unknown": "with one seed this cannot be told from chance", "missing": "no held-out loss",
    }[verdict] in found.words  # fmt: skip


def test_noise_that_vanishes_in_what_is_shown_is_no_zero() -> None:
    found = margin([2.68268417, 2.68144291], [2.68268434, 2.68144325])
    assert found.words == "no measurable difference (the noise of 2 seeds is ± less than 0.0001)"


def test_pairs_under_one_seed_tell_what_means_could_not() -> None:
    """The losses scatter a hundred times more than their differences."""
    found = margin([1.0, 2.0, 3.0], [0.99, 1.991, 2.989])
    assert found.verdict == "better"
    assert found.difference == pytest.approx(-0.01)


def test_a_grid_has_the_same_seeds_everywhere_and_ends_in_a_comparison(tmp_path: Path) -> None:
    config_io.save(config_of(training__seed=7), tmp_path / "job.toml")
    file = tmp_path / "ranks.toml"
    file.write_text(
        'job = "job.toml"\nseeds = 3\n[vary]\n"lora.rank" = [4, 8]\n"training.weight_decay" = [0, 0.5]\n',
        encoding="utf-8",
    )
    wanted = sweep.load(file)
    assert [cell.values for cell in wanted.cells] == [(4, 0.0), (4, 0.5), (8, 0.0), (8, 0.5)]
    assert all([c.training.seed for c in cell.configs] == [7, 8, 9] for cell in wanted.cells)
    planned = carried_out(wanted)
    first, decay, rank, both = sweep.results(planned)
    assert first.margin is None
    assert decay.margin is not None
    assert decay.margin.words == "no measurable difference"
    assert rank.margin is not None
    assert (rank.margin.verdict, rank.margin.difference) == ("better", pytest.approx(-0.0125))
    assert both.mean_loss == pytest.approx(sum(x for x in both.losses if x) / 3)
    entries = RunIndex().entries()
    assert len(entries) == 12
    assert {e.notes.tags for e in entries} == {("ranks",)}
    assert notes.read(planned.runs[3][1]).name == "rank 8, weight_decay 0.5, seed 8"
    assert len({e.title for e in entries}) == 12


def test_an_experiment_under_way_says_how_far_it_is() -> None:
    planned = sweep.plan(sweep.make(config_of(), {"training.join_rows": [True, False]}))
    assert sweep.all_ids() == [planned.sweep_id]
    assert [result.states for result in sweep.results(planned)] == [("planned",), ("planned",)]
    assert sweep.results(planned)[1].mean_loss is None
    shutil.rmtree(planned.runs[1][0])
    assert sweep.results(planned)[1].states == ("gone",)
    with pytest.raises(EngineError, match="no experiment"):
        sweep.find("none")


def test_memory_and_time_of_every_cell_before_anything_runs() -> None:
    done = write_run("done", [1.0] * 10, model__name="llama-3.2-1b", training__effective_batch=4)
    done.update(train_seconds=20.0, model={"name": "llama-3.2-1b"})
    base = config_of(model__name="llama-3.2-1b", training__max_steps=20, training__effective_batch=4)
    wanted = sweep.make(base, {"lora.rank": [8, 256]}, seeds=2)
    small, large = sweep.preview(wanted, RunIndex().entries(), "cuda")
    assert small.peak_bytes is not None
    assert large.peak_bytes is not None
    assert large.peak_bytes > small.peak_bytes
    assert small.seconds == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("vary", "seeds", "words"),
    [
        ({}, 1, "one or two settings"),
        ({"lora.rank": [1, 2], "lora.alpha": [1, 2], "lora.dropout": [0]}, 1, "one or two settings"),
        ({"lora.ranc": [1, 2]}, 1, "no setting 'lora.ranc'"),
        ({"output.name": ["a", "b"]}, 1, "no setting"),
        ({"training.seed": [1, 2]}, 1, "not varied"),
        ({"lora.rank": [8, 8]}, 1, "different values"),
        ({"lora.rank": [8]}, 1, "nothing to compare"),
        ({"lora.rank": [8, 16]}, 0, "seeds must be"),
        ({"lora.rank": list(range(1, 150))}, 2, "298 runs"),
        ({"lora.rank": [8, -1]}, 1, "lora.rank = -1"),
    ],
)
def test_what_cannot_be_is_said(vary: dict[str, Any], seeds: int, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        sweep.make(config_of(), vary, seeds=seeds)


def test_a_file_with_a_slip_is_said(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("seds = 3\n", encoding="utf-8")
    with pytest.raises(EngineError, match="'seds'") as caught:
        sweep.load(file)
    assert "did you mean 'seeds'" in caught.value.hint
    file.write_text("[vary\n", encoding="utf-8")
    with pytest.raises(EngineError, match="cannot be read"):
        sweep.load(file)
    with pytest.raises(EngineError, match="no experiment file"):
        sweep.load(tmp_path / "none.toml")
    file.write_text('[lora]\nrank = 4\n[vary]\n"lora.alpha" = [4, 8]\n', encoding="utf-8")
    assert sweep.load(file).cells[0].configs[0].lora.rank == 4
