"""Converters for words of a command line; for a wrong word, argparse's error says what is allowed.

count("20"), folder("out/set"), half_widths("0.3*d/2")     # 20, "out/set", 0.3
contrast("control=out/best,out/set")                      # ("control", ("out/best", "out/set"))
"""

from __future__ import annotations

import argparse
import math
import re
import threading
from pathlib import Path

from lm_eval_latentref.errors import LatentRefError, check_place


def count(text: str) -> int:
    """An integer of at least 1."""
    return _integer(text, 1)


def from_zero(text: str) -> int:
    """An integer of at least 0."""
    return _integer(text, 0)


def seconds(text: str) -> float:
    """A time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of seconds above 0")
    return value


def there(text: str) -> str:
    """A name to read from, also after NAME=; it must not be empty."""
    if not text.rpartition("=")[2].strip():  # it would mean the working directory
        raise argparse.ArgumentTypeError(f"{text!r}: it is empty; give a name")
    return text


def folder(text: str) -> str:
    """The name of a folder that can be written."""
    return _place(text, is_folder=True)


def file(text: str) -> str:
    """The name of a file that can be written."""
    return _place(text, is_folder=False)


def place(text: str) -> str:
    """The name of a folder or file that can be written."""
    return _place(text, is_folder=not Path(text).is_file())


def rate(text: str) -> float:
    """A memory rate, from 0 to 1."""
    from lm_eval_latentref.latent.config import RefinementConfig

    try:
        return RefinementConfig.parse({"memory_rate": text}).memory_rate
    except LatentRefError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def device(text: str) -> str:
    """The name of an available device."""
    from lm_eval_latentref.checkpoints.arguments import check_device

    try:
        check_device(text)
    except LatentRefError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def dtype(text: str) -> str:
    """The name of a floating-point type."""
    import torch

    kind = getattr(torch, text, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise argparse.ArgumentTypeError(f"{text!r}: give float32, bfloat16 or float16")
    return text


def half_widths(text: str) -> float:
    """A step size in units of d/2; `0.3` is short for `0.3*d/2`."""
    from lm_eval_latentref.latent.config import RefinementConfig

    full = text if "*" in text else f"{text}*d/2"
    try:
        return float(RefinementConfig.parse({"search_step_size": full}).search_step_size)
    except LatentRefError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def contrast(text: str) -> tuple[str, tuple[str, str]]:
    """`control=STRONG,WEAK`: the name of a row, and its two references."""
    name, _, references = text.partition("=")
    strong, comma, weak = references.partition(",")
    if not (name.strip() and comma and strong.strip() and weak.strip()):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=STRONG,WEAK")
    return name.strip(), (strong.strip(), weak.strip())


def named(text: str) -> tuple[str, str]:
    """`weak-cot=weak`: the name of a row, and a checkpoint."""
    name, _, checkpoint = text.partition("=")
    if not (name.strip() and checkpoint.strip()):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=CHECKPOINT")
    return name.strip(), checkpoint.strip()


def no_flag(word: str) -> str:
    """Puts a space before a word such as `-0.3*d/2`, so that argparse takes it as a value."""
    return f" {word}" if re.fullmatch(r"-[\d.]\S*\*\s*d\s*/\s*2", word) else word


def _place(text: str, *, is_folder: bool) -> str:
    if not text.strip():  # it would mean the working directory
        raise argparse.ArgumentTypeError("it is empty; give the name of a file or folder")
    try:
        check_place(text, is_folder=is_folder)
    except LatentRefError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _integer(text: str, smallest: int) -> int:
    if not re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text) or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text!r}: give an integer, {smallest} or more")
    return int(text)
