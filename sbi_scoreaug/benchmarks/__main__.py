"""`python -m sbi_scoreaug.benchmarks NAME [options]`."""

from __future__ import annotations

import sys
from importlib import import_module

from sbi_scoreaug.benchmarks import NAMES


def main(argv: list[str]) -> None:
    """Run the benchmark that `argv` names; without a name list them."""
    if not argv or argv[0] not in NAMES:
        print("usage: python -m sbi_scoreaug.benchmarks NAME [options]\n")
        for name, claim in NAMES.items():
            print(f"  {name:16s} {claim}")
        sys.exit(0 if argv in ([], ["-h"], ["--help"]) else 2)
    import_module(f"sbi_scoreaug.benchmarks.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
