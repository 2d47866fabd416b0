"""Reading checkpoint files without running what they bring, and refusing damaged ones."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any


class WeightsUnpickler(pickle.Unpickler):
    """Reads what Detectron2's model zoo is pickled from: plain Python values and NumPy arrays."""

    _ALLOWED = frozenset(
        {
            ("_codecs", "encode"),  # bytes, in the older protocols
            ("collections", "OrderedDict"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            *(
                (f"numpy.{core}.multiarray", function)
                for core in ("core", "_core")
                for function in ("_reconstruct", "scalar")
            ),
            *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """See :meth:`pickle.Unpickler.find_class`; UnpicklingError unless it is allowed."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"global {module}.{name} is not allowed")
        return super().find_class(module, name)


def refused_class(error: Exception) -> str | None:
    """The class that torch.load or :class:`WeightsUnpickler` refused, if that is the error."""
    found = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
    return found[1] if found and isinstance(error, pickle.UnpicklingError) else None


def check_archive(filename: str | Path) -> None:
    """Raise BadZipFile where a part is not what was written, which torch does not look at."""
    with zipfile.ZipFile(filename) as archive:
        # torch compresses nothing: what it reads is no larger than the file.
        packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise zipfile.BadZipFile(f"its part {packed[0]} is compressed, which torch never does")
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"its part {damaged} is damaged")
