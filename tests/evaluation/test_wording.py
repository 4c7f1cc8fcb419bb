"""What is printed of names and commands holds no secret and no markup."""

from __future__ import annotations

import sys

import pytest

from lm_eval_latentref.evaluation.provenance import command
from lm_eval_latentref.evaluation.wording import hide_secrets


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("pretrained=a,token=hf_abcdefghij,dtype=float32", "pretrained=a,token=***,dtype=float32"),
        ("hf_token=xyz", "hf_token=***"),
        ("pretrained=https://me:pass@host/x", "pretrained=https://***@host/x"),
        ("tokenizer=gpt2,max_gen_toks=3", "tokenizer=gpt2,max_gen_toks=3"),
    ],
)
def test_secrets_are_left_out_of_a_command(monkeypatch, word, shown):
    assert hide_secrets(word) == shown
    monkeypatch.setattr(sys, "argv", ["latentref", "--model_args", word])
    assert "pass@" not in command()
    assert "hf_abc" not in command()
