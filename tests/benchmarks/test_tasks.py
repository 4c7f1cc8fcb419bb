"""The task files load in lm-eval, have the specified prompts and scores, and run end to end."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import lm_eval
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager
from published_rows import (
    EXPECTED_CHOICES,
    EXPECTED_EXAMPLES,
    mathqa_row,
    published_files,
    write_folder,
)
from task_names import (
    ALL_TASKS,
    CHOOSING,
    CHOOSING_TASKS,
    GENERATED_DEV_TASKS,
    GENERATED_TASKS,
    GENERATING_TASKS,
    GROUPS,
    SAMPLING_TASKS,
)

from lm_eval_latentref.benchmarks import documents, published
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.benchmarks.prosqa import generate
from lm_eval_latentref.benchmarks.rows import BENCHMARKS
from lm_eval_latentref.benchmarks.splits import load_split
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import extract_answer

REAL_DATA = os.environ.get(published.DATA_VARIABLE)


@pytest.fixture(scope="module")
def fixture_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, published_files())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(published.DATA_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def asked():
    """How many problems generated tasks ask for."""
    make, nums = documents.generated_documents, {}

    def made(name="prosqa_generated", *, num, split="test", **options):
        nums[name, split] = num
        return make(name, num=num, split=split, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "generated_documents", made)
        yield nums


@pytest.fixture(scope="module")
def tasks(manager, fixture_data, asked):
    return manager.load(ALL_TASKS)["tasks"]


def first_document(task):
    return task.eval_docs[0]


def test_the_folder_declares_exactly_these_tasks_and_groups(manager):
    ours = {name for name in manager.all_tasks if name.startswith("latentref")}
    assert ours == {*ALL_TASKS, *SAMPLING_TASKS, *GROUPS}


def test_no_file_can_take_a_name_or_tag_of_lm_evals(manager):
    assert not manager.all_tags
    assert all(name.startswith("latentref") for name in manager.all_tasks)


@pytest.mark.parametrize("name", ALL_TASKS)
def test_a_task_names_its_version_and_takes_no_examples_by_default(name, tasks):
    assert tasks[name].config.metadata["version"] == 1.0
    assert tasks[name].config.num_fewshot == 0


@pytest.mark.parametrize("name", [*GENERATING_TASKS, *CHOOSING_TASKS])
def test_a_task_evaluates_the_split_of_its_name(name, tasks):
    benchmark, split = name.split("_")[1], "dev" if name.endswith("_dev") else "test"
    expected = documents.documents(benchmark, split)
    assert list(tasks[name].eval_docs) == expected
    assert tasks[name].has_test_docs() == (split == "test")


@pytest.mark.parametrize("name", [*GENERATING_TASKS, *CHOOSING_TASKS, *GENERATED_TASKS])
def test_the_context_is_the_question_and_one_newline(name, tasks):
    task, document = tasks[name], first_document(tasks[name])
    context = task.fewshot_context(document, num_fewshot=0)
    assert context == task.doc_to_text(document) == document["prompt"]
    assert context.endswith("\n")
    assert not context.endswith("\n\n")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_literal_rows_are_asked_and_answered_as_specified(name, tasks):
    row, example = EXPECTED_EXAMPLES[name]
    document = documents.document(name, row)
    task = tasks[f"latentref_{name}"]
    assert task.doc_to_text(document) == example.question + "\n"
    assert task.doc_to_target(document) == f"### {example.answer}"
    if name in EXPECTED_CHOICES:
        task = tasks[f"latentref_{name}_mc"]
        choices, gold = EXPECTED_CHOICES[name]
        assert (task.doc_to_choice(document), task.doc_to_target(document)) == (choices, gold)


@pytest.mark.parametrize("name", CHOOSING_TASKS)
def test_continuations_are_the_candidates_with_nothing_in_front(name, tasks):
    task, document = tasks[name], first_document(tasks[name])
    requests = task.construct_requests(document, document["prompt"])
    assert [r.args for r in requests] == [(document["prompt"], c) for c in document["choices"]]
    assert all(choice.startswith("### ") for choice in document["choices"])


@pytest.mark.parametrize("name", GENERATING_TASKS)
def test_generation_is_greedy_and_ends_at_the_end_token_only(name, tasks):
    assert tasks[name].config.generation_kwargs == {
        "until": [],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 256,
    }


def test_few_shot_examples_read_as_the_training_text(tasks):
    task = tasks["latentref_aqua"]
    task.set_fewshot_seed(1)
    shots = task.fewshot_context(first_document(task), num_fewshot=1).split("\n\n")
    assert len(shots) == 2
    assert shots[0].splitlines()[-1] == "### A"


@given(
    gold=st.text(alphabet="abc1,2 .#"),
    generated=st.text(alphabet="abc1,2 .#\n"),
    prefix=st.text(alphabet="ab#\n 1,"),
)
def test_exact_match_reads_both_sides_alike(gold, generated, prefix):
    document = {"answer_text": f"### {gold}"}
    judged = documents.exact_match(document, [generated])["exact_match"]
    assert judged == float(extract_answer(generated) == extract_answer(gold))
    assert documents.exact_match(document, [f"{prefix}### {gold}"]) == {"exact_match": 1.0}


@given(st.text(alphabet="ab#\n 1,"))
def test_the_logged_answer_is_judged_as_the_whole_text_is(text):
    from lm_eval.filters import build_filter_ensemble

    # Another loader than lm-eval's, to which the two function tags mean nothing.
    template = (tasks_path() / "_generate_yaml").read_text(encoding="utf-8")
    (chain,) = yaml.safe_load(template.replace("!function ", ""))["filter_list"]
    (regex, take_first) = chain["filter"]
    assert take_first == {"function": "take_first"}
    assert regex.pop("function") == "regex"
    ensemble = build_filter_ensemble(chain["name"], [["regex", regex]])
    ((logged,),) = ensemble.filters[0]().apply([[text]], [{}])
    assert extract_answer(logged) == extract_answer(text)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("### 1,005", 1.0),
        ("<<4+1=5>>\n### 1005\n", 1.0),
        (" 1005", 1.0),
        ("### 3 ### 1005", 1.0),
        ("### 1005 eggs", 0.0),
        ("1005 ###", 0.0),
        ("", 0.0),
    ],
)
def test_literal_generations_score_as_specified(text, score, tasks):
    task = tasks["latentref_gsm8k"]
    document = documents.document("gsm8k", EXPECTED_EXAMPLES["gsm8k"][0])
    assert task.process_results(document, [text]) == {"exact_match": score}


# Protocols, and several samples of a document.


def task_with(protocol, name):
    manager = TaskManager(
        include_path=str(tasks_path()), include_defaults=False, metadata={"protocol": protocol}
    )
    task = manager.load([name])["tasks"][name]
    task.build_all_requests(limit=1, rank=0, world_size=1)
    return task


@pytest.mark.parametrize(
    ("protocol", "prompt", "target"),
    [
        ("coconut", "{}\n", "### {}"),
        ("codi", "{}", "The answer is: {}"),
        (
            "colar",
            "Question: {} Let's think step by step:(Thinking speed: 5)",
            "Answer: {}",
        ),
    ],
)
def test_a_protocol_renders_the_same_documents(protocol, prompt, target, fixture_data, tasks):
    for name in ("latentref_gsm8k", "latentref_strategyqa_mc"):
        task, usual = task_with(protocol, name), tasks[name]
        assert list(task.eval_docs) == list(usual.eval_docs)
        document = first_document(usual)
        question = document["prompt"].removesuffix("\n")
        assert task.instances[0].args[0] == prompt.format(question)
        assert task.instances[0].doc == document
        if name.endswith("_mc"):
            choices = [request.args[1] for request in task.instances]
            assert choices == [target.format(answer) for answer in ("yes", "no")]
        else:
            answer = document["answer_text"].removeprefix("### ")
            assert task.doc_to_target(document) == target.format(answer)


def test_an_unknown_protocol_is_named(fixture_data):
    with pytest.raises(LatentRefError, match="protocol=soft: it must be coconut, codi, colar"):
        task_with("soft", "latentref_gsm8k")


@pytest.mark.parametrize("name", SAMPLING_TASKS)
def test_sampling_tasks_ask_sixteen_times(name, manager, fixture_data):
    task = manager.load([name])["tasks"][name]
    task.build_all_requests(limit=1, rank=0, world_size=1)
    (request,) = task.instances
    assert request.repeats == 16


def judged(manager, name, texts):
    return judged_by(manager.load([name])["tasks"][name], texts)


def judged_by(task, texts):
    """lm-eval's scores of these samples of the first document, by filter."""
    task.build_all_requests(limit=1, rank=0, world_size=1)
    (request,) = task.instances
    request.resps = list(texts)
    task.apply_filters()
    return {
        key: task.process_results(request.doc, [value])
        for key, value in request.filtered_resps.items()
    }


