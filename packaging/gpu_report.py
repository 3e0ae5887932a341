"""Keeps a report of a GPU run and folds it into README, the help pages and the constants of the memory estimate.

`python packaging/gpu_report.py OUT/report.json` checks the report, keeps it in `resources/gpu`, replaces the constants that
it has measured (each with its source), and writes what stands between `[figures]: # "measured: ..."` and `"end"` anew.
Without arguments only the last. Standard library only.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = 1
LEAST_SETTINGS = 10
"""Fewer measured settings do not replace the constants."""
MARKED = re.compile(r'(\[figures\]: # "measured: ([\w-]+)"\n)(.*?)(\n\[figures\]: # "end")', re.DOTALL)
NOTHING = (
    "Not one figure of this program has been measured on a GPU: none was at hand. `tests/gpu/run_offline.py` measures where\n"
    "there is one, and `packaging/gpu_report.py` puts here what it found."
)
Line = Mapping[str, Any]


class ReportError(Exception):
    """Why a report cannot be kept, and the next step."""


def main(arguments: list[str]) -> int:
    try:
        for name in arguments:
            kept = keep(ROOT, Path(name))
            print(f"kept: {kept.relative_to(ROOT)}")
        for file in fold(ROOT):
            print(f"written: {file.relative_to(ROOT)}")
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


# ---------------------------------------------------------------- keeping


def keep(root: Path, path: Path) -> Path:
    """Check a report, put it beside the others, and take its constants.

    Raises:
        ReportError: it is no report of a GPU.
    """
    report = checked(path)
    name = re.sub(r"[^a-z0-9]+", "-", f"{report['card']['name']}-{day(report)}".lower()).strip("-")
    folder = root / "resources" / "gpu"
    target = folder / f"report-{name}.json"
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else report
    target.write_text(
        json.dumps(joined(before, report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    constants = folder / "calibration.json"
    before = json.loads(constants.read_text(encoding="utf-8"))
    constants.write_text(json.dumps(calibrated(before, report), indent=1) + "\n", encoding="utf-8")
    return target


def joined(before: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """Two reports of one card and day, as one: a part that was measured again stands for its older self."""
    parts = {part["number"]: part for part in (*before["parts"], *report["parts"])}
    calibration = {**before["calibration"], **report["calibration"]}
    versions = {**before["versions"], **report["versions"]}
    return {**report, "calibration": calibration, "versions": versions, "parts": [parts[n] for n in sorted(parts)]}  # fmt: skip


def checked(path: Path) -> dict[str, Any]:
    """The report of a file.

    Raises:
        ReportError: unreadable, of another schema, or of a rehearsal on the CPU.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = report["schema"], report["device"], [line["id"] for line in lines(report)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path} is no report: {error!r}; hint: give the report.json that tests/gpu/run_offline.py wrote") from error  # fmt: skip
    if found[0] != SCHEMA:
        raise ReportError(f"{path} has schema {found[0]}, and this reads {SCHEMA}; hint: measure again with this checkout")  # fmt: skip
    if found[1] != "cuda" or not report["card"].get("name"):
        raise ReportError(f"{path} is a rehearsal on the CPU, which says nothing of a GPU; hint: run it without --device cpu on a machine with a GPU")  # fmt: skip
    return dict(report)


def calibrated(constants: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """The constants with what the report has measured in place of what was assumed or measured before."""
    found = json.loads(json.dumps(constants))
    measured, card = report["calibration"], report["card"]["name"]
    source = f"measured on {card} on {day(report)}"
    if measured.get("context_bytes"):
        found["cards"][card] = {"context_bytes": measured["context_bytes"], "source": source}
    if measured.get("reserve_settings", 0) >= LEAST_SETTINGS:
        low, likely, high = (round(share, 3) for share in measured["reserve_share"])
        words = f"{source}, {measured['reserve_settings']} settings: least, median and most"
        found["reserve_share"] = {"low": low, "likely": likely, "high": high, "source": words}
    return dict(found)


# ---------------------------------------------------------------- folding


def fold(root: Path) -> Iterator[Path]:
    """Write what is between the marks anew, in README and every help page; the files that changed."""
    for file in pages(root):
        before = file.read_text(encoding="utf-8")
        after = folded(before, kept(root), constants_of(root))
        if after != before:
            file.write_text(after, encoding="utf-8")
            yield file


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "resources" / "help").glob("*.md"))]


def kept(root: Path) -> list[dict[str, Any]]:
    """The reports, the newest first."""
    files = (root / "resources" / "gpu").glob("report-*.json")
    return sorted((json.loads(file.read_text(encoding="utf-8")) for file in files), key=lambda one: one["began"], reverse=True)  # fmt: skip


def constants_of(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "resources" / "gpu" / "calibration.json").read_text(encoding="utf-8")))


def folded(text: str, reports: list[dict[str, Any]], constants: Mapping[str, Any]) -> str:
    """`text` with every measured passage as these reports and constants have it.

    Raises:
        ReportError: a mark names a view that there is not.
    """

    def passage(match: re.Match[str]) -> str:
        if match[2] not in VIEWS:
            raise ReportError(f"there is no view {match[2]!r}; hint: use one of {', '.join(VIEWS)}")
        return f"{match[1]}\n{VIEWS[match[2]](reports, constants)}\n{match[4]}"

    return MARKED.sub(passage, text)


def summary(reports: list[dict[str, Any]], _: Mapping[str, Any]) -> str:
    """README's: everything that was compared, what failed, what was left out."""
    return _for_each(reports, ("memory", "environment", "training", "paging", "speed", "driver", "tests"))


