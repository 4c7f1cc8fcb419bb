"""lm-eval as a user runs it: its own mathqa, chat templates, --config, logged samples."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager
from tiny import tiny_model, tiny_tokenizer
from tiny_lm import REFINED

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.harness.command import run

ROWS = [
    {
        "Problem": f"the average of {n} numbers is {n + 4} . find the sum of them",
        "Rationale": f"sum = {n} * {n + 4} . answer : b",
        "options": f"a ) {n} , b ) {n * (n + 4)} , c ) 4 , d ) {n + 4} , e ) none of these",
        "correct": "abcde"[n % 5],
        "annotated_formula": "multiply(n0,n1)",
        "linear_formula": "multiply(n0,n1)|",
        "category": "general",
    }
    for n in range(2, 9)
]
SETTINGS = {**REFINED, "dtype": "float32"}

pytestmark = pytest.mark.usefixtures("few_built_in_tasks")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder for LATENTREF_DATA, and lm-eval's own mathqa with the rows of that folder."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mathqa").mkdir()
    for split in ("train", "validation", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (folder / "mathqa" / f"{split}.jsonl").write_text(lines)
    built_in = Path(lm_eval.__file__).parent / "tasks" / "mathqa" / "mathqa.yaml"
    files = {split: str(folder / "mathqa" / f"{split}.jsonl") for split in ("train", "test")}
    local = {
        "include": str(built_in),
        "task": "mathqa_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {**files, "validation": files["test"]}},
    }
    (folder / "mathqa_local.yaml").write_text(yaml.safe_dump(local))
    return folder


def model_args(folders):
    references = {"strong": folders["strong"], "weak": folders["weak"]}
    return {"pretrained": folders["marked"], **references, **SETTINGS}


def evaluate(folders, data, monkeypatch, tasks, **kwargs):
    monkeypatch.setenv("LATENTREF_DATA", str(data))
    return lm_eval.simple_evaluate(
        model="latentref",
        model_args=model_args(folders),
        tasks=tasks,
        task_manager=TaskManager(include_path=[str(tasks_path()), str(data)]),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        **kwargs,
    )


def test_lm_evals_own_mathqa_and_ours_give_the_same_numbers(folders, data, monkeypatch):
    tasks = ["mathqa_local", "latentref_mathqa_harness"]
    results = evaluate(folders, data, monkeypatch, tasks)
    own, ours = (results["results"][task] for task in tasks)
    assert {k: v for k, v in own.items() if "acc" in k} == {
        k: v for k, v in ours.items() if "acc" in k
    }
    responses = [
        [sample["filtered_resps"] for sample in results["samples"][task]] for task in tasks
    ]
    assert responses[0] == responses[1]
    assert len(responses[0]) == len(ROWS)


def test_the_command_of_the_readme_evaluates(folders, data, monkeypatch, capsys):
    monkeypatch.setenv("LATENTREF_DATA", str(data))
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^lm_eval ((?:.*\\\n)*.*--batch_size.*)", text, re.MULTILINE)
    roles = {"COCONUT": "marked", "LATE": "strong", "EARLY": "weak"}
    for given, name in roles.items():
        command = command.replace(f"={given},", f"={folders[name]},")
    command = command.replace("$(latentref tasks-path)", str(tasks_path()))
    words = shlex.split(command.replace("\\\n", " "))
    run([*words, "--limit", "2", "--device", "cpu"])
    assert "|latentref_mathqa_mc|" in capsys.readouterr().out


def test_the_results_tell_the_run_apart(folders, data, monkeypatch):
    results = evaluate(folders, data, monkeypatch, ["latentref_mathqa_mc"], limit=2)
    recorded = results["config"]["latentref"]
    assert {name: recorded[name] for name in REFINED} == REFINED
    assert recorded["strong"]["name"] == folders["strong"]
    assert len({recorded[name]["fingerprint"] for name in ("backbone", "strong", "weak")}) == 3
    assert recorded["data"]["mathqa test"]["rows"] == len(ROWS)
    json.dumps(recorded)


def test_chat_templates_and_few_shots_reach_the_model(folders, data, tmp_path, monkeypatch):
    from lm_eval_latentref.harness.model import LatentRefLM

    seen = []
    encode = LatentRefLM.tok_encode

    def spy(self, string, *args, **kwargs):
        seen.append(string)
        return encode(self, string, *args, **kwargs)

    monkeypatch.setattr(LatentRefLM, "tok_encode", spy)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    tokenizer.save_pretrained(tmp_path)
    folders = {**folders, "marked": str(tmp_path)}
    tiny_model("gpt2", 0).save_pretrained(tmp_path)
    evaluate(
        folders,
        data,
        monkeypatch,
        ["mathqa_local"],
        limit=1,
        num_fewshot=1,
        apply_chat_template=True,
    )
    assert any(text.startswith("<user>Question:") and "Answer:" in text for text in seen)


def test_config_file_samples_cache_and_output_work_together(
    folders, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("LATENTREF_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    config = {
        "model": "latentref",
        "model_args": model_args(folders),
        "tasks": ["latentref_mathqa_mc", "latentref_mathqa"],
        "gen_kwargs": {"max_gen_toks": 4},
        "device": "cpu",
        "batch_size": 2,
        "limit": 3,
        "log_samples": True,
        "output_path": str(tmp_path / "out"),
        "use_cache": str(tmp_path / "cache"),
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    answers = []
    for _ in range(2):
        run(["--config", "run.yaml"])
        samples = sorted(tmp_path.rglob("samples_*.jsonl"))
        lines = [line for path in samples[-2:] for line in path.read_text().splitlines()]
        answers.append([json.loads(line)["filtered_resps"] for line in lines])
        for path in samples:
            path.unlink()
    assert len(answers[0]) == 6
    assert answers[0] == answers[1]
    printed = capsys.readouterr()
    assert "latentref_mathqa_mc" in printed.out
    assert list(tmp_path.rglob("results_*.json"))
    assert list(tmp_path.glob("cache_rank0.db"))
