"""Installs ``pipeline/`` as the package ``imgindex`` and ``models/`` as ``imgindex.models``."""

from setuptools import find_packages, setup

setup(
    packages=[
        "imgindex",
        *(f"imgindex.{package}" for package in find_packages("pipeline")),
        "imgindex.models",
        *(f"imgindex.models.{package}" for package in find_packages("models")),
        "imgindex.models.weights",
    ],
    package_dir={
        "imgindex": "pipeline",
        "imgindex.models": "models",
        "imgindex.models.weights": "models/weights",
    },
    package_data={
        "imgindex": ["py.typed", "configs/*.yaml", "schemas/*.json", "serving/static/*"],
        "imgindex.models.weights": ["*"],
    },
)
