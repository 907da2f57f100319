"""Packaging: the source directories at the repository's top become sub-packages of tesserec."""

from __future__ import annotations

from setuptools import find_packages, setup

PARTS = ("autograd", "dataio", "embeddings", "models", "serve", "sharding", "train")
packages = ["tesserec", *(f"tesserec.{sub}" for sub in find_packages("tesserec", include=["cli"]))]
for part in PARTS:
    packages += [f"tesserec.{part}", *(f"tesserec.{part}.{sub}" for sub in find_packages(part))]
setup(packages=packages, package_dir={"tesserec": "tesserec"} | {f"tesserec.{part}": part for part in PARTS})
