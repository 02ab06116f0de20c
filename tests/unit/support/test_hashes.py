"""Hashes are those of whole files."""

import pytest

from sb_prune.support.hashes import check_hash, file_hash

SIZE = 3 << 20  # more than is read at once


@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1])
def test_the_whole_file_is_hashed(place, tmp_path):
    path = tmp_path / "weights"
    content = bytearray(SIZE)
    path.write_bytes(content)
    before = file_hash(path)
    check_hash(path, before)
    content[place] = 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not the file that was exported"):
        check_hash(path, before)
