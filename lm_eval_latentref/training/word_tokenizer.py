"""A tokenizer with one token for each word: for small models that are trained from scratch.

    tokenizer = make_word_tokenizer(words(["a>b b>a ; 1 a\\n", "### b"]))
    tokenizer.decode(tokenizer.encode("b\\n### b"))     # "b\\n### b"

A word is what stands between spaces; a newline is a word of its own. Text whose words are parted by
single spaces or newlines survives encoding and decoding. Deliberately knows no data and no models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lm_eval_latentref.latent.protocol import answer_text

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


def words(texts: Iterable[str]) -> list[str]:
    """Every word of `texts`, once, in a fixed order; those of the protocol come with them."""
    found = {"\n", answer_text("").strip()}
    for text in texts:
        found.update(re.findall(r"\n|[^ \n]+", text))
    return sorted(found)


def make_word_tokenizer(vocabulary: Iterable[str]) -> Any:
    """A PreTrainedTokenizerFast over `vocabulary`, an end-of-text and an unknown token.

    The end-of-text token also pads and begins an empty text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate([END_OF_TEXT, UNKNOWN, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    # WordPiece's decoder puts a space before each token but the first; no token has this prefix.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="\0", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(" \n", "\n"),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
