"""QLoRA Studio's engine: everything but the window. Usable from a script and from the terminal.

Importing this package is cheap; the ML stack is imported by the modules that use it, inside functions
or in modules that say so in their first line.
"""

import logging
import os

# The hub is asked for what a person wants from it and for nothing else. huggingface_hub 2.4 says with every request
# what else is installed, and first asks a registry which program called it. It reads this once, when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# On CPUs with AVX512-BF16, importing bitsandbytes asks for an optional package in a warning that nobody can act on.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
