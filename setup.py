"""Install the package ``lda_aqu`` from projects/LDAAQU; its metadata is in pyproject.toml.

Its C++ kernels are compiled where there is a compiler. They are a plain shared library that needs
neither PyTorch nor Python's headers, so they outlive an upgrade of either, and one wheel serves
every version of Python; without them the package computes in plain PyTorch.
"""

import hashlib
import os
import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("projects/LDAAQU/lda_aqu/ops/csrc")
SOURCES = sorted(path for path in FOLDER.rglob("*") if path.suffix in (".cpp", ".h"))
DISPATCH = str(FOLDER / "dispatch.cpp")
KERNELS = [str(path) for path in SOURCES if path.name == "kernels.cpp"]
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += os.environ.get("LDA_AQU_FLAGS", "").split()  # as -fsanitize=address, for debugging
# KERNELS are compiled once for each; which one runs is chosen when it runs.
INSTRUCTION_SETS = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    FLAGS.append("-DLDA_AQU_X86")
    INSTRUCTION_SETS |= {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": [
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
            "-mprefer-vector-width=512",
        ],
    }


class BuildKernels(build_ext):
    """Compile the kernels for each instruction set and link them into one library."""

    def build_extension(self, ext: Extension) -> None:
        """Build ``ext``; as it is optional, a failure is reported and the installation goes on."""
        folder = Path(self.build_temp)
        # By it ops/cpp/library.py finds out whether a library is of the sources beside it.
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()
        objects = self.compiler.compile(
            [DISPATCH], str(folder), extra_postargs=[*FLAGS, f'-DLDA_AQU_SOURCES="{digest}"']
        )
        for name, flags in INSTRUCTION_SETS.items():
            objects += self.compiler.compile(
                KERNELS,
                str(folder / name),
                extra_postargs=[*FLAGS, *flags, f"-DLDA_AQU_ISA={name}"],
            )
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=FLAGS,
            target_lang="c++",
        )

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without the version of Python: lda_aqu/ops/_cpp.so."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class TagWheel(bdist_wheel):
    """Tag the wheel for every version of Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags for Python, its ABI and the platform."""
        return ("py3", "none", super().get_tag()[2])


setup(
    package_dir={"": "projects/LDAAQU"},
    packages=find_packages("projects/LDAAQU"),
    ext_modules=[Extension("lda_aqu.ops._cpp", [DISPATCH, *KERNELS], optional=True)],
    cmdclass={"bdist_wheel": TagWheel, "build_ext": BuildKernels},
)
