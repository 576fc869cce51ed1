"""Measures speed against baselines and against the machine's measured ceiling.

    pip install -r tests/bench/requirements.txt
    python -m tests.bench [--only step --only generate] [--device cpu] [--json bench.json]

Variants run alternately in one process (A B A B ...), and medians are printed. First the ceiling is
measured: a large matrix product and a large copy. pytest runs nothing of this.
"""

import argparse
import json
import platform
from pathlib import Path

import torch

from tests.bench import cases, machine
from tests.bench.base import base
from tests.bench.gpu import Gpu
from tests.bench.parts import parts

CASES = {"step": cases.step, "encode": cases.encode, "generate": cases.generate, "run": cases.run,
         "start": cases.start, "memory": cases.memory, "base": base, "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=CASES,
                        help="a case (may be repeated); default: all")
    parser.add_argument("--gpu", action="store_true",
                        help="the report of a GPU in place of the cases: checks, then figures (8 minutes)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--config", default="configs/omni_sft_tiny.json", help="the config that is measured")
    parser.add_argument("--json", metavar="PATH", help="write the figures to this file too")
    args = parser.parse_args()
    device = machine.choose_device(args.device)
    ceiling = machine.ceiling(device)
    print(f"{machine.describe(device)}, torch {torch.__version__}, Python {platform.python_version()}")
    print_figures("ceiling", ceiling)
    figures = {"machine": machine.describe(device), "ceiling": ceiling}
    bench = cases.Bench(args.config, device, ceiling)
    if args.gpu:
        figures |= Gpu(bench).run(lambda found: write(args.json, figures | found))
    for name in () if args.gpu else args.only or CASES:
        figures[name] = CASES[name](bench)
        print_figures(name, figures[name])
    write(args.json, figures)


def write(path: str | None, figures: dict) -> None:
    if path:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def print_figures(name: str, figures: dict) -> None:
    print(f"\n{name}")
    for key, value in figures.items():
        text = f"{value:,.4g}" if isinstance(value, int | float) else value
        print(f"  {key:<58} {text:>14}", flush=True)


if __name__ == "__main__":
    main()
