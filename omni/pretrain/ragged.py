"""Many lists of numbers in one array: as Python lists the tokens of a large text would take gigabytes."""

from array import array
from collections.abc import Sequence

import numpy as np


class Ragged:
    """Lists of different lengths, added one by one. `code` is the type code of an `array`."""

    def __init__(self, code: str):
        self._values, self._ends = array(code), array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, numbers: Sequence) -> None:
        self._values.extend(numbers)
        self._ends.append(len(self._values))

    def __getitem__(self, i: int) -> array:
        return self._values[self._ends[i]:self._ends[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(np.array(self._ends))
