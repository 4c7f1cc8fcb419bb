"""The benches measure what they say: same documents, fresh ones, equal answers, honest reports."""

from __future__ import annotations

import json
import logging

import oracle
import pytest
from tiny import random_ids, tiny_model, tiny_tokenizer

from lm_eval_latentref import bench
from lm_eval_latentref.bench import choices, generation, growth, memory, published, refinement
from lm_eval_latentref.bench.report import (
    NUM_WARM_UP,
    Report,
    Side,
    Spread,
    alternate,
    compare_speed,
    verdict,
)
from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig

MATHQA = [
    {"Problem": f"the average of {n} numbers is 12 .", "choices": list("12345"), "gold": n % 5}
    for n in range(20)
]
PROMPTS = [f"Every lempus is a gorpus. Tom is {n} lempus. Is Tom a gorpus?\n" for n in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer(markers=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def short_documents(monkeypatch):
    monkeypatch.setattr(choices, "mathqa_documents", lambda: MATHQA)
    monkeypatch.setattr(memory, "mathqa_documents", lambda: MATHQA)
    for module in (generation, refinement, growth, memory):
        monkeypatch.setattr(module, "prosqa_prompts", lambda num: PROMPTS[:num])
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@pytest.mark.parametrize("markers", [None, (297, 298)])
def test_the_published_loop_writes_what_the_oracle_writes(markers):
    model, context = tiny_model("llama"), random_ids(9, seed=1)
    config = RefinementConfig(latent_steps=3)
    prefix = oracle.prefix_embeds(context, config, markers, model)
    wanted = oracle.greedy_tokens(prefix, model, num_tokens=8, eos_id=-1)
    settings = {"markers": markers, "latent_steps": 3, "max_new_tokens": 8}
    assert published.generate(model, context, **settings, eos_id=None) == wanted
    stop = next(token for token in wanted if token != wanted[0])
    stopped = published.generate(model, context, **settings, eos_id=stop)
    assert stopped == wanted[: wanted.index(stop)]


def test_all_sides_get_the_same_documents_and_every_round_gets_fresh_ones():
    seen = []
    sides = [
        Side(name, lambda batch, name=name: seen.append((name, tuple(batch))) or list(batch))
        for name in "ab"
    ]
    rounds = alternate(sides, range(100), rounds=3, per_round=4)
    timed = seen[2:]
    assert [name for name, _ in timed] == ["a", "b", "b", "a", "a", "b"]
    used = [document for name, batch in timed if name == "a" for document in batch]
    assert used == list(range(NUM_WARM_UP, NUM_WARM_UP + 12))
    assert all(one.answers["a"] == one.answers["b"] for one in rounds)


def test_a_side_may_answer_fewer_and_is_compared_by_the_document():
    sides = [Side("slow", list, most=1), Side("fast", list)]
    (found,) = alternate(sides, range(20), rounds=1, per_round=4)
    assert found.answers == {"slow": [NUM_WARM_UP], "fast": list(range(2, 6))}
    found.seconds.update(slow=3.0, fast=2.0)
    assert compare_speed([found], slow="slow", fast="fast").ratio.median == pytest.approx(6.0)


def test_too_few_documents_are_said_to_be_so():
    with pytest.raises(LatentRefError, match="take 14 documents, there are 10; lower --rounds"):
        alternate([], range(10), rounds=3, per_round=4)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (choices, {"accuracy", "max_difference_float32", "counts"}),
        (generation, {"equal_texts_float32", "counts"}),
        (refinement, {"forwards_a_thought", "search_gradient"}),
    ],
)
def test_both_sides_agree_and_the_report_says_on_what_it_ran(module, expected, folder):
    report = module.run(rounds=2, documents=3, dtype="float32", batch_size=2, pretrained=folder)
    record = json.loads(report.line())
    assert record["failures"] == []
    common = {"ratio", "seconds", "model", "versions", "machine", "threads", "dtype", "command"}
    assert common | expected <= record.keys()
    assert len(record["seconds"]) == 2
    assert "median (range)" in report.table()


def test_the_published_loop_may_answer_fewer(folder):
    options = {"rounds": 1, "documents": 3, "dtype": "float32", "pretrained": folder}
    record = generation.run(**options, published_documents=1).record
    assert (record["documents"], record["published_documents"]) == (3, 1)
    assert record["equal_texts"] == [1, 1]
    with pytest.raises(LatentRefError, match="published_documents=0; give at least 1"):
        generation.run(**options, published_documents=0)


def test_a_detached_search_is_one_forward_a_thought_and_through_is_more(folder):
    options = {"rounds": 1, "documents": 1, "dtype": "float32", "pretrained": folder}
    detached = refinement.run(**options).record["forwards_a_thought"]
    assert detached == {"backbone": 1, "strong": 1, "weak": 1}
    through = refinement.run(**options, search_gradient="through").record["forwards_a_thought"]
    assert through == {"backbone": 1, "strong": 2, "weak": 2}


def test_sides_that_disagree_are_reported_and_fail_the_command(folder, monkeypatch, capsys):
    monkeypatch.setattr(generation, "published_texts", lambda lm, prompts: ["?"] * len(prompts))
    words = ["--rounds", "1", "--documents", "1", "--dtype", "float32", "--pretrained", folder]
    assert main(["bench", "generation", *words]) == 1
    *_, failed, line = capsys.readouterr().out.splitlines()
    assert failed == "FAILED: in float32 only 0 of 2 texts are equal"
    assert json.loads(line)["failures"]


