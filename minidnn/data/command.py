"""``minidnn data``: fetch a data set, or say what a folder or zip holds.

minidnn data tiny-imagenet --out DIR
minidnn data info PATH
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from minidnn.console import path
from minidnn.data.archives import inspect
from minidnn.data.cache import cache_folder
from minidnn.data.download import TINY_IMAGENET_MD5, TINY_IMAGENET_URL, download


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser`, that of ``minidnn data``, its sub-commands."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    fetch = commands.add_parser("tiny-imagenet", help="fetch Tiny ImageNet (237 MiB) from its publisher")
    fetch.add_argument(
        "--out", type=path, default=".", metavar="DIR", help="folder for the zip (default: here)"
    )
    fetch.add_argument("--url", default=TINY_IMAGENET_URL, help="another copy of it (default: %(default)s)")
    fetch.add_argument(
        "--checksum",
        default=TINY_IMAGENET_MD5,
        help="MD5, SHA-1 or SHA-256 of the file, '' for no check (default: %(default)s)",
    )
    info = commands.add_parser("info", help="say what data set a folder or zip holds")
    info.add_argument("path", type=path, metavar="PATH", help="folder or zip")


def main(args: argparse.Namespace) -> int:
    """Run ``minidnn data`` with parsed arguments. Returns the exit code; raises InputError."""
    if args.data_command == "tiny-imagenet":
        name = args.url.partition("?")[0].rpartition("/")[2]
        name = "tiny-imagenet-200.zip" if name in ("", ".", "..") else name
        print(download(args.url, Path(args.out) / name, args.checksum))
    else:
        print(describe(args.path))
    return 0


def describe(path: Path) -> str:
    """What the folder or zip at `path` holds, as a few lines of text. Decodes no image."""
    listing = inspect(path)
    lines = [
        f"data set    {listing.name}",
        f"layout      {listing.layout}",
        f"scaled to   {listing.image}x{listing.image} by default",
    ]
    for name, (files, labels) in (("training", listing.train), ("validation", listing.validation)):
        counts = np.bincount(labels, minlength=len(listing.classes))
        span = (
            f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        )
        lines.append(f"{name:11} {len(files):,} images, {span} a class")
    shown = ", ".join(listing.classes[:8]) + (", ..." if len(listing.classes) > 8 else "")
    lines.append(f"classes     {len(listing.classes)}: {shown}")
    lines.append(f"cache       {cache_folder()}")
    return "\n".join(lines)