def test_a_vote_takes_the_answer_of_most_samples(manager, fixture_data):
    gold = first_document(manager.load(["latentref_gsm8k"])["tasks"]["latentref_gsm8k"])
    right = gold["answer_text"]
    actual = judged(manager, "latentref_gsm8k_vote", ["### 7", *[f"2+2 {right}"] * 9, *["x"] * 6])
    assert actual == {"answer": {"exact_match": 0.0}, "vote": {"exact_match": 1.0}}


@pytest.mark.parametrize(("protocol", "mark"), [("codi", "The answer is: "), ("colar", "Answer: ")])
def test_a_vote_counts_the_answers_where_the_protocol_writes_them(protocol, mark, fixture_data):
    """Each text solves the problem in words of its own, so that no two texts are equal."""
    task = task_with(protocol, "latentref_gsm8k_vote")
    right = task.protocol.gold_of(first_document(task)["answer_text"])
    texts = [f"{n} # {n} {mark}{right}{'.' * (n % 2)}" for n in range(9)]
    texts = [f"{mark}7", *texts, *[f"{mark}{-n}" for n in range(1, 7)]]
    actual = judged_by(task, texts)
    assert actual == {"answer": {"exact_match": 0.0}, "vote": {"exact_match": 1.0}}


@pytest.mark.parametrize("num_right", [0, 1, 5, 16])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(num_right, manager, fixture_data):
    gold = first_document(manager.load(["latentref_gsm8k"])["tasks"]["latentref_gsm8k"])
    texts = [gold["answer_text"]] * num_right + ["### none"] * (16 - num_right)
    (actual,) = judged(manager, "latentref_gsm8k_pass", texts).values()
    for k in (1, 4, 16):
        subsets = list(itertools.combinations(range(16), k))
        share = sum(any(i < num_right for i in subset) for subset in subsets) / len(subsets)
        assert actual[f"pass@{k}"] == pytest.approx(share)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_weighs_its_tasks_the_same(group, manager, fixture_data):
    loaded = manager.load([group])["groups"][group]
    suffix = group.removeprefix("latentref")
    names = BENCHMARKS if "mc" not in group else CHOOSING
    assert set(loaded.child_names) == {f"latentref_{name}{suffix}" for name in names}
    metrics = {m.metric: m for m in loaded.aggregate_metric_list}
    assert set(metrics) == ({"acc", "acc_norm"} if "mc" in group else {"exact_match"})
    assert not any(m.weight_by_size for m in metrics.values())