def memory(reports: list[dict[str, Any]], _: Mapping[str, Any]) -> str:
    return _for_each(reports, ("memory", "environment"))


def speed(reports: list[dict[str, Any]], _: Mapping[str, Any]) -> str:
    return _for_each(reports, ("speed",))


def constants(_: list[dict[str, Any]], found: Mapping[str, Any]) -> str:
    """What the estimate does not compute, and where it is from."""
    context, reserve = found["context"], found["reserve_share"]
    low, likely, high = (spoken(context[f"{name}_bytes"]) for name in ("low", "likely", "high"))
    cards = "".join(f" On {name} it was {spoken(card['context_bytes'])}, {card['source']}." for name, card in found["cards"].items())  # fmt: skip
    shares = [f"{100 * reserve[name]:.3g} %" for name in ("low", "likely", "high")]
    return (
        "- **Device context**: what an empty process takes on your GPU. It is measured once per GPU and driver, before the first run on\n"
        f"  it or by `qlora doctor`; until then {likely} are assumed, and {low} to {high} allowed for.{cards}\n"
        "- **Reserve**: what the allocator holds and does not use, as a share of what comes and goes in a step:\n"
        f"  {shares[1]} likely, {shares[0]} to {shares[2]}; {reserve['source']}."
    )


VIEWS: dict[str, Callable[[list[dict[str, Any]], Mapping[str, Any]], str]] = {
    "summary": summary,
    "memory": memory,
    "speed": speed,
    "constants": constants,
}


def _for_each(reports: list[dict[str, Any]], topics: tuple[str, ...]) -> str:
    return "\n\n".join("\n".join(_view(report, topics)) for report in reports) or NOTHING


def _view(report: Mapping[str, Any], topics: tuple[str, ...]) -> Iterator[str]:
    yield (
        f"Measured on {report['card']['name']} on {day(report)}, driver {report['card'].get('driver', 'n/a')}, "
        f"torch {report['versions'].get('torch', 'n/a')}, bitsandbytes {report['versions'].get('bitsandbytes', 'n/a')}:"
    )
    yield ""
    yield "| what | measured | predicted | verdict | line of the report |"
    yield "|---|---|---|---|---|"
    found = [line for line in lines(report) if line["id"].partition(".")[0] in topics]
    for cells in (*_errors(found), *_singles(found), *_tests(found)):
        yield "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _errors(found: list[Line]) -> Iterator[tuple[str, ...]]:
    """Peaks of one model by one way of predicting, as mean and worst error."""
    groups: dict[str, list[Line]] = {}
    for line in found:
        match = re.fullmatch(
            r"(memory\.[\w.-]+\.(?:double|single))\.\d+\.(rehearsal|formula|device)", line["id"]
        )
        if match and line["difference"] is not None:
            groups.setdefault(f"{match[1]}.*.{match[2]}", []).append(line)
    for pattern, members in groups.items():
        errors = [abs(line["difference"]) for line in members]
        _, model, side, _, way = pattern.rsplit(".", 4) if pattern.count(".") == 4 else _split(pattern)
        words = f"{model}, {side} quantization, {len(members)} settings: error of the {way}'s peak"
        wrong = sum(line["verdict"] == "fail" for line in members)
        verdict = f"{wrong} of {len(members)} fail" if wrong else "pass"
        yield words, f"mean {100 * sum(errors) / len(errors):.2f} %, worst {100 * max(errors):.2f} %", "", verdict, f"`{pattern}`"  # fmt: skip


def _split(pattern: str) -> tuple[str, str, str, str, str]:
    """Model names have dots of their own."""
    head, side, star, way = pattern.rsplit(".", 3)
    return "memory", head.removeprefix("memory."), side, star, way


def _singles(found: list[Line]) -> Iterator[tuple[str, ...]]:
    """Every other line with a number, and whatever failed."""
    for line in found:
        is_setting = re.search(r"\.(double|single)\.\d+\.", line["id"]) is not None
        is_test = line["id"].startswith("tests")
        has_number = isinstance(line["measured"], int | float) and not isinstance(line["measured"], bool)
        if (
            is_test
            or (is_setting and line["verdict"] != "fail")
            or not (has_number or line["verdict"] == "fail")
        ):
            continue
        predicted = "" if line["predicted"] is None else shown(line["predicted"], line["unit"])
        yield (
            line["what"],
            shown(line["measured"], line["unit"]),
            predicted,
            line["verdict"],
            f"`{line['id']}`",
        )


def _tests(found: list[Line]) -> Iterator[tuple[str, ...]]:
    verdicts = [line["verdict"] for line in found if line["id"].startswith("tests.")]
    if verdicts:
        words = ", ".join(f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts))
        yield "tests that need a GPU", words, "", "fail" if "fail" in verdicts else "pass", "`tests.*`"


# ---------------------------------------------------------------- reading


def lines(report: Mapping[str, Any]) -> Iterator[Line]:
    for part in report["parts"]:
        yield from part["lines"]


def day(report: Mapping[str, Any]) -> str:
    return str(report["began"]).partition(" ")[0]


def spoken(amount: int) -> str:
    """Bytes in a sentence."""
    return f"{amount / 1024**2:.0f} MiB" if amount < 1024**3 else f"{amount / 1024**3:.1f} GiB"


def shown(value: Any, unit: str) -> str:
    """As the report itself shows it."""
    sys.path.insert(0, str(ROOT))
    try:
        from tests.gpu.offline.report import shown as as_in_report
    finally:
        sys.path.remove(str(ROOT))
    return str(as_in_report(value, unit))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
