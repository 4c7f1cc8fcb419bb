"""The scripts of results/performance: both sides answer alike, and a report says what it judged."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import bench
import choices
import device
import earlier
import floor
import generation
import growth
import index
import kinds
import memory
import mixed
import oracle
import pages
import prefixes
import pytest
import refinement
import starting
import sweep
import torch
import train
import workload
from bench import Side
from pages import Report
from tiny import random_ids, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.thoughts import Markers
from lm_eval_latentref.training.curriculum import Row
from lm_eval_latentref.training.loss import loss_sum, num_labelled

SCRIPTS = (
    choices,
    device,
    earlier,
    floor,
    generation,
    growth,
    kinds,
    memory,
    mixed,
    prefixes,
    refinement,
    starting,
    sweep,
    train,
)
PROFILED = (choices, floor, generation, kinds, refinement, sweep, train)
OTHERS = ("bench", "pages", "phases", "workload", "index", "leaderboard")
"""Those that scripts share or that measure nothing, and one that is tested beside its command."""
FOLDER = Path(bench.__file__).parent
MARKERS = Markers((290,), (291,))


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    monkeypatch.setattr(bench, "device", lambda: torch.device("cpu"))


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, marks=[] if script is choices else [pytest.mark.slow])
        for script in SCRIPTS
    ],
    ids=lambda script: script.__name__,
)
def test_a_tiny_run_agrees_judges_no_target_and_writes_its_page(
    script, tmp_path, capsys, few_built_in_tasks
):
    output = tmp_path / "new" / f"{script.__name__}.json"
    profile = ["--profile"] if script in PROFILED else []
    assert script.main(["--tiny", *profile, "-o", str(output)]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["failures"], record["missed"]) == ([], [])
    assert record == json.loads(output.read_text())
    assert {"versions", "machine", "command", "options"} <= record.keys()
    page = output.with_suffix(".md").read_text()
    assert table[0] in page
    assert record["command"] in page
    assert ("one profiled batch" in page) == (script in PROFILED)


@pytest.mark.slow
def test_importing_brings_the_rooms_of_evaluation_and_no_package_that_hf_does_without():
    _, modules = starting.importing(str(PACKAGED_MODELS / "graph-small"))
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    assert packages == {"lm_eval_latentref"}
    rooms = {name.split(".")[1] for name in modules if name.count(".") > 1}
    assert rooms == {"latent", "checkpoints", "benchmarks", "harness"}


def test_every_script_says_what_it_takes(capsys):
    scripts = [path for path in FOLDER.glob("*.py") if path.stem not in OTHERS]
    assert {path.stem for path in scripts} == {script.__name__ for script in SCRIPTS}
    for script in SCRIPTS:
        with pytest.raises(SystemExit) as ended:
            script.main(["--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in ("--tiny", "--output")), script


def test_both_loops_write_what_the_oracle_writes():
    model = tiny_model("llama")
    contexts = [random_ids(9, seed=1), random_ids(5, seed=2)]
    config = RefinementConfig(latent_steps=workload.LATENT_STEPS)
    wanted = [
        oracle.greedy_tokens(
            oracle.prefix_embeds(context, config, None, model), model, num_tokens=16, eos_id=-1
        )
        for context in contexts
    ]
    assert [generation.published_ids(model, each, None) for each in contexts] == wanted
    assert generation.cached_ids(model, contexts, None) == wanted
    stop = next(token for token in wanted[0] if token != wanted[0][0])
    cut = [row[: row.index(stop)] if stop in row else row for row in wanted]
    assert generation.cached_ids(model, contexts, stop) == cut


def test_the_cached_loop_refines_as_the_oracle_does():
    models = [tiny_model("llama", seed) for seed in range(3)]
    config = workload.refined(models[0].config.hidden_size)
    contexts = [random_ids(9, seed=1), random_ids(5, seed=2)]
    wanted = [
        oracle.greedy_tokens(
            oracle.prefix_embeds(context, config, None, *models),
            models[0],
            num_tokens=16,
            eos_id=-1,
        )
        for context in contexts
    ]
    assert generation.cached_ids(models[0], contexts, None, models[1:]) == wanted


@pytest.mark.parametrize("num_thoughts", [0, 1, 3])
def test_the_published_step_has_our_loss_and_gradients(num_thoughts, monkeypatch):
    monkeypatch.setattr(train, "LATENT_ID", 292)  # GPT-2's is outside the tiny vocabulary
    rows = [
        Row(random_ids(5 + n, seed=n), num_thoughts, random_ids(6 - n, seed=9 + n))
        for n in range(3)
    ]
    ours, theirs = (tiny_model("gpt2").requires_grad_() for _ in range(2))
    loss = loss_sum(rows, network=Network(ours), markers=MARKERS) / num_labelled(rows)
    expected = train.published_loss(theirs, rows, MARKERS)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, actual), (_, wanted) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        torch.testing.assert_close(actual.grad, wanted.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_bare_products_are_those_of_the_whole_work_without_attention_and_padding():
    args = bench.parse("", ["--tiny"], documents=2, batch_size=2)
    lm = workload.load_lm(args)
    with FlopCounterMode(display=False) as counter:
        generation.bare_products(lm, ["abcde", "abc"], num_models=1)
    weights = sum(
        module.weight.numel()
        for module in lm.model.base_model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    columns = 5 + 3 + 2 * (workload.LATENT_STEPS + workload.NEW_TOKENS - 1)
    head = lm.model.get_output_embeddings().weight.numel()
    assert counter.get_total_flops() == 2 * (weights * columns + 2 * workload.NEW_TOKENS * head)


def test_the_index_lists_every_page_with_its_verdicts():
    assert {path.stem for path in FOLDER.glob("*.md")} - {"README"} <= set(index.QUESTIONS)
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == index.page()
    report = Report(name="x", header=("",), rows=[], record={})
    report.judge("time of a / b", [3.0, 4.0, 8.0], at_most=3.2)
    report.judge("time of c / d", [1.0])
    assert index.figures_of(report.table()) == ["time of a / b 4, at most 3.2: missed"]


def test_a_ratio_is_compared_with_its_limit_in_a_sentence_and_in_the_record():
    report = Report(name="x", header=("",), rows=[], record={})
    report.judge("time of a / b", [3.0, 4.0, 8.0], at_least=4, limit=(5.0, "columns read"))
    report.judge("time of b / c", [2.0], at_most=3, limit=(1.0, "columns read"))
    assert report.remarks[1::2] == [
        "time of a / b: the limit by columns read is 5; the median is 80% of it (more is better).",
        "time of b / c: the limit by columns read is 1; the median is 200% of it (less is better).",
    ]
    assert report.record["limits"] == {"time of a / b": 5.0, "time of b / c": 1.0}
    assert index.figures_of(report.table())[0] == "time of a / b 4, at least 4: reached"


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.json")), ids=lambda page: page.stem)
def test_a_page_says_what_its_script_does_and_with_which_options(page):
    record, text = json.loads(page.read_text()), page.with_suffix(".md").read_text()
    report = Report(name=record["bench"], header=("",), rows=[], record=record)
    empty = f"```\n{report.table()}\n```"
    about = sys.modules[record["bench"]].__doc__
    before, after = report.page(about).split(empty)
    assert text.startswith(before)
    assert text.endswith(after)


def test_products_are_counted_as_torch_counts_them():
    lm = workload.load_lm(bench.parse("", ["--tiny"], documents=2, batch_size=2))
    counting = workload.Counting(lm, lambda ids: lm.model(torch.tensor([ids])))
    with FlopCounterMode(display=False) as counter:
        counting([1, 2, 3])
    assert 2 * counting.products == counter.get_total_flops()  # torch leaves its attention out


def test_the_limit_of_prefixes_counts_each_token_that_a_side_reads():
    lm = workload.load_lm(bench.parse("", ["--tiny"], documents=2, batch_size=2))
    work = prefixes.WORKS["choices"]
    documents = prefixes.asked(work, 2, tiny=True)
    read = prefixes._tokens_read(work, lm, documents, {"tokens_encoded": 90, "tokens_shared": 30})
    texts = [[request.args for request in each[True]] for each in documents]
    after = sum(len(choice) - 1 for each in texts for _, choice in each)
    assert read[prefixes.HF] == after + sum(len(text) for each in texts for text, _ in each)
    assert read[prefixes.APART] == after + sum(len(each[0][0]) for each in texts)
    assert read[prefixes.OURS] == after + 60


def test_prompts_are_cut_to_a_mean_length():
    lm = workload.load_lm(bench.parse("", ["--tiny"], documents=2, batch_size=2))
    prompts = ["x" * 200] * 100
    lengths = [len(lm.tok_encode(prompt)) for prompt in workload.shortened(lm, prompts, 60)]
    assert set(lengths) <= set(range(39, 82))
    assert 57 < sum(lengths) / len(lengths) < 63
    assert workload.shortened(lm, prompts, None) == prompts


def test_sides_take_turns_on_the_same_documents_and_every_round_has_fresh_ones():
    seen = []
    sides = [
        Side(name, lambda batch, name=name: seen.append((name, tuple(batch))) or list(batch))
        for name in "ab"
    ]
    args = argparse.Namespace(rounds=3, documents=4)
    rounds = bench.alternate(sides, range(100), args)
    timed = seen[2:]
    assert [name for name, _ in timed] == ["a", "b", "b", "a", "a", "b"]
    used = [document for name, batch in timed if name == "a" for document in batch]
    assert used == list(range(bench.NUM_WARM_UP, bench.NUM_WARM_UP + 12))
    assert rounds.answers["a"] == rounds.answers["b"]
    with pytest.raises(LatentRefError, match="take 14 documents, there are 10; lower --rounds"):
        bench.alternate(sides, range(10), args)


def test_a_side_that_answers_fewer_is_compared_by_the_document():
    sides = [Side("slow", list, most=1), Side("fast", list)]
    rounds = bench.alternate(sides, range(20), argparse.Namespace(rounds=1, documents=4))
    assert [len(rounds.answers[name][0]) for name in ("slow", "fast")] == [1, 4]
    rounds.seconds.update(slow=[3.0], fast=[0.5])
    assert rounds.ratio("slow", "fast") == [6.0]


@pytest.mark.parametrize(
    ("value", "failure", "status"), [(3.1, None, 0), (3.3, None, 1), (3.1, "unequal", 1)]
)
def test_a_missed_target_and_unequal_answers_are_status_one(value, failure, status, capsys):
    report = Report(name="x", header=("",), rows=[], record={})
    report.judge("time", [value], at_most=3.2)
    report.check(failure is None, failure or "")
    assert report.finish(argparse.Namespace(output=None)) == status
    text, line = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert ("MISSED" in text) is (value > 3.2)
    assert ("FAILED: unequal" in text) is bool(failure)
    assert len(json.loads(line)["missed"]) == (value > 3.2)


@pytest.mark.slow
def test_a_detached_search_is_one_forward_a_thought_and_through_is_more(capsys):
    forwards = {}
    for gradient in ("detached", "through"):
        refinement.main(["--tiny", "--search_gradient", gradient])
        forwards[gradient] = json.loads(capsys.readouterr().out.splitlines()[-1])[
            "forwards_a_thought"
        ]
    assert forwards["detached"] == {"backbone": 1, "strong": 1, "weak": 1}
    assert forwards["through"] == {"backbone": 1, "strong": 2, "weak": 2}


def test_every_forward_of_the_device_script_is_counted_in_its_phase():
    args = bench.parse("", ["--tiny"], batch_size=1)
    reasoner = device.build("tiny", args)
    work = device.counted(reasoner, [tuple(range(9)), tuple(range(5))])
    assert work.forwards == {"encode": 3, "think": 15, "decode": workload.NEW_TOKENS}
    assert all(work.flops[phase] > 0 for phase in device.PHASES)


def test_what_bounds_a_phase_is_the_larger_fraction_if_it_is_large():
    assert device.bound(0.1, 0.2) == "launches and small kernels"
    assert device.bound(0.5, 0.2) == "matrix products"
    assert device.bound(0.5, 0.6) == "memory"


def test_shapes_have_the_size_of_the_models_they_are_named_after():
    sizes = {}
    with torch.device("meta"):
        for name in (workload.GPT2, workload.QWEN, workload.LLAMA):
            model = workload.AutoModelForCausalLM.from_config(workload.SHAPES[name]())
            sizes[name] = sum(weight.numel() for weight in model.parameters())
    assert list(sizes.values()) == [124_439_808, 1_543_714_304, 3_212_749_824]


@pytest.mark.parametrize("text", ["", "# page", "[]", '{"works": {}}'])
def test_a_file_that_is_no_record_is_refused_and_not_overwritten(text, tmp_path):
    path = tmp_path / "floor.json"
    path.write_text(text)
    args = argparse.Namespace(output=str(path), dtype="float32")
    with pytest.raises(LatentRefError, match="is not a record of this script"):
        pages.kept(args, "works")
    assert path.read_text() == text


@pytest.mark.slow
def test_memory_is_measured_in_fresh_processes():
    held = bytearray(400 * 2**20)
    # What this process holds does not count there, whatever importing torch takes.
    assert memory.in_fresh_process(bench.peak) < bench.peak() - len(held) // 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--dtype", "int8"], "dtype=int8: give a floating-point type"),
        (["--models", "gpt5"], "--models gpt5: give one or more of adapters"),
        (["--rounds", "0"], "rounds=0: give at least 1"),
        (["--rows", "-1"], "rows=-1: give at least 1"),
        (["-o", "."], "-o . cannot be written; give the name of a file"),
        (["-o", f"{__file__}/x.json"], "cannot be written"),
        (["-o", "page.md"], "-o page.md: .* give FILE.json"),
        (["--tiny", "-o", str(FOLDER / "choices.json")], "is the record of a whole run"),
        (["--clock", "cpu"], "clock=cpu: only on a CPU and with OMP_NUM_THREADS=1"),
    ],
)
def test_a_mistake_is_one_line(words, complaint, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(LatentRefError, match=complaint):
        device.main(words)


@pytest.mark.parametrize("commit", ["-f", "--help", "", "no-such-commit"])
def test_a_commit_that_is_none_is_refused(commit):
    args = argparse.Namespace(tiny=False, commit=commit)
    with pytest.raises(LatentRefError, match="git cannot check it out"), earlier.checked_out(args):
        pass


def test_a_version_is_not_checked_out_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    args = argparse.Namespace(tiny=False, commit="HEAD")
    with pytest.raises(LatentRefError, match="git cannot check it out"), earlier.checked_out(args):
        pass


def test_a_version_that_has_ended_is_a_mistake_of_one_line():
    with subprocess.Popen(
        [sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.wait()
        with pytest.raises(LatentRefError, match="ended before it answered"):
            earlier.answered(process, ["question"])
        process.communicate()


@pytest.mark.parametrize("script", [earlier, mixed])
def test_more_rounds_than_there_are_questions_are_refused_before_a_model_is_read(
    script, monkeypatch
):
    monkeypatch.setattr(workload, "prosqa", lambda num, tiny: ["question"] * min(num, 3))
    monkeypatch.setattr(script, "model" if script is mixed else "version", None)
    with pytest.raises(LatentRefError, match=r"rounds=1 take \d+ documents, there are 3"):
        script.main(["--tiny", "--rounds", "9"])
