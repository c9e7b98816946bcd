"""What a position encoding costs: the same as the command `posenc bench`.

python benchmarks/bench_attention.py [--encodings irpe "irpe on=qk"] [--backward]
"""

from __future__ import annotations

from posenc.bench.attention import main

if __name__ == "__main__":
    main()
