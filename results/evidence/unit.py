"""One unit of the evidence: one seed of one task, trained from nothing and judged on every row.

    python results/evidence/unit.py graph 0 --work out/evidence

Writes TASK-SEED.json beside this script. Everything finished is kept below --work, so the same
command goes on where it stopped. `page.py` makes the page of all units that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from plan import MEMORY_RATES, PLANS, STEP_SIZES, Plan, Rung

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, read_manifest
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.judge import Judged, judge
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.settings import Grid, Outcome, Setting
from lm_eval_latentref.evaluation.statistics import mean_intervals
from lm_eval_latentref.evaluation.sweep import Sweep, load_model, sweep
from lm_eval_latentref.evaluation.sweep_model import SweepModel
from lm_eval_latentref.training.log import read_training
from lm_eval_latentref.training.recipe import load_recipe
from lm_eval_latentref.training.trainer import train

BATCH_SIZE = 500
MOST_TOKENS = 16
"""Of a written answer; all steps and the answer take 11."""

Json = dict[str, Any]


class Unit:
    """One task and seed; `folder` holds the trained set and all journals.

    Args:
        limit: the first so many problems of each split only, to try it.
    """

    def __init__(
        self,
        task: str,
        seed: int,
        work: Path,
        *,
        plan: Plan | None = None,
        limit: int | None = None,
    ) -> None:
        self.task, self.seed, self.limit = task, seed, limit
        self.plan = plan or PLANS[task]
        self.folder = work / f"{task}-{seed}"
        self.set = self.folder / "set"

    def run(self) -> Json:
        """Trains and judges what is missing; all of it as one JSON object."""
        train(load_recipe(self.plan.recipe, [f"seed={self.seed}", f"output={self.set}"]))
        baselines = {
            name: self._kept(f"written-{part}", lambda part=part: self._written(part))
            for name, part in self._baselines().items()
        }
        rungs = [
            self._kept(rung.name, lambda rung=rung: self._rung(rung)) for rung in self.plan.rungs
        ]
        log = read_training(str(self.set))
        return {
            "task": self.task,
            "seed": self.seed,
            "plan": dataclasses.asdict(self.plan),
            "training_seconds": dict(log.seconds) if log else {},
            "baselines": baselines,
            "rungs": rungs,
            "versions": versions(),
            "machine": machine(),
        }

    def _baselines(self) -> dict[str, str]:
        """Parts of the set that answer by writing, by the names of their rows."""
        rungs = {f"{what} {name}": f"epochs/{name}" for what, name in self._by_rung()}
        return {
            "No-CoT": "no_cot",
            "CoT": "strong",
            "CoT, weak reference": "weak",
            "pause, finished": "pause",
            "Coconut, finished": ".",
            **rungs,
        }

    def _by_rung(self) -> list[tuple[str, str]]:
        rungs = self.plan.rungs
        return [("pause", rung.pause) for rung in rungs] + [
            ("Coconut", each.name) for each in rungs
        ]

    def _kept(self, name: str, make: Any) -> Json:
        """What `make` returns, or returned when it was last called under this name."""
        path = self.folder / "results" / f"{name.replace('/', '-')}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(make()), encoding="utf-8")
        content: Json = json.loads(path.read_text(encoding="utf-8"))
        return content

    def _written(self, part: str) -> Json:
        """Accuracy of a part of the set by what it writes."""
        documents = [
            request.doc for request in load_task(self.plan.task, limit=self.limit).requests
        ]
        reasoner = load(str(self.set / part))
        correct: list[bool] = []
        for start in range(0, len(documents), BATCH_SIZE):
            batch = documents[start : start + BATCH_SIZE]
            answers = reasoner.ask_all(
                [document["question"] for document in batch], max_new_tokens=MOST_TOKENS
            )
            correct += [
                each.answer == doc["answer"] for each, doc in zip(answers, batch, strict=True)
            ]
        steps = [len(document["steps"]) for document in documents]
        return {
            "accuracy": float(np.mean(correct)),
            "correct": _packed(correct),
            "by_steps": {
                number: {
                    "num": steps.count(number),
                    "accuracy": float(
                        np.mean([c for c, n in zip(correct, steps, strict=True) if n == number])
                    ),
                }
                for number in sorted(set(steps))
            },
        }

    def _rung(self, rung: Rung) -> Json:
        """All rows of one rung."""
        backbone, earlier = (str(self.set / "epochs" / name) for name in (rung.name, rung.earlier))
        references = {
            "paper": (str(self.set / "strong"), str(self.set / "weak")),
            "control": (str(self.set), backbone),
            "self": (backbone, earlier),
        }
        test = load_task(f"{self.plan.task}_mc", limit=self.limit)
        content: Json = {
            "name": rung.name,
            "problems": len(test.documents),
            "rows": {},
            "eta": {},
            "dev": {},
        }
        for contrast, (strong, weak) in references.items():
            args = {
                "pretrained": backbone,
                "strong": strong,
                "weak": weak,
                "batch_size": BATCH_SIZE,
            }
            place = self.folder / rung.name
            swept, model = self._sweep(args, place / contrast, full=contrast == "paper")
            rows = _rows(contrast, swept)
            steps = swept.choice.best["plain"].setting.latent_steps
            line = [Setting(latent_steps=steps, step_size=size) for size in STEP_SIZES]
            if contrast == "self":
                line = []
            judged = judge(
                model,
                test,
                [*rows.values(), *line],
                plain=Setting(latent_steps=steps),
                journal=place / "test.jsonl",
                seed=self.seed,
            )
            content["latent_steps"] = steps
            content["rows"] |= dict(zip(rows, map(_as_json, judged), strict=False))
            content["eta"][contrast] = [_in_line(each) for each in judged[len(rows) :]]
            content["dev"][contrast] = _dev(swept, self.seed)
        return content

    def _sweep(self, args: Json, output: Path, *, full: bool) -> tuple[Sweep, SweepModel]:
        """The grid on the dev split; of the controls, its row without residual mixing."""
        manifest = read_manifest(Path(args["pretrained"]) / MANIFEST_NAME)
        grid = Grid(
            latent_steps=(manifest.latent_steps or 0,),
            memory_rates=MEMORY_RATES if full else (0.0,),
            step_sizes=STEP_SIZES,
        )
        model = load_model(args, grid)
        result = sweep(
            args,
            task=f"{self.plan.task}_mc_dev",
            output=str(output),
            latent_steps=grid.latent_steps,
            memory_rates=grid.memory_rates,
            step_sizes=grid.step_sizes,
            limit=self.limit,
            model=model,
        )
        return result, model


def _rows(contrast: str, swept: Sweep) -> dict[str, Setting]:
    """The settings to judge, by the names of their rows: the best of each by dev margin."""
    best = {row: outcome.setting for row, outcome in swept.choice.best.items()}
    if contrast == "control":
        return {"control": best["search"]}
    if contrast == "self":
        return {"self-contrast": best["search"]}
    return {
        "Coconut": best["plain"],
        "+ residual": best["residual"],
        "+ search": best["search"],
        "both": best["both"],
        "recommended": swept.choice.recommended.setting,
    }


def _as_json(judged: Judged) -> Json:
    setting = {
        "memory_rate": judged.setting.memory_rate,
        "step_size": judged.setting.step_size,
        "latent_steps": judged.setting.latent_steps,
    }
    return {**dataclasses.asdict(judged), "setting": setting, "correct": _packed(judged.correct)}


def _in_line(judged: Judged) -> Json:
    named = ("accuracy", "margin", "difference", "margin_difference", "gained", "lost")
    return {"step_size": judged.setting.step_size} | {
        name: _as_json(judged)[name] for name in named
    }


def _packed(correct: Sequence[bool]) -> str:
    """Right and wrong as bits, first problem first, in hexadecimal digits."""
    return np.packbits(np.array(correct, dtype=bool)).tobytes().hex()


def _dev(swept: Sweep, seed: int) -> list[Json]:
    """Each setting of the grid against the plain one on the dev problems."""
    outcomes: Sequence[Outcome] = swept.outcomes
    (plain,) = [each for each in outcomes if each.setting.row == "plain"]
    values_SN = [
        np.array(each.correct, float) - np.array(plain.correct, float) for each in outcomes
    ]
    values_SN += [np.array(each.margins) - np.array(plain.margins) for each in outcomes]
    intervals = mean_intervals(values_SN, seed=seed, num_resamples=2000)
    return [
        {
            "memory_rate": each.setting.memory_rate,
            "step_size": each.setting.step_size,
            "accuracy": each.accuracy,
            "margin": each.margin,
            "difference": dataclasses.asdict(intervals[number]),
            "margin_difference": dataclasses.asdict(intervals[len(outcomes) + number]),
        }
        for number, each in enumerate(outcomes)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=sorted(PLANS))
    parser.add_argument("seed", type=int)
    parser.add_argument("--work", type=Path, required=True, help="folder of all that is finished")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lm_eval_latentref").setLevel(logging.INFO)
    content = Unit(args.task, args.seed, args.work).run()
    path = args.output / f"{args.task}-{args.seed}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
