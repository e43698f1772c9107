"""Installs ``pipeline/`` as the package ``imgindex`` and ``models/`` as ``imgindex.models``."""

from setuptools import setup

setup(
    packages=["imgindex", "imgindex.models", "imgindex.models.weights"],
    package_dir={
        "imgindex": "pipeline",
        "imgindex.models": "models",
        "imgindex.models.weights": "models/weights",
    },
    package_data={"imgindex": ["py.typed", "configs/*.yaml"], "imgindex.models.weights": ["*"]},
)
