"""Sets up the process group of one run, on CPUs as well, and ends it cleanly.

prepare_processes()             # before accelerate is used for the first time
"""

from __future__ import annotations

import atexit
import os

import torch
import torch.distributed as dist


def prepare_processes() -> None:
    """Make processes that were started together find each other on CPUs, and end cleanly.

    On CPUs, accelerate forms a group only if ACCELERATE_USE_CPU is set; without it each process
    would do all the work.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    atexit.register(_end_gloo)


def _end_gloo() -> None:
    """End gloo's worker threads while the interpreter still runs.

    They hold tensors. A thread that frees its last tensor while the interpreter shuts down aborts
    the process, which happened after the work was done in about one short run in eight. Other
    backends are left alone: ending NCCL's groups waits for every process, so after a failure it
    would wait forever.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
