"""An epoch of cnnctl's loop against a hand-written loop of thirty lines, in one process.

    python tests/benchmarks/loop.py [--model resnet20|lenet] [--images 12800] [--repeats 5]

It is ``cnnctl bench peers peers=thirty_lines`` (cnnctl/peers/thirty_lines.py); the ratio there is
the other way round: 0.95 and more is what is meant to be.
"""

from __future__ import annotations

import argparse

from cnnctl.commands import bench_peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20", choices=["resnet20", "lenet"])
    parser.add_argument("--images", type=int, default=12800)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    words = [f"work={asked.model}", f"images={asked.images}", f"turns={asked.repeats}"]
    bench_peers.run([*words, "peers=thirty_lines", "budget=86400"], None)


if __name__ == "__main__":
    main()
