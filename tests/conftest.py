"""Shared by all tests: nothing leaves the machine, and caches start empty."""
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NEURONBENCH_CACHE"] = tempfile.mkdtemp(prefix="neuronbench-tests-")