@pytest.mark.parametrize(("value", "status"), [(3.1, 0), (3.3, 1)])
def test_a_missed_target_is_said_and_fails_the_command(value, status, monkeypatch, capsys):
    remarks = [verdict("time", value, at_most=3.2), "It took long."]
    report = Report(bench="x", header=("",), rows=[], remarks=remarks, record={})
    monkeypatch.setattr(bench, "run_bench", lambda name, **options: report)
    assert main(["bench", "refinement"]) == status
    text, line = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert ("MISSED" in text) is bool(status)
    assert json.loads(line)["missed"] == remarks[:status]


def test_counts_are_those_of_our_side_alone(folder):
    options = {"rounds": 1, "documents": 2, "dtype": "float32", "pretrained": folder}
    counts = choices.run(**options).record["counts"]
    # One forward reads the contexts, one the choices side by side.
    assert (counts["documents"], counts["forwards"]) == (8, {"backbone": 2})
    assert generation.run(**options).record["counts"]["thought_steps"] == 6 * 2


def test_accuracies_that_differ_by_more_than_chance_fail(folder, monkeypatch):
    def hits(answers, asked, calls=[]):  # noqa: B006
        calls.append(asked)
        return [len(calls) == 1] * len(asked)

    monkeypatch.setattr(choices, "hits_gold", hits)
    report = choices.run(rounds=1, documents=10, dtype="float32", pretrained=folder)
    assert report.failures == ["accuracies in float32 differ (McNemar's p 0.002)"]


def test_growth_has_a_line_and_counts_for_every_axis_and_draws_them(folder, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    few = {"thoughts": (1, 3), "search_steps": (1, 2), "choices": (1, 4)}
    monkeypatch.setattr(growth, "AXES", few)
    output = tmp_path / "made" / "growth.json"
    report = bench.run_bench(
        "growth", rounds=1, dtype="float32", pretrained=folder, output=str(output)
    )
    axes = json.loads(output.read_text())["axes"]
    assert axes.keys() == few.keys()
    forwards = [counts["forwards"] for counts in axes["search_steps"]["counts"]]
    assert [one["strong"] for one in forwards] == [6, 12]
    # Choices share a row up to 64 columns: more of them take no more forwards.
    assert len({one["forwards"]["backbone"] for one in axes["choices"]["counts"]}) == 1
    assert output.with_suffix(".svg").stat().st_size > 1000
    assert report.bench == "growth"


def test_a_line_is_found_again():
    line = growth.fit([1, 2, 5], [3.5, 4.0, 5.5])
    assert line == pytest.approx({"a": 3.0, "b": 0.5, "r2": 1.0})


def test_three_adapters_are_written_and_measured(folder, tmp_path):
    memory.write_checkpoints(str(tmp_path), folder, "float32")
    adapters = [str(tmp_path / name) for name in ("f", "strong", "weak")]
    common = {"dtype": "float32", "batch_size": 2, "device": "cpu"}
    peaks = memory.measure_adapters(adapters, (2, 4), common)
    assert peaks.keys() == {"loading", "choices", "generation"}
    assert memory.measure_hf(str(tmp_path / "base"), (2, 4), common).keys() == peaks.keys()


def test_memory_is_the_median_of_samples_on_fresh_documents(monkeypatch):
    asked = {memory.measure_hf: [], memory.measure_adapters: []}

    def sample(work, *args):
        if work is memory.write_checkpoints:
            return None
        asked[work].append(args[1])
        most = 100 if work is memory.measure_hf else 110 + 20 * len(asked[work])
        return {"loading": 50, "choices": 70, "generation": most}

    monkeypatch.setattr(memory, "in_fresh_process", sample)
    report = memory.run(rounds=3, documents=4)
    assert list(asked.values()) == [[(0, 4), (4, 8), (8, 12)]] * 2
    assert report.record["ratio"]["in all"] == {"median": 1.5, "low": 1.3, "high": 1.7}
    assert len(report.missed) == 1


@pytest.mark.slow
def test_memory_is_measured_in_fresh_processes():
    held = bytearray(400 * 2**20)
    # What this process holds does not count there, whatever importing torch takes.
    assert memory.in_fresh_process(memory._peak) < memory._peak() - len(held) // 2


def test_an_option_a_bench_has_not_is_named_with_those_it_has():
    with pytest.raises(LatentRefError, match="bench growth has no --documents; it takes --rounds"):
        bench.run_bench("growth", documents=3, batch_size=None)


def test_the_table_ends_in_remarks_and_the_spread_has_a_range():
    report = Report(bench="x", header=("", "s"), rows=[("a", "1")], remarks=["So."], record={})
    assert report.table().splitlines() == ["   s", "-  -", "a  1", "", "So."]
    assert str(Spread.of([2, 1, 9])) == "2 (1 to 9)"
    assert verdict("it", 3.1, at_most=3.2) == "it: 3.1, to be at most 3.2: reached."
    assert verdict("it", 2.4, at_least=2.5) == "it: 2.4, to be at least 2.5: MISSED."


def test_a_written_report_has_its_table_and_command_beside_the_numbers(tmp_path):
    report = Report(
        bench="choices",
        header=("side", "speed"),
        rows=[("ours", "2")],
        remarks=["twice"],
        record={"command": "latentref bench choices", "machine": {"cpu": "any"}},
    )
    report.write(str(tmp_path / "new" / "choices.json"))
    page = (tmp_path / "new" / "choices.md").read_text()
    for part in ("`latentref bench choices`", report.table(), "Machine: cpu any."):
        assert part in page
    assert json.loads((tmp_path / "new" / "choices.json").read_text())["bench"] == "choices"