def built_in_mathqa(manager, folder, rows):
    """lm-eval's own task file with `rows` as its data set; it needs three splits."""
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    built_in = Path(lm_eval.tasks.__file__).parent / "mathqa" / "mathqa.yaml"
    task_file = folder / "mathqa.yaml"
    files = {split: str(data) for split in ("train", "validation", "test")}
    local = {
        "include": str(built_in),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
    }
    task_file.write_text(yaml.safe_dump(local), encoding="utf-8")
    return manager.load([str(task_file)])["tasks"]["mathqa"]


def assert_same_requests(ours, theirs):
    assert len(ours.eval_docs) == len(theirs.eval_docs)
    for our_document, their_document in zip(ours.eval_docs, theirs.eval_docs, strict=True):
        contexts = [
            task.fewshot_context(document, num_fewshot=0)
            for task, document in ((ours, our_document), (theirs, their_document))
        ]
        assert contexts[0] == contexts[1]
        assert [r.args for r in ours.construct_requests(our_document, contexts[0])] == [
            r.args for r in theirs.construct_requests(their_document, contexts[1])
        ]
        scores = [(-1.0 / (1 + i), False) for i in range(len(ours.doc_to_choice(our_document)))]
        assert ours.process_results(our_document, scores) == theirs.process_results(
            their_document, scores
        )


