"""Speed, measured against named baselines and the machine's own ceiling.

    pip install -r tests/bench/requirements.txt
    python -m tests.bench [--only step --only generate] [--device cpu] [--json bench.json]

What is compared runs by turns in one process (A B A B ...) and medians are quoted. The ceiling, a large
matrix product and a large copy, is measured first. Nothing here is part of the test run.
"""

import argparse
import json
import platform
from pathlib import Path

import torch

from tests.bench import cases, machine
from tests.bench.base import base

CASES = {"step": cases.step, "encode": cases.encode, "generate": cases.generate, "run": cases.run,
         "start": cases.start, "memory": cases.memory, "base": base}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=CASES,
                        help="a case (may be repeated); default: all")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--config", default="configs/omni_sft_tiny.json", help="the config that is measured")
    parser.add_argument("--json", metavar="PATH", help="write the figures here too")
    args = parser.parse_args()
    device = machine.choose_device(args.device)
    ceiling = machine.ceiling(device)
    print(f"{machine.describe(device)}, torch {torch.__version__}, Python {platform.python_version()}")
    show("ceiling", ceiling)
    figures = {"machine": machine.describe(device), "ceiling": ceiling}
    bench = cases.Bench(args.config, device, ceiling)
    for name in args.only or CASES:
        figures[name] = CASES[name](bench)
        show(name, figures[name])
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def show(name: str, figures: dict) -> None:
    print(f"\n{name}")
    for key, value in figures.items():
        shown = f"{value:,.4g}" if isinstance(value, int | float) else value
        print(f"  {key:<58} {shown:>14}", flush=True)


if __name__ == "__main__":
    main()
