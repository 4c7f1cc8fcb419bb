"""The process group of one run: formed on CPUs too, and left cleanly.

prepare_processes()             # before accelerate is asked for the first time
"""

from __future__ import annotations

import atexit
import os

import torch
import torch.distributed as dist


def prepare_processes() -> None:
    """Let processes that were started together find each other on CPUs, and part cleanly.

    accelerate looks for others on CPUs only when asked to; else each would do the whole work.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    atexit.register(_part)


def _part() -> None:
    """End the workers of gloo while Python still runs.

    They hold tensors; one that lets go of its last while the interpreter ends aborts the process
    (about one short run in eight, after all was done). Other backends are left as they are: ending
    NCCL's groups waits for every process, and one that failed would wait for ever.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
