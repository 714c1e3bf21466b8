"""Data sets and the loader that cuts them into batches for one rank.

`Shapes` is procedural and needs nothing but NumPy; `TinyImageNet` and `DogsVsCats` read the publishers'
folders or zips (`open_dataset` either of them) and need Pillow, ``pip install "minidnn[data]"``, to decode
them once.
"""

from minidnn.data.archives import DogsVsCats, TinyImageNet, open_dataset
from minidnn.data.augment import Augment
from minidnn.data.dataset import Dataset, Split
from minidnn.data.loader import Batch, DataLoader, all_rows
from minidnn.data.shapes import Shapes

__all__ = [
    "Augment",
    "Batch",
    "DataLoader",
    "Dataset",
    "DogsVsCats",
    "Shapes",
    "Split",
    "TinyImageNet",
    "all_rows",
    "open_dataset",
]
