# SPDX-License-Identifier: Apache-2.0
"""What may happen to files."""

import os


def truncate(files):
    for file in files:
        os.truncate(file, file.stat().st_size // 2)


def fill_with_zeros(files):
    for file in files:
        file.write_bytes(bytes(file.stat().st_size))


def remove(files):
    for file in files:
        file.unlink()


def remove_half(files):
    remove(files[::2])


def flip_one_bit(files):
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
