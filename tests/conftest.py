"""Shared by all tests: nothing leaves the machine, and caches start empty and end with the tests."""
import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NEURONBENCH_CACHE"] = tempfile.mkdtemp(prefix="neuronbench-tests-")
atexit.register(shutil.rmtree, os.environ["NEURONBENCH_CACHE"], ignore_errors=True)
