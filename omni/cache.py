"""Shows what the cache of frozen features holds, and empties it.

    python -m omni.cache [--empty] [--dir FOLDER]

A run keeps the features of its frozen encoders, so that another run or another mix need not compute them
again. Emptying the cache is safe at any time: what is missing is computed again.
"""

import argparse
import time
from pathlib import Path

from omni.base.console import command, say
from omni.base.errors import UserError
from omni.train.feature_cache import default_folder, shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--empty", action="store_true", help="delete all features")
    parser.add_argument("--dir", help="the feature_cache_dir of your config; default: the user cache folder")
    args = parser.parse_args()
    root = Path(args.dir).expanduser() if args.dir else default_folder()
    found = shards(root)
    size = sum(stat.st_size for _, stat in found)
    folders = sorted({path.parent for path, _ in found})
    say(f"{root}: {len(folders)} encoders, {len(found)} files, {size / 2 ** 30:.2f} GB")
    for folder in folders:
        own = [stat for path, stat in found if path.parent == folder]
        last = time.strftime("%F %R", time.localtime(max(stat.st_mtime for stat in own)))
        say(f"  encoder {folder.name}: {sum(s.st_size for s in own) / 2 ** 30:.2f} GB, last used {last}")
    if args.empty:
        for path, _ in found:
            try:
                path.unlink(missing_ok=True)
            except OSError as err:
                raise UserError(f"{path}: can't be deleted ({err.strerror}); end the runs that use it") \
                    from None
        say(f"deleted {len(found)} files")


if __name__ == "__main__":
    command(main)
