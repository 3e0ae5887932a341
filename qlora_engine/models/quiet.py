"""Keeps the progress bars and routine notices of transformers and its friends out of our output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars, and only errors from the libraries' loggers, while inside."""
    from transformers.utils import logging

    datasets = sys.modules.get(
        "datasets"
    )  # what is not imported shows no bars, and importing it takes a second
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    had_dataset_bars = datasets is not None and not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if datasets is not None:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
        if datasets is not None and had_dataset_bars:
            datasets.enable_progress_bars()
