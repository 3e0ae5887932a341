"""What README and help say of GPUs has a report behind it, or says by a mark that it is computed or published by others."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.memory import calibration, context, estimate
from tests.gpu import claims
from tests.gpu.offline import report
from tests.gpu.scripts import ROOT, load_script

gpu_report: Any = load_script("gpu_report")
PAGES = gpu_report.pages(ROOT)
SCHEMES = {"computed", "published", "measured"}


def lines_found() -> list[report.Line]:
    """Of a run on a card that does not exist: right, wrong and left out."""
    return [
        report.compared("memory.llama-3.2-1b.double.0.rehearsal", "peak", 2_000, 2_020, "bytes", 0.05),
        report.compared("memory.llama-3.2-1b.double.1.rehearsal", "peak", 2_000, 1_900, "bytes", 0.05),
        report.compared(
            "memory.llama-3.2-1b.double.1.formula", "a peak by formula", 2_000, 3_000, "bytes", 0.08
        ),
        report.fact("memory.reserve", "reserve", 0.21, "share"),
        report.fact("speed.ours", "this program: tokens a second", 4321.0, "tokens/s"),
        report.left_out("speed.unsloth", "Unsloth", "not there"),
        report.checked("tests.test_a.py::test_b", "test_b", True),
        report.checked("tests.test_a.py::test_c", "test_c", False, "it broke"),
        report.checked("paging.step", "the next step is right", False),
    ]


def written(path: Path, device: str = "cuda", **head: Any) -> Path:
    """A report file with those lines."""
    found = {
        "schema": 1, "state": "done", "device": device, "began": "2031-05-14 10:00:00 UTC", "seconds": 400.0,
        "card": {"name": "NVIDIA X9000", "driver": "700.1"}, "versions": {"torch": "3.0", "bitsandbytes": "0.50.2"},
        "calibration": {"context_bytes": 400 * 2**20, "reserve_share": [0.02, 0.2101, 0.4], "reserve_settings": 27},
        "parts": [{"number": 1, "name": "all", "state": "done", "why": "", "seconds": 1.0, "lines": [asdict(one) for one in lines_found()]}],
        **head,
    }  # fmt: skip
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of what a report is folded into, without the reports there are."""
    for file in (*PAGES, ROOT / "resources" / "gpu" / "calibration.json"):
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path


