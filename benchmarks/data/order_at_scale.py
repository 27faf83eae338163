"""Time and memory from nothing to the first batch of a plan of 10⁹ samples; no shard is read.

Each figure comes from a process of its own: `python -m benchmarks.data.order_at_scale` starts them.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np

from data.index.shuffle_blocks import GROUP_SAMPLES, split_into_blocks
from data.order.epochs import SampleStream

SAMPLES = 10**9
SAMPLE_BYTES = 19_000
WINDOW_BYTES = 256 << 20
LANES = 64
BATCH = 256
ROUNDS = 5


def measure(shards: int) -> dict[str, float]:
    """Seconds and bytes that this process took to give the batch 90 % into the first epoch, and the next one."""
    samples = SAMPLES // shards
    groups = np.full(-(-samples // GROUP_SAMPLES), GROUP_SAMPLES * SAMPLE_BYTES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    blocks = split_into_blocks(np.full(shards, samples), (groups for _ in range(shards)))
    stream = SampleStream(blocks, WINDOW_BYTES, "synthetic", 1, LANES)
    items = np.arange(BATCH) + SAMPLES * 9 // 10
    stream.locate(items)
    first_s = time.perf_counter() - start
    start = time.perf_counter()
    stream.locate(items + BATCH)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {"first_s": first_s, "next_s": time.perf_counter() - start, "bytes": grown_bytes}


def main() -> None:
    """Measure each number of shards in ROUNDS processes, print the best."""
    print(f"{SAMPLES:,} samples, {LANES} lanes: best of {ROUNDS} processes; the limits are 1 s and 200 MB")
    for shards in (1_000, 100_000, 1_000_000):
        command = [sys.executable, "-m", "benchmarks.data.order_at_scale", str(shards)]
        rounds = [json.loads(subprocess.check_output(command)) for _ in range(ROUNDS)]
        best = {name: min(r[name] for r in rounds) for name in rounds[0]}
        print(
            f"{shards:>9,} shards: first batch {best['first_s']:.2f} s, next {1e3 * best['next_s']:.1f} ms, "
            f"{best['bytes'] / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
