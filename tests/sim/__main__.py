"""Run many schedules, and the mutants: `python -m tests.sim --seeds 1000`. The last line is JSON.

`--trace SEED` prints what happened in one schedule; `--mutant NAME` removes a rule first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from contextlib import nullcontext

from tests.sim.gateway import Parts
from tests.sim.mutants import MUTANTS, fails, killer
from tests.sim.world import World


def trace(seed: int, name: str) -> int:
    """Print one schedule."""
    mutant = MUTANTS[name] if name else None
    with mutant.context() if mutant else nullcontext(Parts()) as parts:
        world = World(seed, parts, **(mutant.favour if mutant else {}))
        try:
            world.run()
            ended = "nothing is violated"
        except Exception:
            ended = traceback.format_exc()
    print(*world.trace, ended, sep="\n")
    return int(ended != "nothing is violated")


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="schedules to run")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--mutant-seeds", type=int, default=200, help="schedules in which a mutant must be noticed")
    parser.add_argument("--trace", type=int, metavar="SEED", help="print one schedule")
    parser.add_argument("--mutant", default="", choices=["", *MUTANTS], help="the rule that --trace removes")
    args = parser.parse_args()
    if args.trace is not None:
        return trace(args.trace, args.mutant)
    began, violations = time.perf_counter(), 0
    for seed in range(args.first, args.first + args.seeds):
        if found := fails(seed):
            violations += 1
            print(f"seed {seed}: {found[:600]}", file=sys.stderr)
    took_s = time.perf_counter() - began
    killed = 0
    for name in MUTANTS:
        by = killer(name, args.mutant_seeds)
        killed += by is not None
        print(f"mutant {name!r}: {'survives' if by is None else f'found by seed {by}'}", file=sys.stderr)
    result = {
        "schedules": args.seeds, "violations": violations, "schedules_per_s": round(args.seeds / took_s, 1),
        "mutants": len(MUTANTS), "mutants_killed": killed,
    }  # fmt: skip
    print(json.dumps(result))
    return int(violations > 0 or killed < len(MUTANTS))


if __name__ == "__main__":
    sys.exit(main())
