"""The prompts and answers of Coconut's protocol."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_latentref.latent.protocol import PROTOCOLS, answer_text, extract_answer, prompt

plain = st.text(st.characters(exclude_characters="#,", exclude_categories=["Cs"]))


def test_a_prompt_is_the_question_and_a_newline():
    assert prompt("Is it?") == "Is it?\n"


@given(st.text(), plain)
def test_the_answer_written_is_the_answer_read(reasoning, answer):
    assert extract_answer(reasoning + answer_text(answer)) == answer.strip()


@given(plain)
def test_text_without_a_hash_is_all_answer(text):
    assert extract_answer(text) == text.strip()


def test_commas_are_removed_and_the_last_hash_counts():
    assert extract_answer("#### 3\n### 12,345 ") == "12345"


@pytest.mark.parametrize(
    ("protocol", "text", "gold", "is_right"),
    [
        ("codi", "The answer is: 1,005", "1005", True),
        ("codi", "The answer is: 18.0", "18", True),
        ("codi", "18 eggs", "18", True),
        ("codi", "The answer is: -18", "18", False),
        ("codi", "12 and 18 eggs. The answer is: none", "18", True),
        ("codi", "The answer is: c", "c", True),
        ("codi", "The answer is: c. It is", "c", True),
        ("codi", "The answer is: d", "c", False),
        ("codi", "The answer is: Tom is a lempus.", "Tom is a lempus.", True),
        ("colar", "Answer: 18", "18", True),
        ("colar", "Answer: 1,018.0.", "1018", True),
        ("colar", "Answer: 3 x 18", "18", False),
        ("colar", "Answer: 19", "18", False),
        ("colar", "", "18", False),
        ("coconut", "### Tom is a lempus", "Tom is a lempus.", False),
    ],
)
def test_each_protocol_judges_as_its_authors_do(protocol, text, gold, is_right):
    assert PROTOCOLS[protocol].is_right(text, gold) == is_right
