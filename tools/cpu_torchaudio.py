#!/usr/bin/env python3
"""Make torchaudio importable beside a CPU-only torch.

torchaudio's Linux wheel holds one library that is linked against CUDA. Beside a CPU-only torch its import raises
OSError, which then breaks imports of transformers too. The rest of torchaudio (MelSpectrogram, resample, GriffinLim,
kaldi.fbank, lfilter) works without that library, so this script removes it, in that one case alone. Run it again after
torchaudio was installed again.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path


def imports_torchaudio() -> subprocess.CompletedProcess[str]:
    """Import torchaudio in a fresh process: a failed import leaves a process in disorder."""
    return subprocess.run([sys.executable, "-c", "import torchaudio"], capture_output=True, text=True, check=False)


def main() -> int:
    """Repair when it is needed; 0 when torchaudio is absent or works."""
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        return 0
    attempt = imports_torchaudio()
    if attempt.returncode == 0:
        return 0
    import torch

    libraries = sorted((Path(spec.origin).parent / "lib").glob("_torchaudio*.so"))
    if torch.version.cuda is not None or "OSError" not in attempt.stderr or not libraries:
        print(f"torchaudio can't be imported:\n{attempt.stderr}", file=sys.stderr)
        return 1
    for library in libraries:
        library.unlink()
        print(f"removed {library}: it needs CUDA, and this torch has none")
    attempt = imports_torchaudio()
    if attempt.returncode != 0:
        print(f"torchaudio still can't be imported:\n{attempt.stderr}", file=sys.stderr)
    return attempt.returncode


if __name__ == "__main__":
    sys.exit(main())
