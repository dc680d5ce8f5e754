"""Data to learn from: toy laws, images and tables that come with scikit-learn, and your own files.

| function | returns |
|---|---|
| swiss_roll, eight_gaussians, moons, checkerboard, pinwheel, two_spirals | points (n, 2) of mean 0 and variance 1 |
| time_series | series (n, C, L) of sinusoids with jumps, of mean 0 and variance 1 |
| lennard_jones | clusters (n, N, 3) of points at a temperature |
| molecules | ``Molecules``: clouds of atoms (n, N, 3 + 4) that vibrate, of several sizes, with masks |
| digits, photographs | ``LabelledImages`` (N, C, H, W) in [-1, 1] |
| tabular | a ``Table`` (N, D) with the names of its columns |
| images_from_folder | ``FolderImages`` of your own files |
| arrays_from_file | an array (N, *) of an .npy, .npz, .pt, .pth or .safetensors file |
| labels_from_file | the class of each sample of such a file, and what the classes are called |
| table_from_file | a ``FileTable`` (N, D) of a .csv or .parquet file, with classes where a column names them |

The toy laws and photographs return the same for the same seed, and nothing touches the global random state.
"""

from __future__ import annotations

from scoresde.data.arrays import arrays_from_file
from scoresde.data.clouds import (
    ELEMENTS,
    MOLECULES,
    Molecules,
    bonded,
    lennard_jones,
    lennard_jones_energy,
    molecules,
)
from scoresde.data.columns import FileTable, table_from_file
from scoresde.data.folders import FolderImages, images_from_folder
from scoresde.data.images import LabelledImages, digits, photographs
from scoresde.data.labels import labels_from_file
from scoresde.data.series import time_series
from scoresde.data.tables import TABLES, Table, tabular
from scoresde.data.toys import (
    DATASETS,
    ToyDensity,
    checkerboard,
    eight_gaussians,
    moons,
    pinwheel,
    swiss_roll,
    two_spirals,
)

__all__ = [
    "DATASETS",
    "ELEMENTS",
    "MOLECULES",
    "TABLES",
    "FileTable",
    "FolderImages",
    "LabelledImages",
    "Molecules",
    "Table",
    "ToyDensity",
    "arrays_from_file",
    "bonded",
    "checkerboard",
    "digits",
    "eight_gaussians",
    "images_from_folder",
    "labels_from_file",
    "lennard_jones",
    "lennard_jones_energy",
    "molecules",
    "moons",
    "photographs",
    "pinwheel",
    "swiss_roll",
    "table_from_file",
    "tabular",
    "time_series",
    "two_spirals",
]
