"""Everything that only a GPU can tell about this program, in one command, on a machine without a network.

You got a GPU for some minutes. Before, where the project is developed:

    make gpu-kit           # build/gpu-kit: about 20 MiB of wheels that such a machine lacks, listed with sizes and hashes
    make gpu-rehearsal     # the same script on the CPU with tiny shapes: green, or the minutes there would be lost

Take this checkout and `build/gpu-kit` along (git ignores `build/`). There, in the checkout, with the Python that has torch:

    python3 tests/gpu/run_offline.py --minutes 8 --wheels build/gpu-kit --out OUT

Nothing is installed for good. Six parts run in order of worth; `OUT/report.json` and `OUT/report.md` are whole after
every line, so a cut-off loses only what had not begun. A second go, after mending: `--parts 3,4`. Back here:

    python packaging/gpu_report.py OUT/report.json    # checks it, keeps it, folds it into README and the help pages

Exit code: 0 nothing failed, 1 something did, 2 it cannot begin. Standard library only until the wheels are on the path.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
import types
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.gpu.offline.report import Part, Report

ROOT = Path(__file__).resolve().parents[2]
LAST_SECONDS = 5.0
"""Kept back from the minutes for ending a part and writing the report."""
NEEDED = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "datasets", "tomlkit", "platformdirs", "psutil")  # fmt: skip


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--part"]:
        return one_part(arguments[1:])
    asked = parsed(arguments)
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="qlora-gpu-"))
    put_first(work / "site")
    try:
        report = begun(asked)
        prepare(work, asked.wheels, asked.device)
        return carry_out(asked, report, work, began)
    except MissingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(work, ignore_errors=True)


class MissingError(Exception):
    """Why it cannot begin, and the next step."""


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="all of it ends within this time (default 8)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json and report.md")
    parser.add_argument("--wheels", type=Path, help="folder of wheels made by packaging/gpu_kit.py")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal on tiny shapes")  # fmt: skip
    parser.add_argument("--parts", default="1,2,3,4,5,6", help="which of the six, in this order")
    parser.add_argument("--fresh", action="store_true", help="start Python anew for every part")
    return parser.parse_args(arguments)


def prepare(work: Path, wheels: Path | None, device: str) -> None:
    """Wheels and checkout on the path of this process and of all it starts; the program's own data in `work`.

    Raises:
        MissingError: a library is neither here nor among the wheels.
    """
    site = work / "site"
    unpack(wheels, site)
    environment = {
        "QLORA_HOME": str(work / "home"),
        "HF_HOME": str(work / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Asked through NVML, "is there CUDA?" leaves this process free to be forked.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(site), str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    if device == "cpu":
        environment |= {
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }  # so little work only waits for a second thread
    os.environ.update(environment)
    require()


def unpack(wheels: Path | None, site: Path) -> None:
    """Pure wheels are their own contents. A package of the name `tests` elsewhere must not hide this checkout's."""
    (site / "tests").mkdir(parents=True)
    (site / "tests" / "__init__.py").write_text(f"__path__ = [{str(ROOT / 'tests')!r}]\n", encoding="utf-8")
    for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    importlib.invalidate_caches()  # the folder was on the path before it was there


def put_first(site: Path) -> None:
    sys.path[:] = [str(site), str(ROOT), *(one for one in sys.path if one not in (str(site), str(ROOT), str(Path(__file__).parent)))]  # fmt: skip
    tests = types.ModuleType("tests")
    tests.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = tests


def require() -> None:
    import importlib.util

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(
            f"{', '.join(missing)} cannot be imported by {sys.executable}; hint: give --wheels the folder that "
            "packaging/gpu_kit.py made, and use the Python that has torch"
        )


def begun(asked: argparse.Namespace) -> Report:
    """A report in which no part has begun, on disk before anything that takes time."""
    from tests.gpu.offline.parts import PLANS
    from tests.gpu.offline.report import Report

    names = {number: PLANS[number].name for number in map(int, asked.parts.split(","))}
    report = Report(asked.out, asked.device, asked.minutes, names)
    report.write()
    return report


def carry_out(asked: argparse.Namespace, report: Report, work: Path, began: float) -> int:
    """The parts, one after the other, each within its share of the time; the exit code."""
    from tests.gpu.offline import keeper
    from tests.gpu.offline.parts import PLANS
    from tests.gpu.offline.report import DONE
    from tests.gpu.offline.rig import Rig

    end = began + 60 * asked.minutes - LAST_SECONDS
    if not asked.fresh:
        import_stack()
    for number in [part.number for part in report.parts]:
        now = time.monotonic()
        if now + LAST_SECONDS > end:
            report.part(number).why = "the time was over"
            continue
        until = min(end, now + PLANS[number].share * 60 * asked.minutes)
        print(f"part {number}, {PLANS[number].name}: {until - now:.0f} s at most", flush=True)
        keeper.carry_out(report, number, Rig(asked.device, work, until, -1), starts_anew=asked.fresh)
        tell(report.part(number))
    report.head["state"] = DONE
    report.write()
    print(f"{asked.out / 'report.md'}: {'nothing failed' if report.is_good else 'SOMETHING FAILED'}", flush=True)  # fmt: skip
    return 0 if report.is_good else 1


def import_stack() -> None:
    """Once, for all parts; nothing here may touch CUDA, so bitsandbytes, which does, is left to them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import accelerate  # noqa: F401
        import datasets  # noqa: F401
        import torch  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def tell(part: Part) -> None:
    counts: dict[str, int] = {}
    for line in part.lines:
        counts[line.verdict] = counts.get(line.verdict, 0) + 1
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "nothing found"
    print(f"  {part.state} after {part.seconds} s: {words}", flush=True)
    for line in part.lines:
        if line.verdict == "fail":
            print(f"  FAIL {line.what}: measured {line.measured}, predicted {line.predicted} {line.why}", flush=True)  # fmt: skip
    if part.why:
        print("  " + part.why.replace("\n", "\n  "), flush=True)


def one_part(arguments: list[str]) -> int:
    """How the keeper starts a part anew: NUMBER DEVICE WORK SECONDS PIPE."""
    number, device, work, seconds, pipe = arguments
    put_first(Path(work) / "site")
    from tests.gpu.offline import keeper
    from tests.gpu.offline.rig import Rig

    return keeper.run_here(int(number), Rig(device, Path(work), time.monotonic() + float(seconds), int(pipe)))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
