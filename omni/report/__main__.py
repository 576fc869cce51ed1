"""Write the report of a run again, or compare several runs.

    python -m omni.report checkpoints/omni_sft_tiny                  writes report.html in that folder
    python -m omni.report checkpoints/first checkpoints/second      writes comparison.html in the first
"""

import argparse
from pathlib import Path

from omni.base import checkpoint
from omni.base.console import command
from omni.report.compare import compare
from omni.report.run_data import Run
from omni.report.run_report import write


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.report",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="folder", help="the output folder of a run")
    parser.add_argument("--out", help="the comparison's file (default: comparison.html in the first folder)")
    args = parser.parse_args(arguments)
    if len(args.folders) == 1:
        print(f"wrote {write(args.folders[0])}")
        return
    path = Path(args.out or Path(args.folders[0]) / "comparison.html")
    checkpoint.save_text(path, compare([Run.read(folder) for folder in args.folders]))
    print(f"wrote {path}")


if __name__ == "__main__":
    command(main)
