"""What each process of a run has to tell, for the first to read without waiting for anyone.

    tell(rank, report)              # every process, whenever it has done something
    reports = told(world_size)      # the first process, at the end

A collective operation would hang where a process has no work, as with answers from a cache; this
goes through the store by which the processes found each other. Knows nothing of what is told.
"""

from __future__ import annotations

import json
from typing import Any

import torch.distributed as dist


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
