"""Tasks whose problems we generate: their splits, candidates and metadata, and one run."""

from __future__ import annotations

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from task_names import GENERATED_TASKS

from lm_eval_latentref.benchmarks import documents, published
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.benchmarks.generators import generate as generate_rows
from lm_eval_latentref.benchmarks.prosqa import generate
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.dev_tasks import load_task


def test_a_generated_document_offers_its_candidates_with_the_right_one_marked():
    for name, options in (("graph", {}), ("arith", {"modulus": 7})):
        for made in documents.generated_documents(
            name, num=20, seed=3, split="validation", options=options
        ):
            assert made["prompt"] == made["question"] + "\n"
            assert made["choices"] == [f"### {each}" for each in made["candidates"]]
            assert made["choices"][made["gold"]] == made["answer_text"] == f"### {made['answer']}"


def test_problems_are_generated_once_in_a_process(monkeypatch):
    made: list[int] = []

    def counted(name, num, **given):
        made.append(num)
        return generate_rows(name, num, **given)

    monkeypatch.setattr(documents, "generate", counted)
    first, again = (
        documents.generated_documents("arith", num=17, seed=91, split="test") for _ in range(2)
    )
    assert first == again
    first[0]["gold"] = None
    third = documents.generated_documents("arith", num=17, seed=91, split="test")
    assert third == again
    other = documents.generated_documents("arith", num=17, seed=91, split="validation")
    assert other != again
    assert made == [17, 17]


def test_metadata_chooses_other_generated_problems():
    manager = TaskManager(
        include_path=str(tasks_path()),
        include_defaults=False,
        metadata={"generator_seed": 4, "num_documents": 3},
    )
    task = manager.load(["latentref_prosqa_generated"])["tasks"]["latentref_prosqa_generated"]
    questions = [document["question"] for document in task.eval_docs]
    assert questions == [row["question"] for row in generate(3, seed=4, split="test")]


@pytest.mark.parametrize("name", ["latentref_arith", "latentref_arith_mc_dev"])
def test_metadata_sets_the_generators_options(name):
    options = {"min_steps": 2, "max_steps": 2}
    metadata = {"num_documents": 4, "generator_options": options}
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=metadata)
    split = "validation" if name.endswith("_dev") else "test"
    expected = documents.generated_documents("arith", num=4, seed=0, split=split, options=options)
    assert list(manager.load([name])["tasks"][name].eval_docs) == expected
    assert {len(document["steps"]) for document in expected} == {2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_documents": 0}, "num_documents=0: give an integer, 1 or more"),
        ({"num_documents": "5"}, "num_documents='5'"),
        ({"generator_seed": [1]}, r"generator_seed=\[1\]: give an integer"),
        ({"generator_seed": None}, "generator_seed=None"),
        ({"generator_options": "nodes=18"}, "generator_options='nodes=18': give an object"),
    ],
)
def test_metadata_of_another_type_is_refused(given, message):
    with pytest.raises(LatentRefError, match=message):
        load_task("latentref_graph_mc", metadata=given)


def test_generated_tasks_run_end_to_end_without_data(manager, monkeypatch):
    from lm_eval.api.registry import get_model

    class Oracle(get_model("dummy")):
        """Answers by the gold path, as a model that has learnt the task would."""

        def generate_until(self, requests, disable_tqdm=False):
            return [f"{r.doc['steps'][-1]}\n### {r.doc['answer']}" for r in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            return [(-float(r.args[1] != r.doc["answer_text"]), False) for r in requests]

    monkeypatch.setenv(published.DATA_VARIABLE, "/no/such/folder")
    with documents.of_evaluations.recording() as recorded:
        run = lm_eval.simple_evaluate(
            model=Oracle(), tasks=GENERATED_TASKS, task_manager=manager, limit=5, bootstrap_iters=0
        )
    assert run["results"][GENERATED_TASKS[0]]["exact_match,answer"] == 1.0
    assert run["results"][GENERATED_TASKS[1]]["acc,none"] == 1.0
    logged = run["samples"][GENERATED_TASKS[0]][0]
    assert logged["filtered_resps"] == [logged["doc"]["answer"]]
    assert recorded["prosqa_generated test"]["seed"] == 0
