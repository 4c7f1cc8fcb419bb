"""A GPU gives the CPU's numbers, in any batch; no document is lost when memory runs out."""

from __future__ import annotations

import copy
import dataclasses
import json

import bench
import device as device_script
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from thought_cases import CONTEXTS as IDS
from thought_cases import CONTINUATIONS, MARKER_IDS, assert_same_scores, expected
from tiny import HIDDEN_SIZE, random_ids, tiny_model
from tiny_lm import CONTEXTS, GREEDY, REFINED, assert_close, latentref, pairs, requests

from lm_eval_latentref.latent.batching import RowLimit, in_batches
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.scoring import score
from lm_eval_latentref.latent.thoughts import Context, Markers, References, Thinking, think
from lm_eval_latentref.training.curriculum import Row
from lm_eval_latentref.training.loss import loss_sum, num_labelled

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")
BOTH = RefinementConfig(latent_steps=3, memory_rate=0.4, search_step_size=3.0 * HIDDEN_SIZE / 2)
THROUGH = dataclasses.replace(BOTH, search_gradient="through")
PLAIN = RefinementConfig(latent_steps=3)
FAMILIES = ("gpt2", "llama", "qwen3", "gemma3")
MARKERS = Markers((290,), (291,))
WHOLE = 1.0


def on(device, family, config, *, dtype=torch.float32, batch_size=5, max_rows=4):
    """The scores of test_thoughts' contexts by models on `device`."""
    backbone, strong, weak = (
        Network(tiny_model(family, seed).to(device, dtype)) for seed in range(3)
    )
    actual = []
    with torch.no_grad():
        for start in range(0, len(IDS), batch_size):
            rows = slice(start, start + batch_size)
            thoughts = think(
                Context.pad(IDS[rows], device=device),
                backbone=backbone,
                references=References(strong, weak) if config.searches else None,
                config=config,
                markers=Markers(MARKER_IDS[:1], MARKER_IDS[1:]),
            )
            actual += score(thoughts, CONTINUATIONS[rows], max_rows=max_rows)
    return actual


