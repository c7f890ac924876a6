"""The environment variables under which tests run, whatever the machine, its user or its job scheduler has set."""

from __future__ import annotations

import os
import re
from pathlib import Path

from parts.paths import TESTS

OF_THE_MACHINE = re.compile(
    r"""(all|http|https|ftp|no)_proxy      # servers of tests are on this machine
    |HF_.*|TRANSFORMERS_.*|HUGGINGFACE_.*|TORCH_HOME  # other caches and hubs
    |OPENAI_.*|LIGHTNING_S2S_.*|JSONARGPARSE_.*|RAY_.*
    |PL_.*|SLURM_.*|LSB_.*|LSF_.*|TORCHELASTIC_.*|MASTER_(ADDR|PORT)
    |(LOCAL_|GROUP_|NODE_)?RANK|(LOCAL_)?WORLD_SIZE   # Lightning would take the tests for part of a job
    |COLUMNS|LINES|NO_COLOR|FORCE_COLOR|PYTHONWARNINGS|PYTHONOPTIMIZE
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Variables that would change what a library does."""


def settle(folder: Path) -> None:
    """Set what tests, and the commands that they start, are run under; caches lie below `folder`."""
    for name in [name for name in os.environ if OF_THE_MACHINE.fullmatch(name)]:
        del os.environ[name]
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",  # results are those of a CPU
        "TZ": "UTC",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])),  # of what tests start
    }
    for name in ("HF_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCH_HOME", "NUMBA_CACHE_DIR"):
        os.environ[name] = str(folder / name.lower())
