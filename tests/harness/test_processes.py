"""The first process reports the cost of all; processes end cleanly."""

from __future__ import annotations

import atexit
import inspect
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from lm_eval_latentref.harness import distributed as ranks
from lm_eval_latentref.harness.model import LatentRefLM
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


def test_the_first_process_reports_the_cost_of_all_since_the_last_barrier(monkeypatch):
    """lm-eval calls `barrier` in every process, whether or not its answers came from a cache."""
    lm = object.__new__(LatentRefLM)
    lm.reasoner = SimpleNamespace(
        accounting=SimpleNamespace(report=lambda: REPORTS[0]), settings=dict
    )
    gathered = []

    def gather_object(obj, dst):
        gathered.append((obj, dst))
        return REPORTS

    monkeypatch.setattr(HFLM, "barrier", lambda self: gathered.append("barrier"))
    monkeypatch.setattr(HFLM, "get_model_info", lambda self: {})
    lm.gather_object = gather_object
    lm.barrier()
    assert gathered == ["barrier", (REPORTS[0], 0)]
    assert lm.get_model_info()["latentref"]["cost"] == Accounting.of_all(REPORTS)
    # A later evaluation in one process has no barrier.
    assert lm.get_model_info()["latentref"]["cost"] == Accounting.of_all(REPORTS[:1])


@pytest.mark.contract
def test_lm_eval_calls_barrier_after_each_kind_of_request_and_gathers_objects():
    """evaluator.py: `lm.barrier()` follows `resps = getattr(lm, reqtype)(cloned_reqs)`."""
    text = inspect.getsource(evaluator.evaluate)
    assert text.index("getattr(lm, reqtype)") < text.index("lm.barrier()")
    assert LM.gather_object(None, 1) == [1]


@pytest.fixture
def group(request, tmp_path):
    """The default process group, with one process and the given backend."""
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
