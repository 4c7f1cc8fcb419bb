"""The processes of one run: that they meet and part, and what each has to tell the first.

    prepare_processes()             # before accelerate is asked for the first time
    tell(rank, report)              # every process, whenever it has done something
    reports = told(world_size)      # the first process, at the end

A collective operation would hang where a process has no work, as with answers from a cache; what is
told goes through the store by which the processes found each other. Knows nothing of what is told.
"""

from __future__ import annotations

import atexit
import json
import os
from typing import Any

import torch
import torch.distributed as dist


def prepare_processes() -> None:
    """Let processes that were started together find each other on CPUs, and part cleanly.

    accelerate looks for others on CPUs only when it is told to; else each would do the whole work.
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


def tell(rank: int, report: dict[str, Any]) -> None:
    """Put `report` where `told` finds it, in place of what this process told before."""
    if (store := _store()) is not None:
        store.set(_key(rank), json.dumps(report))


def told(world_size: int) -> list[dict[str, Any]]:
    """The latest report of each process that has told one."""
    store = _store()
    if store is None:
        return []
    keys = [key for rank in range(world_size) if store.check([key := _key(rank)])]
    return [json.loads(store.get(key)) for key in keys]


def _store() -> Any:
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.distributed_c10d._get_default_store()


def _key(rank: int) -> str:
    return f"latentref report of rank {rank}"
