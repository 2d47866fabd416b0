"""Install the package ``lda_aqu`` from projects/LDAAQU; its metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    package_dir={"": "projects/LDAAQU"},
    packages=find_packages("projects/LDAAQU"),
)
