"""Measures time and memory of `latentref leaderboard` on runs of realistic size.

    python results/performance/leaderboard.py           # 20 runs, 3 GB in a temporary folder
    python results/performance/leaderboard.py --runs 2 --tasks 2 --documents 50

It writes runs with the fields and sizes of lm-eval's samples (five choices, a context of about 350
bytes in each request), measures the command in a separate process, prints one JSON line, and with
-o writes a page. The files are deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEXT = "a train of length metres running at speed crosses the platform in seconds what is its"
WORDS = TEXT.split()
DATE = "2026-01-01T10-00-00.000001"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--no_samples", action="store_true", help="write only results files")
    parser.add_argument("-o", "--output", type=Path, help="the page to write, FILE.md")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(args.runs):
            write_run(root / f"run{number}", number, args)
        measured = measure(root, args)
    print(json.dumps(measured))
    if args.output is not None:
        args.output.write_text(page(measured), encoding="utf-8")
    return 0


def write_run(folder: Path, number: int, args: argparse.Namespace) -> None:
    """Writes one run; two runs agree on about four documents in five."""
    folder.mkdir()
    results, counts, configs = {}, {}, {}
    for task in (f"task{k}" for k in range(args.tasks)):
        shared, own = random.Random(task), random.Random(f"{task} {number}")
        right = [(shared.random() < 0.5) != (own.random() < 0.1) for _ in range(args.documents)]
        mean = sum(right) / len(right)
        results[task] = {
            "acc,none": mean,
            "acc_stderr,none": (mean * (1 - mean) / len(right)) ** 0.5,
        }
        counts[task] = {"original": args.documents, "effective": args.documents}
        configs[task] = {"output_type": "multiple_choice"}
        if not args.no_samples:
            with (folder / f"samples_{task}_{DATE}.jsonl").open("w", encoding="utf-8") as file:
                for document, is_right in enumerate(right):
                    file.write(json.dumps(sample(task, document, is_right)) + "\n")
    content = {
        "results": results,
        "configs": configs,
        "versions": dict.fromkeys(results, 1.0),
        "n-shot": dict.fromkeys(results, 0),
        "n-samples": counts,
        "config": {"model": "hf", "model_args": {"pretrained": f"model{number}"}},
        "model_name": f"model{number}",
        "model_source": "hf",
        "total_evaluation_time_seconds": str(100 + number),
    }
    (folder / f"results_{DATE}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def sample(task: str, document: int, is_right: bool) -> dict[str, object]:
    text = " ".join(random.Random(f"{task} {document}").choices(WORDS, k=60))
    scores = [[str(-1.5 - (k != 0) if is_right else -1.5 - (k == 0)), "False"] for k in range(5)]
    digest = f"{random.Random(f'{task} {document} hash').getrandbits(256):064x}"
    return {
        "doc_id": document,
        "doc": {"Problem": text, "options": WORDS[:5]},
        "target": "0",
        "arguments": {f"gen_args_{k}": {"arg_0": text, "arg_1": f" {WORDS[k]}"} for k in range(5)},
        "resps": [[score] for score in scores],
        "filtered_resps": scores,
        "filter": "none",
        "metrics": ["acc"],
        **dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), digest),
        "acc": float(is_right),
    }


def measure(root: Path, args: argparse.Namespace) -> dict[str, object]:
    files = [file for file in root.rglob("*") if file.is_file()]
    target = root / "board.html"
    command = [
        sys.executable,
        "-m",
        "lm_eval_latentref",
        "leaderboard",
        str(root),
        "-o",
        str(target),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "runs": args.runs,
        "tasks": args.tasks,
        "documents": args.documents,
        "samples": not args.no_samples,
        "gigabytes_read": round(sum(file.stat().st_size for file in files) / 1e9, 3),
        "seconds": round(seconds, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_gigabytes": round(used.ru_maxrss * 1024 / 1e9, 3),
        "page_megabytes": round(target.stat().st_size / 1e6, 3),
        "load": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }


def page(measured: dict[str, object]) -> str:
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in measured.items())
    return (
        "# Leaderboard: seconds and memory\n\n"
        "Written by `python results/performance/leaderboard.py -o "
        "results/performance/leaderboard.md`. Load: processes that "
        "wanted a core in the last minute; processor seconds leave them out.\n\n"
        f"| | |\n|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
