"""The origin of a result file: versions, machine and command.

    {"versions": versions(), "machine": machine(), "command": command()}

It contains no names of persons and no paths outside the command.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lm_eval_latentref.errors import hide_secrets

PACKAGES = ("lm-eval-latentref", "lm-eval", "torch", "transformers", "peft", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that influence results."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def machine() -> dict[str, Any]:
    """Processor, threads and GPU of this process."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "platform": platform.platform(),
    }


def command() -> str:
    """The command line of this process, as a user would type it, with *** for secrets."""
    program = Path(sys.argv[0]).name
    words = ["latentref" if program == "__main__.py" else program, *sys.argv[1:]]
    return shlex.join(map(hide_secrets, words))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
