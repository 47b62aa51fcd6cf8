"""`make bench`: every number that the project promises, measured here and printed beside its target.

Each file of this folder offers `rows()`, which yields (what, measured, unit, target, reached).
"""
import argparse
import importlib.util
from pathlib import Path

HERE = Path(__file__).parent


def benchmarks():
    return {p.stem: p for p in sorted(HERE.glob("*.py")) if p.stem != "run"}


def load(path):
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(benchmarks())} (all when none is given)")
    chosen = parser.parse_args().names or list(benchmarks())
    print(f"{'what':<78} {'measured':>14}  target")
    missed = 0
    for name in chosen:
        for what, measured, unit, target, reached in load(benchmarks()[name]).rows():
            missed += not reached
            print(f"{what:<78} {f'{measured:.3g} {unit}':>14}  {target:<10} {'' if reached else 'MISSED'}", flush=True)
    print(f"{missed} targets missed" if missed else "every target reached")


if __name__ == "__main__":
    main()
