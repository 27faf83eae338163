"""Megatron-Energon's X.tar.idx beside X.tar: where each sample starts, as little-endian uint64.

It holds the offset of the first header of each sample and, last, of the archive's end mark; no keys, no sizes and no
checksums (Energon's TarIndexWriter). Everything must be read once for the checksums, so it cannot save the reading: it
serves to find out that a shard is no longer the one that Energon was given.
"""

import numpy as np

from data.arrays import Ints, Say
from data.shards.shard import Shard

_SUFFIX = ".idx"


def compare_starts(shard: Shard, starts: Ints, end: int, say: Say) -> None:
    """Say so when Energon's index is there and disagrees with the starts of the samples, or where the archive ends."""
    contents = shard.beside(_SUFFIX)
    if contents is None or not shard.name.endswith(".tar"):
        return
    theirs = np.frombuffer(contents[: len(contents) // 8 * 8], "<u8").astype(np.int64)
    ours = np.append(starts, end)
    if len(contents) % 8 == 0 and np.array_equal(theirs, ours):
        return
    common = min(len(theirs), len(ours))
    first = int(np.argmax(np.append(theirs[:common] != ours[:common], True)))
    say(
        f"{shard.name}: Energon's {shard.name}{_SUFFIX} has {len(theirs) - 1} samples, the shard {len(starts)}, and "
        f"they differ from sample {first} on: it is not believed; run `energon prepare` again if the shard was changed"
    )
