"""A call with all terms, forward and backward: small enough for compute-sanitizer."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).parents[2]
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    from gpu import checks

    checks.start()
    for dtype in ("float32", "bfloat16") if torch.cuda.is_available() else ("float32",):
        print(checks.terms("value and all", (2, 3, 2), dtype, (16, 20)))
