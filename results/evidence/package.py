"""Copies one rung of the unit graph 0 into the package, as the set `graph-small`.

    python results/evidence/package.py --work out/evidence

latentref.json gets the settings that validation recommends, demo.json the settings of the refined
rows of `latentref demo`. Both come from graph-0.json, so run `unit.py graph 0` first.

The set is the last rung. Of the three rungs of graph 0 between 65 and 90 per cent, it is the one on
which the recommended setting gains most on the test problems, so the demo shows the best case.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from plan import PLANS

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS

NAME, RUNG, SEED = "graph-small", "coconut-4-1", 0
PARTS = {
    ".": f"epochs/{RUNG}",
    "strong": "strong",
    "weak": "weak",
    "control": ".",
    "no_cot": "no_cot",
    "cot": "strong",
}
"""For each folder of the packaged set, the part of the trained set that is copied there."""

WEIGHTS = ("config.json", "generation_config.json", "model.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def package(trained: Path, unit: dict[str, Any], target: Path) -> None:
    """Copies the parts of `trained` to `target` and writes their settings."""
    (rung,) = [rung for rung in unit["rungs"] if rung["name"] == RUNG]
    hidden_size = json.loads((trained / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    for name, part in PARTS.items():
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in (*WEIGHTS, *TOKENIZER):
            shutil.copyfile(trained / part / file, folder / file)
        manifest = read_manifest(trained / part / MANIFEST_NAME)
        write_manifest(folder, dataclasses.replace(manifest, strong=None, weak=None))
    own = read_manifest(target / MANIFEST_NAME)
    write_manifest(target, _with_settings(own, rung, hidden_size))
    shown = json.dumps(_shown(rung, hidden_size), indent=2) + "\n"
    (target / "demo.json").write_text(shown, encoding="utf-8")


def _with_settings(own: Manifest, rung: dict[str, Any], hidden_size: int) -> Manifest:
    task = f"{PLANS['graph'].task}_mc_dev"
    text = (tasks_path() / f"{task}.yaml").read_text(encoding="utf-8")
    num_documents = int(text.partition("num_documents: ")[2].split()[0])
    return dataclasses.replace(
        own,
        **_options(rung["rows"]["recommended"], hidden_size),
        strong="strong",
        weak="weak",
        epoch=None,
        tuned_on=f"{task}, {num_documents} documents",
    )


def _shown(rung: dict[str, Any], hidden_size: int) -> dict[str, Any]:
    """The content of demo.json: model arguments of the refined rows, and the reason for them."""
    rows, dev = rung["rows"], rung["dev"]["paper"]
    chosen, why = rows["recommended"], "validation's choice"
    if not chosen["setting"]["step_size"]:
        searching = [setting for setting in dev if setting["step_size"]]
        best = max(searching, key=lambda setting: setting["margin"])
        chosen, why = {"setting": best}, "the grid's best search on validation, which chose none"
    return {
        "refined": _options(chosen, hidden_size),
        "refined_why": why,
        "control": _options(rows["control"], hidden_size),
    }


def _options(row: dict[str, Any], hidden_size: int) -> dict[str, float]:
    setting = row["setting"]
    return {
        "memory_rate": setting["memory_rate"],
        "search_step_size": setting["step_size"] * hidden_size / 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="the --work of unit.py")
    args = parser.parse_args()
    unit = json.loads((Path(__file__).parent / f"graph-{SEED}.json").read_text(encoding="utf-8"))
    package(args.work / f"graph-{SEED}" / "set", unit, PACKAGED_MODELS / NAME)
    print(PACKAGED_MODELS / NAME)


if __name__ == "__main__":
    main()