# ---------------------------------------------------------------- the project as it is


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_figure_of_a_gpu_stands_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [(claim.line, claim.text) for claim in claims.unfounded(text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_called_measured_is_what_the_kept_reports_say(page: Path) -> None:
    """Mend with `make gpu-report`."""
    text = page.read_text(encoding="utf-8")
    assert text == gpu_report.folded(text, gpu_report.kept(ROOT), gpu_report.constants_of(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_measured_figure_names_its_line_in_a_report(page: Path) -> None:
    ids = {line["id"] for one in gpu_report.kept(ROOT) for line in gpu_report.lines(one)}
    for view, text in claims.marked(page.read_text(encoding="utf-8"), "measured"):
        if view == "constants":
            continue
        if not ids:
            assert text == gpu_report.NOTHING
        assert unknown_lines(text, ids) == []


def unknown_lines(text: str, ids: set[str]) -> list[str]:
    """Rows of a measured table whose last cell is no line of the reports; `*` stands for the numbers of a group."""
    rows = [row for row in text.splitlines() if row.startswith("| ")][1:]
    named = [re.fullmatch(r"`(.+)`", row.rstrip("| ").rpartition("| ")[2]) for row in rows]
    patterns = [re.escape(match[1]).replace(r"\*", ".+") if match else "(?!)" for match in named]
    return [
        row
        for row, pattern in zip(rows, patterns, strict=True)
        if not any(re.fullmatch(pattern, id_) for id_ in ids)
    ]


def test_readme_says_plainly_when_nothing_was_measured() -> None:
    views = dict(claims.marked((ROOT / "README.md").read_text(encoding="utf-8"), "measured"))
    if not gpu_report.kept(ROOT):
        assert views["summary"].startswith("Not one figure of this program has been measured on a GPU")


def test_the_constants_are_the_estimates_own() -> None:
    """Each with its source; where one changes without the other, an estimate is not what the help says."""
    kept = gpu_report.constants_of(ROOT)
    reserve = kept["reserve_share"]
    assert (reserve["low"], reserve["likely"], reserve["high"]) == estimate.RESERVE_SHARE
    assert vars(context.UNMEASURED) == kept["context"]
    assert reserve["source"]
    assert kept["context"]["source"]
    assert all(card["source"].startswith("measured on ") for card in kept["cards"].values())
    assert set(calibration.cards()) == set(kept["cards"])


# ---------------------------------------------------------------- with a report


def test_a_report_is_kept_and_folded_in(root: Path, tmp_path: Path) -> None:
    kept = gpu_report.keep(root, written(tmp_path / "report.json"))
    assert kept.name == "report-nvidia-x9000-2031-05-14.json"
    changed = {file.name for file in gpu_report.fold(root)}
    assert changed == {"README.md", "memory.md", "train.md"}
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert "Measured on NVIDIA X9000 on 2031-05-14, driver 700.1, torch 3.0" in readme
    assert gpu_report.NOTHING not in readme
    (summary,) = (text for view, text in claims.marked(readme, "measured") if view == "summary")
    assert "| llama-3.2-1b, double quantization, 2 settings: error of the rehearsal's peak | mean 3.00 %, worst 5.00 % |" in summary  # fmt: skip
    assert "| 4,321 tokens/s |" in summary
    assert "1 pass, 1 fail" in summary
    ids = {line.id for line in lines_found()}
    assert unknown_lines(summary, ids) == []
    assert unknown_lines(summary, ids - {"speed.ours"}) != []
    assert claims.unfounded(readme) == []
    assert set(gpu_report.fold(root)) == set()


def test_what_failed_is_shown_too(root: Path, tmp_path: Path) -> None:
    gpu_report.keep(root, written(tmp_path / "report.json"))
    list(gpu_report.fold(root))
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\| the next step is right \|.*\| fail \|", readme)
    assert re.search(r"formula's peak \|.*1 of 1 fail", readme)
    assert re.search(r"\| a peak by formula \|.*\| fail \|", readme)


def test_the_constants_are_replaced_with_their_source(root: Path, tmp_path: Path) -> None:
    gpu_report.keep(root, written(tmp_path / "report.json"))
    found = gpu_report.constants_of(root)
    source = "measured on NVIDIA X9000 on 2031-05-14"
    assert found["cards"] == {"NVIDIA X9000": {"context_bytes": 400 * 2**20, "source": source}}
    assert found["reserve_share"] == {
        "low": 0.02, "likely": 0.21, "high": 0.4, "source": f"{source}, 27 settings: least, median and most",
    }  # fmt: skip
    list(gpu_report.fold(root))
    page = (root / "resources" / "help" / "memory.md").read_text(encoding="utf-8")
    assert "On NVIDIA X9000 it was 400 MiB, measured on NVIDIA X9000 on 2031-05-14." in page
    assert "21 % likely, 2 % to 40 %; measured on NVIDIA X9000" in page


def test_a_second_go_of_some_parts_leaves_the_others(root: Path, tmp_path: Path) -> None:
    gpu_report.keep(root, written(tmp_path / "one.json"))
    again = report.Part(3, "memory", report.DONE, lines=[report.fact("memory.again", "again", 1, "bytes")])
    kept = gpu_report.keep(root, written(tmp_path / "two.json", parts=[asdict(again)], calibration={}))
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert [part["number"] for part in found["parts"]] == [1, 3]
    assert found["calibration"]["context_bytes"] == 400 * 2**20


def test_few_settings_replace_no_constant(root: Path, tmp_path: Path) -> None:
    few = {"reserve_share": [0.0, 0.5, 0.9], "reserve_settings": 3}
    gpu_report.keep(root, written(tmp_path / "report.json", calibration=few))
    assert gpu_report.constants_of(root) == gpu_report.constants_of(ROOT)


def test_a_measured_card_is_used_where_this_machine_has_measured_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path))
    card = calibration.CardContext(400 * 2**20, "measured on NVIDIA X9000 on 2031-05-14")
    monkeypatch.setattr(calibration, "cards", lambda: {"NVIDIA X9000": card})
    found = context.context_of("X9000 80GB")
    assert (found.likely_bytes, found.source) == (card.bytes_, card.source)
    assert context.context_of("H200") == context.UNMEASURED
    assert context.context_of() == context.UNMEASURED


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is no report"), ("[]", "is no report"), ('{"schema": 1}', "is no report"), (None, "is a rehearsal on the CPU"), ("schema", "has schema 2")],
)  # fmt: skip
def test_what_is_no_report_of_a_gpu_is_refused(
    root: Path, tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "report.json"
    if text is None:
        written(path, device="cpu")
    elif text == "schema":
        written(path, schema=2)
    else:
        path.write_text(text, encoding="utf-8")
    before = sorted(root.rglob("report-*"))
    with pytest.raises(gpu_report.ReportError, match=f"{words}.*; hint: |{words}.*hint"):
        gpu_report.keep(root, path)
    assert sorted(root.rglob("report-*")) == before


def test_an_unknown_view_is_refused(root: Path) -> None:
    with pytest.raises(gpu_report.ReportError, match="no view 'dreams'"):
        gpu_report.folded('[figures]: # "measured: dreams"\n\n[figures]: # "end"', [], {})


# ---------------------------------------------------------------- the finder


SPOKEN = (
    "On an H100 the starter trains at 9,000 tokens a second.",
    "Llama 3 8B takes 7.8 GiB of GPU memory.",
    "- A CUDA step takes 40 ms.",
    "| GPU | time |\n|---|---|\n| small | 3 s |",
    "| model | time |\n|---|---|\n| on an A100 | 12 minutes |",
    "NVML agrees with the allocator within 1 %.",
)


@pytest.mark.parametrize("claim", SPOKEN)
def test_a_new_claim_is_found_in_any_form(claim: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = claims.unfounded(f"{readme}\n\n{claim}\n")
    assert found.text == claim
    for kind in ("computed: by hand", "published: by somebody", "measured: summary"):
        inside = f'[figures]: # "{kind}"\n\n{claim}\n\n[figures]: # "end"\n'
        assert [one.mark for one in claims.claims(inside)] == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "Without a GPU the starter takes 3 minutes.",
        "A GPU is not needed.",
        "On two CPU cores: 12 s.",
        "    GPU 3 s",
    ],
)
def test_what_claims_nothing_of_a_gpu_is_left_alone(text: str) -> None:
    assert list(claims.claims(text)) == []


@pytest.mark.parametrize(
    "marks",
    [["guessed: by me"], ["computed: "], ["end"], ["computed: a", "published: b", "end"], ["computed: a"]],
)
def test_a_mark_that_says_nothing_is_an_error(marks: list[str]) -> None:
    text = "\n\n".join(f'[figures]: # "{mark}"' for mark in marks)
    with pytest.raises(claims.MarkError):
        list(claims.claims(text))


def test_taking_a_mark_away_leaves_a_claim() -> None:
    """Each mark of README is needed: none covers nothing."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind in SCHEMES - {"measured"}:
        for name, _ in claims.marked(readme, kind):
            begin = f'[figures]: # "{kind}: {name}"\n'
            head, _, rest = readme.partition(begin)
            without = head + rest.replace('[figures]: # "end"\n', "", 1)
            assert claims.unfounded(without), name
