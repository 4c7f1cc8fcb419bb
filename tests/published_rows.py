"""Rows as the benchmarks publish them, and the examples and choices expected from them."""

from __future__ import annotations

import json

import pytest

from lm_eval_latentref.benchmarks import published
from lm_eval_latentref.benchmarks.prosqa import generate
from lm_eval_latentref.latent.protocol import Example


def gsm8k_row(number):
    chain = f"She has {number}+1 = <<{number}+1={number + 1}>>{number + 1} eggs.\n"
    return {
        "question": f"Ann has {number} eggs and buys one. How many has she?",
        "answer": f"{chain}#### 1,{number + 1:03d}",
    }


def equation_row(number):
    question = gsm8k_row(number)["question"]
    return {"question": question, "steps": [f"<<{number}+1={number + 1}>>"], "answer": "1,007"}


def mathqa_row(number):
    return {
        "Problem": f"what is {number} % of 100 ?",
        "Rationale": f'"{number} % of 100 is {number} . answer : b ."',
        "options": f"a ) 1 , b ) {number} , c ) 5,000 , d ) 7 , 8 , e ) none of these",
        "correct": "b",
        "annotated_formula": "f",
        "linear_formula": "f|",
        "category": "general",
    }


def aqua_row(number):
    return {
        "question": f"What is {number}+1?",
        "options": [f"A){number + 1}", "B) 2", "C)3", "D)4", "E)5"],
        "rationale": f"Add one.\n{number} + 1 = {number + 1}.\nAnswer A",
        "correct": "A",
    }


def strategyqa_row(number):
    return {
        "qid": f"q{number}",
        "term": "Sun",
        "description": "star",
        "question": f"Is the sun older than {number} years?",
        "answer": number % 2 == 0,
        "facts": ["The sun is old."],
        "decomposition": ["How old is the sun?"],
    }


def published_files():
    prosqa = [dict(row) for row in generate(20, seed=9, split="train")]
    return {
        "gsm8k/test": [gsm8k_row(n) for n in range(100, 104)],
        "gsm8k/train": [gsm8k_row(n) for n in range(20)],
        "gsm8k/validation_equations": [equation_row(n) for n in range(3, 7)],
        "mathqa/validation": [mathqa_row(n) for n in range(45)],
        "mathqa/test": [mathqa_row(n) for n in range(200, 204)],
        "aqua/validation": [aqua_row(n) for n in range(5)],
        "aqua/test": [aqua_row(n) for n in range(10, 15)],
        "strategyqa/train": [strategyqa_row(n) for n in range(30)],
        "strategyqa/validation": [strategyqa_row(n) for n in range(100, 106)],
        "prosqa/validation": prosqa[:10],
        "prosqa/test": prosqa[10:],
    }


def write_folder(folder, files):
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_folder(tmp_path, published_files())
    monkeypatch.setenv(published.DATA_VARIABLE, str(tmp_path))
    return tmp_path


EXPECTED_EXAMPLES = {
    "gsm8k": (
        gsm8k_row(4),
        Example("Ann has 4 eggs and buys one. How many has she?", ("<<4+1=5>>",), "1005"),
    ),
    "mathqa": (
        mathqa_row(4),
        Example(
            "what is 4 % of 100 ?\na ) 1 , b ) 4 , c ) 5,000 , d ) 7 , 8 , e ) none of these",
            ("4 % of 100 is 4 .",),
            "b",
        ),
    ),
    "aqua": (
        aqua_row(4),
        Example("What is 4+1?\nA)5, B) 2, C)3, D)4, E)5", ("Add one.", "4 + 1 = 5."), "A"),
    ),
    "strategyqa": (
        strategyqa_row(4),
        Example(
            "Is the sun older than 4 years?", ("How old is the sun?", "The sun is old."), "yes"
        ),
    ),
    "prosqa": (
        {
            "question": "Every lempus is a impus. Tom is a lempus. Is Tom a impus or gorpus?",
            "steps": ["Tom is a lempus.", "Every lempus is a impus."],
            "answer": "Tom is a impus.",
        },
        Example(
            "Every lempus is a impus. Tom is a lempus. Is Tom a impus or gorpus?",
            ("Tom is a lempus.", "Every lempus is a impus."),
            "Tom is a impus.",
        ),
    ),
}


EXPECTED_CHOICES = {
    "mathqa": (["### a", "### b", "### c", "### d", "### e"], 1),
    "aqua": (["### A", "### B", "### C", "### D", "### E"], 0),
    "strategyqa": (["### yes", "### no"], 0),
    "prosqa": (["### Tom is a impus.", "### Tom is a gorpus."], 0),
}
