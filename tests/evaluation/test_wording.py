"""What is printed of names and commands holds no secret and no markup."""

from __future__ import annotations

import sys

import pytest

from lm_eval_latentref.errors import hide_secrets, printable, without_secrets
from lm_eval_latentref.evaluation.provenance import command


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("pretrained=a,token=hf_abcdefghij,dtype=float32", "pretrained=a,token=***,dtype=float32"),
        ("hf_token=xyz", "hf_token=***"),
        ("pretrained=https://me:pass@host/x", "pretrained=https://***@host/x"),
        ("tokenizer=gpt2,add_bos_token=True", "tokenizer=gpt2,add_bos_token=True"),
    ],
)
def test_secrets_are_left_out_of_a_command(monkeypatch, word, shown):
    assert hide_secrets(word) == shown
    monkeypatch.setattr(sys, "argv", ["latentref", "--model_args", word])
    assert "pass@" not in command()
    assert "hf_abc" not in command()


def test_secrets_are_left_out_of_arguments_and_other_values_keep_their_type():
    args = {"token": "abc", "use_auth_token": "d", "add_bos_token": True, "latent_steps": 6}
    assert without_secrets(args) == {**args, "token": "***", "use_auth_token": "***"}
    nested = {"header": {"Authorization": "Bearer abc", 0: ["hf_abcdefgh1", 1]}}
    assert without_secrets(nested) == {"header": {"Authorization": "***", 0: ["***", 1]}}


@pytest.mark.parametrize("secret", ["abc123", "hf_abcdefgh1"])
def test_secrets_that_others_print_do_not_reach_the_terminal(secret):
    said = printable(f"latentref ({{'pretrained': 'a', 'token': '{secret}'}}), limit: None")
    assert said == "latentref ({'pretrained': 'a', 'token': '***'}), limit: None"
    assert printable("changes are KEY=VALUE") == "changes are KEY=VALUE"
