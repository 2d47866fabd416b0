"""Install the package ``lda_aqu`` from projects/LDAAQU; its metadata is in pyproject.toml.

Its C++ kernels are compiled where there is a compiler. They are a plain shared library that needs
neither PyTorch nor Python's headers, so they outlive an upgrade of either; without them the package
computes in plain PyTorch.
"""

import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("projects/LDAAQU/lda_aqu/ops/csrc")
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
KERNELS = ("attention_kernels.cpp", "norm_kernels.cpp", "offset_kernels.cpp")
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
        compile_for = self.compiler.compile
        objects = compile_for(
            [str(SOURCES / "dispatch.cpp")], str(folder), extra_postargs=FLAGS, depends=ext.depends
        )
        for name, flags in INSTRUCTION_SETS.items():
            objects += compile_for(
                [str(SOURCES / kernels) for kernels in KERNELS],
                str(folder / name),
                extra_postargs=[*FLAGS, *flags, f"-DLDA_AQU_ISA={name}"],
                depends=ext.depends,
            )
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=["-fopenmp"],
            target_lang="c++",
        )


setup(
    package_dir={"": "projects/LDAAQU"},
    packages=find_packages("projects/LDAAQU"),
    ext_modules=[
        Extension(
            "lda_aqu.ops._cpp",
            [str(SOURCES / name) for name in ("dispatch.cpp", *KERNELS)],
            depends=[str(header) for header in SOURCES.glob("*.h")],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