def test_the_harness_variant_asks_what_lm_evals_mathqa_asks(manager, tmp_path, tasks):
    theirs = built_in_mathqa(manager, tmp_path, published_files()["mathqa/test"])
    assert_same_requests(tasks["latentref_mathqa_harness"], theirs)


@pytest.mark.skipif(not REAL_DATA, reason="LATENTREF_DATA is not set")
@pytest.mark.parametrize(
    ("split", "num_rows"), [pytest.param("test", 2985, marks=pytest.mark.slow), ("dev", 447)]
)
def test_the_harness_variant_asks_the_same_of_every_real_row(split, num_rows, manager, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(published.DATA_VARIABLE, str(REAL_DATA))
        rows = load_split("mathqa", split).rows
        name = "latentref_mathqa_harness" + ("_dev" if split == "dev" else "")
        ours = manager.load([name])["tasks"][name]
    assert len(ours.eval_docs) == num_rows
    assert_same_requests(ours, built_in_mathqa(manager, tmp_path, rows))


def test_a_malformed_mathqa_row_stops_the_harness_variant(tmp_path, monkeypatch):
    broken = {**mathqa_row(1), "options": "a ) 1 , b ) 2"}
    write_folder(tmp_path, {"mathqa/test": [broken]})
    monkeypatch.setenv(published.DATA_VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match="malformed mathqa row"):
        documents.harness_documents("test")


@pytest.mark.parametrize(
    ("names", "split", "num"),
    [(GENERATED_TASKS, "test", 5000), (GENERATED_DEV_TASKS, "validation", 2000)],
)
def test_the_generated_tasks_have_the_problems_of_their_split(names, split, num, tasks, asked):
    nums = {"prosqa_generated": 500, "graph": num, "arith": num}
    assert nums == {name: asked[name, split] for name in nums}
    expected = {
        "prosqa": [documents.document("prosqa", row) for row in generate(40, seed=0, split=split)],
        "graph": documents.generated_documents("graph", num=num, seed=0, split=split),
        "arith": documents.generated_documents("arith", num=num, seed=0, split=split),
    }
    for name in names:
        assert list(tasks[name].eval_docs) == expected[name.split("_")[1]]
        assert tasks[name].has_test_docs() == (split == "test")


def test_the_records_of_loaded_data_tell_two_loads_apart(fixture_data):
    with documents.of_evaluations.recording() as splits:
        documents.documents("aqua", "dev")
    documents.documents("aqua", "test")
    assert list(splits) == ["aqua dev"]
    record = splits["aqua dev"]
    assert record["rows"] == 5
    assert record["origin"].startswith("aqua/validation.jsonl")
    assert len(record["sha256"]) == 64
