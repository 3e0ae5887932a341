"""Nothing that leaves this machine says where it was made: no folder, no host, in any file of any form of export."""

from __future__ import annotations

import getpass
import platform
from pathlib import Path

import pytest

from qlora_engine.export.source import FORMATS
from tests.engine.export.conftest import Export, RunOf


def traces(*folders: Path) -> list[str]:
    """What must not be found: places of this test and its run, the home, the host."""
    host, user = platform.node(), getpass.getuser()
    names = [host] if len(host) > 5 else []
    return [*map(str, folders), str(Path.home()) + "/", f"/{user}/", *names]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_names_no_place_of_this_machine(
    kind: str, run_of: RunOf, export: Export, model_dir: Path, tmp_path: Path
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text((model_dir / "chat_template.jinja").read_text(encoding="utf-8"), encoding="utf-8")
    run = run_of("private", data__chat_template=str(template))
    out = export(run, kind, kind)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for trace in traces(model_dir.parent, run.parent, tmp_path):
            assert trace.encode() not in content, f"{path.relative_to(out)} says {trace}"
