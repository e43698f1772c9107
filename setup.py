"""Installs ``pipeline/`` as the package ``imgindex`` and ``models/`` as ``imgindex.models``."""

from setuptools import setup

setup(
    packages=["imgindex", "imgindex.models"],
    package_dir={"imgindex": "pipeline", "imgindex.models": "models"},
    package_data={"imgindex": ["py.typed"], "imgindex.models": ["weights/*"]},
)
