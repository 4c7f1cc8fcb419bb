"""What holds for every test: no network, one thread a process, no time limits in hypothesis.

Set here, before any test module imports torch or transformers, which read it at import.
"""

from __future__ import annotations

import logging
import os

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The tests run in parallel processes: more threads than this only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture(autouse=True)
def logs_can_be_caught(monkeypatch):
    """lm-eval's logging set-up, once it has run in this process, keeps its lines from pytest."""
    logger = logging.getLogger("lm_eval")
    monkeypatch.setattr(logger, "propagate", True)
    level = logger.level
    yield
    logger.setLevel(level)
