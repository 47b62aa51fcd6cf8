"""Packaging: everything is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    packages=find_packages(include=["neuronbench", "neuronbench.*"]),
    package_data={"neuronbench": ["py.typed", "__init__.pyi", "widgets/*.mjs", "widgets/*.css", "show/*.html", "embedded/weights/**/*", "embedded/wordnet_files/*", "describe/published_files/**/*", "lessons/*.ipynb"]},
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split() for extra in ("hub", "parquet", "autoencoder", "study", "photos", "dev")},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    zip_safe=False,
)
