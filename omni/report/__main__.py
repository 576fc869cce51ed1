"""Make a run's report.html again, or compare runs.

    python -m omni.report checkpoints/omni_sft_tiny
    python -m omni.report checkpoints/first checkpoints/second     compares them, in comparison.html
"""

import argparse
from pathlib import Path

from omni import checkpoint
from omni.console import command
from omni.report.compare import compare
from omni.report.html import Run
from omni.report.page import told, write


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.report",
                                     description="Make a run's report.html again, or compare runs.")
    parser.add_argument("folders", nargs="+", metavar="folder", help="the output folder of a run")
    parser.add_argument("--out", help="where the comparison goes (comparison.html in the first folder)")
    args = parser.parse_args(arguments)
    if len(args.folders) == 1:
        print(f"wrote {write(args.folders[0])}")
        return
    path = Path(args.out or Path(args.folders[0]) / "comparison.html")
    runs = [Run.read(folder) for folder in args.folders]
    with told(*runs):
        checkpoint.save_text(path, compare(runs))
    print(f"wrote {path}")


if __name__ == "__main__":
    command(main)
