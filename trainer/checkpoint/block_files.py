"""Files in blocks: moved past the page cache where the file system allows it, and checked block by block."""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

BLOCK_BYTES = 4 << 20  # part of the format: the manifest has a digest of each
_ALIGNMENT = 4096  # a page, which is enough for O_DIRECT on local file systems; where not, the cache is used
_DIGEST_HEX = 32  # characters of one digest
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux only


def host_memory(size_bytes: int) -> memoryview:
    """Zeroed whole pages of at least `size_bytes`, fit for direct input and output."""
    # An anonymous mapping begins at a page, which neither bytearray nor torch.empty promises.
    area = mmap.mmap(-1, max(_rounded_up(size_bytes), _ALIGNMENT))
    if hasattr(mmap, "MADV_HUGEPAGE") and len(area) >= BLOCK_BYTES:
        area.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(area)


def _rounded_up(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


def block_spans(size_bytes: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of each block of a file."""
    return ((start, min(start + BLOCK_BYTES, size_bytes)) for start in range(0, size_bytes, BLOCK_BYTES))


def block_digest(block: memoryview) -> str:
    """XXH3-128: at memory speed, and no single flipped bit escapes it."""
    return xxhash.xxh3_128_hexdigest(block)


def block_digests(image: memoryview) -> str:
    """The digests of all blocks of `image`, end to end in hexadecimal: what `StoredFile.blocks` holds."""
    return "".join(block_digest(image[start:stop]) for start, stop in block_spans(len(image)))


def digest_of_block(digests: str, block: int) -> str:
    """The digest of one block among all of a file's."""
    return digests[block * _DIGEST_HEX : (block + 1) * _DIGEST_HEX]


def write_file(path: Path, image: memoryview) -> None:
    """Make a new file that holds `image`: on disk, with its length, when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        direct = _set_direct(descriptor)
        position = 0
        while position < len(image):
            # The last bytes are no whole page, and a short write may end within one: O_DIRECT takes neither.
            whole = len(image) - position >= _ALIGNMENT
            if direct and (not whole or position % _ALIGNMENT):
                direct = _clear_direct(descriptor)
            stop = min(position + BLOCK_BYTES, len(image))
            if direct:
                stop -= (stop - position) % _ALIGNMENT
            try:
                position += os.write(descriptor, image[position:stop])
            except OSError as error:
                if not (direct and error.errno == errno.EINVAL):  # stricter about alignment than a page
                    raise
                direct = _clear_direct(descriptor)
        # O_DIRECT passes the page cache, not the disk's own, and knows nothing of the file's length.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class BlockFile:
    """A local file that is read at offsets of blocks, from the medium rather than from memory where possible."""

    def __init__(self, path: Path) -> None:
        """Raises OSError. The file stays readable through this object when it is renamed."""
        self._descriptor = os.open(path, os.O_RDONLY)
        self._direct = _set_direct(self._descriptor)

    def size_bytes(self) -> int:
        """Length of the open file, whatever its name is by now."""
        return os.fstat(self._descriptor).st_size

    def read_into(self, offset: int, into: memoryview, size_bytes: int) -> None:
        """Fill the first `size_bytes` of `into`, whole pages of `host_memory`. Raises EOFError when the file ends."""
        done = 0
        while done < size_bytes:
            count = self._read(offset + done, into[done:])
            if count == 0:
                raise EOFError(f"the file ends at byte {offset + done}")
            done += count

    def _read(self, offset: int, into: memoryview) -> int:
        # After a short read, which network file systems make, the rest begins anywhere.
        if self._direct and (len(into) % _ALIGNMENT or offset % _ALIGNMENT):
            self._direct = _clear_direct(self._descriptor)
        try:
            return os.preadv(self._descriptor, [into], offset)
        except OSError as error:
            if not (self._direct and error.errno == errno.EINVAL):
                raise
            self._direct = _clear_direct(self._descriptor)
            return os.preadv(self._descriptor, [into], offset)

    def close(self) -> None:
        """Nothing can be read afterwards."""
        os.close(self._descriptor)


def _set_direct(descriptor: int) -> bool:
    if not _DIRECT:
        return False
    # By fcntl, not at open(2): tmpfs and some network file systems refuse the flag, and then the file is open already.
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | _DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _clear_direct(descriptor: int) -> bool:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~_DIRECT)
    return False
