"""The device bench counts the work that is done, and measures what it is set against."""

from __future__ import annotations

import json

import pytest
import torch
from test_bench import folder, short_documents
from tiny import random_ids

from lm_eval_latentref.bench import ceilings, device, subjects
from lm_eval_latentref.bench.workload import Costs, Meter
from lm_eval_latentref.errors import LatentRefError

__all__ = ["folder", "short_documents"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch, short_documents):
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 32})
    monkeypatch.setattr(ceilings, "COPIED_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(subjects, "prosqa_prompts", lambda num: [f"Tom {n}\n" for n in range(num)])


def counted(contexts):
    reasoner = subjects.build("tiny", device=CPU, dtype="float32")
    meter = Meter(reasoner)
    device.answer(reasoner, meter, contexts)
    return reasoner, meter.phases


def test_every_forward_is_counted_in_its_phase():
    reasoner, phases = counted([random_ids(9, seed=1), random_ids(5, seed=2)])
    forwards = reasoner.accounting.report()["forwards"]
    assert {name: work.forwards for name, work in phases.items()} == {
        "encode": 3,
        "think": 15,
        "decode": device.NEW_TOKENS,
    }
    assert sum(forwards.values()) == sum(work.forwards for work in phases.values())


def test_padding_is_no_work():
    alone = [counted([context])[1] for context in (random_ids(9, seed=1), random_ids(5, seed=2))]
    _, together = counted([random_ids(9, seed=1), random_ids(5, seed=2)])
    for name, work in together.items():
        assert work.flops == pytest.approx(sum(one[name].flops for one in alone))
    # The weights are read once a forward, however many rows there are.
    assert together["think"].num_bytes < sum(one["think"].num_bytes for one in alone)


def test_operations_are_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    reasoner = subjects.build("tiny", device=CPU, dtype="float32")
    network, ids_BL = reasoner.backbone, torch.tensor([random_ids(12, seed=3)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.causal_lm.base_model(ids_BL)
    work = Costs.of(network, None).work(num_new=12, num_seen=78, num_past=0, num_logits=0)
    matrices = sum(
        flops
        for kind, flops in counter.get_flop_counts()["Global"].items()
        if str(kind) in ("aten.mm", "aten.addmm")
    )
    assert work.flops - 4 * 78 * 2 * 64 == matrices


def test_a_type_that_is_none_is_refused_in_one_line():
    for dtype in ("bf16", "int8", "nn"):
        with pytest.raises(LatentRefError, match=f"dtype={dtype}: give a floating-point type"):
            device.run(models="tiny", dtype=dtype)


def test_the_shapes_have_the_size_of_the_models_they_are_named_after():
    with torch.device("meta"):
        sizes = {
            name: sum(
                weight.numel()
                for weight in subjects.AutoModelForCausalLM.from_config(make()).parameters()
            )
            for name, make in subjects.SHAPES.items()
        }
    assert sizes["qwen2.5-1.5b"] == 1_543_714_304
    assert sizes["llama-3.2-3b"] == 3_212_749_824


def test_adapters_and_random_shapes_run_side_by_side(folder):
    report = device.run(
        rounds=2,
        batch_size=2,
        dtype="float32",
        models=f"tiny,{subjects.ADAPTERS}",
        pretrained=folder,
    )
    record = json.loads(report.line())
    assert record["models"].keys() == {"tiny", subjects.ADAPTERS}
    for found in record["models"].values():
        assert found["phases"].keys() == {"encode", "think", "decode"}
        assert all(one["of_memory_rate"]["median"] > 0 for one in found["phases"].values())
    assert {"peaks", "versions", "machine", "dtype"} <= record.keys()
    assert len(report.rows) == 6


def test_only_the_own_adapter_counts(folder):
    options = {"device": CPU, "dtype": "float32", "pretrained": folder}
    reasoner = subjects.build(subjects.ADAPTERS, **options)
    loaded = reasoner.loaded
    own, none = (Costs.of(reasoner.backbone, name) for name in (loaded.backbone.adapter, None))
    all_weights = sum(
        weight.numel()
        for name, weight in loaded.backbone.model.named_parameters()
        if "lora" in name
    )
    assert own.weights - none.weights == all_weights // 3


def test_what_bounds_a_phase_is_the_larger_fraction_if_it_is_large():
    assert device.bound(0.1, 0.2) == "launches and small kernels"
    assert device.bound(0.5, 0.2) == "matrix products"
    assert device.bound(0.5, 0.6) == "memory"


def test_a_model_that_is_not_known_is_named_with_those_that_are():
    with pytest.raises(LatentRefError, match=r"--models gpt5: it must be one or more of smollm2"):
        device.run(models="tiny,gpt5")
