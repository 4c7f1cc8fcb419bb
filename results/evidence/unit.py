"""One unit of the evidence: trains one seed of one task from scratch and evaluates every row.

    python results/evidence/unit.py graph 0 --work out/evidence

It writes TASK-SEED.json beside this script. Finished work is kept below --work, so the same command
continues where it stopped. `page.py` makes the page of all finished units.
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

from lm_eval_latentref.checkpoints.files import write_text
from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, read_manifest
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.judge import Judged, judge
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.settings import Grid, Outcome, Setting
from lm_eval_latentref.evaluation.statistics import mean_intervals, proportion_interval
from lm_eval_latentref.evaluation.study_options import Options
from lm_eval_latentref.evaluation.sweep import Sweep, load_model, sweep
from lm_eval_latentref.evaluation.sweep_model import SweepModel
from lm_eval_latentref.training.log import read_training
from lm_eval_latentref.training.recipe import load_recipe
from lm_eval_latentref.training.trainer import train

BATCH_SIZE = 500
MAX_TOKENS = 16
"""The maximum number of tokens of a text; all steps and the answer take 11."""

Json = dict[str, Any]


class Unit:
    """One task and seed; `folder` holds the trained set and all journals.

    Args:
        limit: only the first `limit` problems of each split, for tests.
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
        """Trains and evaluates what is missing; returns the whole unit as one JSON object."""
        train(load_recipe(self.plan.recipe, [f"seed={self.seed}", f"output={self.set}"]))
        baselines = {
            name: self._kept(f"written-{part}", lambda part=part: self._written(part))
            for name, part in self._baselines().items()
        }
        beats_chance = _lower_bound(baselines["Coconut, finished"]) > self.plan.chance
        rungs = [
            self._kept(rung.name, lambda rung=rung: self._rung(rung))
            for rung in self.plan.rungs
            if beats_chance or not self.plan.is_published
        ]
        log = read_training(str(self.set))
        return {
            "task": self.task,
            "seed": self.seed,
            "plan": dataclasses.asdict(self.plan),
            "training_seconds": dict(log.seconds) if log else {},
            "losses": dict(log.losses) if log else {},
            "accuracies": dict(log.accuracies) if log else {},
            "baselines": baselines,
            "rungs": rungs,
            "versions": versions(),
            "machine": machine(),
        }

    def _baselines(self) -> dict[str, str]:
        """The parts of the set that are judged by their full text, by the names of their rows."""
        rungs = {f"{phase} {name}": f"epochs/{name}" for phase, name in self._epochs()}
        return {
            "No-CoT": "no_cot",
            "CoT": "strong",
            "CoT, weak reference": "weak",
            "pause, finished": "pause",
            "Coconut, finished": ".",
            **rungs,
        }

    def _epochs(self) -> list[tuple[str, str]]:
        rungs = self.plan.rungs
        return [("pause", rung.pause) for rung in rungs] + [
            ("Coconut", rung.name) for rung in rungs
        ]

    def _kept(self, name: str, make: Any) -> Json:
        """The result of `make`, which is called once and kept in a file of this name."""
        path = self.folder / "results" / f"{name.replace('/', '-')}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(make()))
        content: Json = json.loads(path.read_text(encoding="utf-8"))
        return content

    def _written(self, part: str) -> Json:
        """The accuracy of a part of the set, judged by its full text."""
        documents = [
            request.doc for request in load_task(self.plan.task, limit=self.limit).requests
        ]
        reasoner = load(str(self.set / part))
        correct: list[bool] = []
        for start in range(0, len(documents), BATCH_SIZE):
            batch = documents[start : start + BATCH_SIZE]
            answers = reasoner.ask_all(
                [document["question"] for document in batch], max_new_tokens=MAX_TOKENS
            )
            correct += [
                answer.answer == doc["answer"] for answer, doc in zip(answers, batch, strict=True)
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
            content["eta"][contrast] = list(map(_in_line, judged[len(rows) :]))
            content["dev"][contrast] = _dev(swept, self.seed)
        return content

    def _sweep(self, args: Json, output: Path, *, full: bool) -> tuple[Sweep, SweepModel]:
        """The sweep on the dev split; if not `full`, without residual mixing."""
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


def _lower_bound(written: Json) -> float:
    """The lower end of the 95 % interval of an accuracy that `_written` returned."""
    num = sum(part["num"] for part in written["by_steps"].values())
    right = round(written["accuracy"] * num)
    return proportion_interval([1] * right + [0] * (num - right)).low


def _rows(contrast: str, swept: Sweep) -> dict[str, Setting]:
    """The settings to evaluate, by row: those with the best margin on the dev split."""
    settings = swept.choice.settings
    if contrast == "control":
        return {"control": settings["search"]}
    if contrast == "self":
        return {"self-contrast": settings["search"]}
    return {name: settings[row] for name, row in Options(recommended=True).refined.items()}


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
    """Right (1) and wrong (0) as bits in hexadecimal digits, in the order of the problems."""
    return np.packbits(np.array(correct, dtype=bool)).tobytes().hex()


def _dev(swept: Sweep, seed: int) -> list[Json]:
    """The settings of the grid compared with the plain setting on the dev problems."""
    outcomes: Sequence[Outcome] = swept.outcomes
    (plain,) = [outcome for outcome in outcomes if outcome.setting.row == "plain"]
    values_SN = [
        np.array(outcome.correct, float) - np.array(plain.correct, float) for outcome in outcomes
    ]
    values_SN += [np.array(outcome.margins) - np.array(plain.margins) for outcome in outcomes]
    intervals = mean_intervals(values_SN, seed=seed, num_resamples=2000)
    return [
        {
            "memory_rate": outcome.setting.memory_rate,
            "step_size": outcome.setting.step_size,
            "accuracy": outcome.accuracy,
            "margin": outcome.margin,
            "difference": dataclasses.asdict(intervals[number]),
            "margin_difference": dataclasses.asdict(intervals[len(outcomes) + number]),
        }
        for number, outcome in enumerate(outcomes)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=sorted(PLANS), help="what to train and evaluate on")
    parser.add_argument("seed", type=int, help="seed of the training")
    parser.add_argument("--work", type=Path, required=True, help="folder for finished work")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="folder of TASK-SEED.json"
    )
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lm_eval_latentref").setLevel(logging.INFO)
    content = Unit(args.task, args.seed, args.work).run()
    path = args.output / f"{args.task}-{args.seed}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