@pytest.mark.parametrize("config", [PLAIN, BOTH, THROUGH], ids=["plain", "detached", "through"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_oracle_and_of_the_cpu(family, config):
    actual = on(CUDA, family, config)
    assert_same_scores(actual, expected(family, config, markers=True))
    assert_same_scores(actual, on("cpu", family, config))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_changes_nothing(batch_size):
    actual = on(CUDA, "llama", BOTH, batch_size=batch_size, max_rows=batch_size)
    assert_same_scores(actual, on(CUDA, "llama", BOTH))


def test_bf16_is_finite_and_near():
    wanted = expected("llama", PLAIN, markers=True)
    for row, wanted_row in zip(on(CUDA, "llama", PLAIN, dtype=torch.bfloat16), wanted, strict=True):
        for (value, _), (wanted_value, _) in zip(row, wanted_row, strict=True):
            assert value == pytest.approx(wanted_value, rel=0.1, abs=0.5)
    for row in on(CUDA, "llama", BOTH, dtype=torch.bfloat16):
        assert all(torch.tensor(value).isfinite() for value, _ in row)


@pytest.mark.parametrize("extra", [{}, REFINED, {**REFINED, "search_gradient": "through"}])
def test_log_likelihoods_and_greedy_text_are_the_cpus(folders, extra):
    gpu, cpu = (latentref(folders, device=device, **extra) for device in ("cuda", "cpu"))
    assert_close(gpu.loglikelihood(pairs()), cpu.loglikelihood(pairs()))
    texts = requests([(context, GREEDY) for context in CONTEXTS])
    assert gpu.generate_until(texts) == cpu.generate_until(texts)
    assert gpu.reasoner.backbone.device.type == "cuda"


def test_no_thought_and_no_marker_is_hf(folders):
    hf = HFLM(folders["plain"], device="cuda", dtype="float32", batch_size=4)
    lm = latentref(folders, "plain", device="cuda")
    assert_close(lm.loglikelihood(pairs()), hf.loglikelihood(pairs()))
    texts = requests([(context, GREEDY) for context in CONTEXTS[:-1]])
    assert lm.generate_until(texts) == hf.generate_until(texts)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_greedy_text_is_the_same_in_any_batch(folders, batch_size):
    texts = requests([(context, GREEDY) for context in CONTEXTS])
    actual = latentref(folders, device="cuda", batch_size=batch_size, **REFINED)
    wanted = latentref(folders, device="cuda", batch_size=2, **REFINED)
    assert actual.generate_until(texts) == wanted.generate_until(texts)


def test_adapters_on_one_base_answer_as_on_the_cpu(monkeypatch):
    # Made on the CPU, so that both have the same weights.
    monkeypatch.setattr(bench, "device", lambda: torch.device("cpu"))

    def placed(device):
        reasoner = device_script.build(device_script.ADAPTERS, bench.parse("", ["--tiny"]))
        reasoner.loaded.backbone.model.to(device)
        return reasoner

    contexts = [random_ids(9, seed=1), random_ids(5, seed=2)]
    actual, wanted = (
        placed(device).score(contexts, [[(5, 6), (7,)]] * 2, max_rows=4)
        for device in ("cuda", "cpu")
    )
    assert_same_scores(actual, wanted)


@pytest.mark.parametrize("num_thoughts", [0, 2])
def test_loss_and_gradients_of_a_training_step_are_the_cpus(num_thoughts):
    rows = [
        Row(random_ids(5 + n, seed=n), num_thoughts, random_ids(6 - n, seed=9 + n))
        for n in range(3)
    ]
    model = tiny_model("llama").requires_grad_()
    gpu = copy.deepcopy(model).to(CUDA)
    losses = [
        loss_sum(rows, network=Network(each), markers=MARKERS) / num_labelled(rows)
        for each in (model, gpu)
    ]
    assert losses[1].item() == pytest.approx(losses[0].item(), abs=1e-5)
    for loss in losses:
        loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), gpu.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad.cpu(), ours.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_phases_of_a_gpu_add_up_and_its_memory_is_reported(capsys):
    assert device_script.main(["--tiny"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    actual = record["models"]["tiny"]
    assert actual["peak_memory_bytes"]["cuda:0"] > 0
    phases = sum(each["seconds"][0] for each in actual["phases"].values())
    assert 0 < phases <= 1.05 * 2 / actual["documents_per_second"][0]
    assert record["machine"]["gpu"]
    assert record["machine"]["cuda"]


@pytest.fixture
def little_memory():
    """Limits this process to a number of additional bytes until the test ends."""

    def leave(num_bytes):
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + num_bytes) / total
        )

    yield leave
    torch.cuda.set_per_process_memory_fraction(WHOLE)
    torch.cuda.empty_cache()


def test_memory_that_runs_out_halves_the_batch_and_loses_no_document(little_memory):
    """The allocator refuses: its limit is a third of the memory that all rows together need."""
    reasoner = device_script.build("tiny", bench.parse("", ["--tiny"]))
    contexts = [tuple(each % 256 for each in random_ids(200, seed=seed)) for seed in range(512)]
    tried = []

    def scored(batch, max_rows):
        tried.append(len(batch))
        return reasoner.score(batch, [[(5, 6)]] * len(batch), max_rows=max_rows)

    wanted = scored(contexts, len(contexts))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scored(contexts, len(contexts))
    little_memory((torch.cuda.max_memory_allocated() - before) // 3)
    limit = RowLimit(len(contexts), num_items=len(contexts))
    results = in_batches(contexts, limit=limit, work=scored)
    assert_same_scores([each for _, scores in results for each in scores], wanted)
    assert min(tried) < len(contexts)


@pytest.fixture
def waits():
    """Whether torch waits for the device during a call."""

    def actual(call):
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return False

    # Reading a number waits: what says so must be able to.
    assert actual(lambda: torch.ones(1, device=CUDA).item())
    return actual


def test_a_thought_waits_for_nothing(waits):
    backbone, strong, weak = (Network(tiny_model("llama", seed).to(CUDA)) for seed in range(3))
    thinking = Thinking(
        Context.pad([random_ids(9, seed=1), random_ids(9, seed=2)], device=CUDA),
        backbone=backbone,
        references=References(strong, weak),
        markers=Markers(MARKER_IDS[:1], MARKER_IDS[1:]),
    )
    with torch.no_grad():
        thinking.step(BOTH)
        assert not waits(lambda: thinking.step(BOTH))


def test_the_gradient_of_a_training_step_waits_for_nothing(waits):
    network = Network(tiny_model("llama").requires_grad_().to(CUDA))
    rows = [Row(random_ids(9, seed=n), 2, random_ids(6 - n, seed=9 + n)) for n in range(2)]

    def step():
        loss_sum(rows, network=network, markers=MARKERS).backward()

    step()
    assert not waits(step)
