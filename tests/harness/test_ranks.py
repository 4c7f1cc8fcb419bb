"""The first process knows what all did, and waits for none of them."""

from __future__ import annotations

import atexit

import pytest
import torch.distributed as dist

from lm_eval_latentref.harness import distributed as ranks
from lm_eval_latentref.latent.accounting import Accounting

REPORTS = [
    {
        "peak_memory_bytes": {"host": 100, "cuda:0": 7},
        "forwards": {"backbone": 5, "strong": 3},
        "tokens_encoded": 10,
        "seconds": {"load": 1.0, "think": 4.0},
    },
    {
        "peak_memory_bytes": {"host": 90, "cuda:1": 9},
        "forwards": {"backbone": 4, "strong": 2},
        "tokens_encoded": 20,
        "seconds": {"load": 2.0, "think": 3.0},
    },
]


def test_counts_are_added_up_and_memory_and_seconds_are_the_largest():
    assert Accounting.of_all(REPORTS) == {
        "processes": 2,
        "peak_memory_bytes": {"host": 100, "cuda:0": 7, "cuda:1": 9},
        "forwards": {"backbone": 9, "strong": 5},
        "tokens_encoded": 30,
        "seconds": {"load": 2.0, "think": 4.0},
    }


def test_the_latest_of_each_process_is_read_and_who_has_told_nothing_is_not_waited_for(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(ranks, "_store", lambda: store)
    ranks.tell(0, REPORTS[1])
    ranks.tell(0, REPORTS[0])
    ranks.tell(2, REPORTS[1])
    assert ranks.told(4) == REPORTS


def test_one_process_alone_has_nothing_to_tell():
    ranks.tell(0, REPORTS[0])
    assert ranks.told(1) == []


@pytest.fixture
def group(request, tmp_path):
    """The default process group, of one process, over the backend that is asked for."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(request.param, store=store, rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(("group", "stays"), [("gloo", False), ("fake", True)], indirect=["group"])
def test_processes_part_before_the_interpreter_ends_where_parting_waits_for_nobody(
    monkeypatch, group, stays
):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    ranks.prepare_processes()
    for function in at_exit:
        function()
    assert dist.is_initialized() is stays


def test_a_process_alone_registers_nothing(monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks.prepare_processes()
    assert at_exit == []
