"""Sets up and tears down the process group of a run, also on CPUs.

prepare_processes()             # before accelerate is used for the first time
"""

from __future__ import annotations

import atexit
import os

import torch
import torch.distributed as dist


def prepare_processes() -> None:
    """Let accelerate form a process group also on CPUs, and tear it down at exit.

    On CPUs, accelerate forms a group only if ACCELERATE_USE_CPU is set; without a group each
    process would do all the work. Nothing is done for a single process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    atexit.register(_end_gloo)


def _end_gloo() -> None:
    """End gloo's worker threads before the interpreter shuts down.

    The threads hold tensors. If a thread frees its last tensor during the shutdown, the process
    aborts; without this function that happened at the end of about one short run in eight. The
    groups of NCCL are not destroyed, because that waits for all processes, forever after a failure.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
