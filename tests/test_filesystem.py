# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced atomically, and paths that libraries or systems refuse."""

import gc
import os
import tempfile
from pathlib import Path

import pytest
from etils import epath

from rn_jax import InputError, filesystem


@pytest.mark.parametrize("name", ["[2026]", "a*", "a?", "a\\b", "gs:", "é", "a b", "%"])
def test_a_path_with_other_characters_is_given_as_a_link_to_it(tmp_path, name):
    folder = tmp_path / name
    with filesystem.literal(str(folder), create=True) as given:
        assert given != str(folder)
        assert os.path.samefile(given, folder)
        (Path(given) / "file").write_text("x")
    assert (folder / "file").read_text() == "x"
    assert not os.path.lexists(given)
    assert not os.path.lexists(os.path.dirname(given))


@pytest.mark.parametrize("name", ["a", "a-1.0_b,c=d+e@f", ".a"])
def test_a_plain_path_is_given_as_it_is(tmp_path, name):
    with filesystem.literal(str(tmp_path / name)) as given:
        assert given == str(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_the_link_goes_also_where_it_was_not_left(tmp_path):
    opened = filesystem.literal(str(tmp_path / "*"))
    given = opened.__enter__()
    assert os.path.lexists(given)
    del opened
    gc.collect()
    assert not os.path.lexists(given)


def test_no_link_can_be_made_where_temporary_files_have_such_a_path(
    tmp_path, monkeypatch
):
    (tmp_path / "[tmp]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "[tmp]"))
    with pytest.raises(
        InputError, match=r"Both '.*/\[2026\]' and .*/\[tmp\]', contain"
    ):
        with filesystem.literal(str(tmp_path / "[2026]"), create=True):
            pass
    assert list(tmp_path.iterdir()) == [tmp_path / "[tmp]"]
    assert list((tmp_path / "[tmp]").iterdir()) == []


def test_links_are_followed_before_two_dots(tmp_path):
    (tmp_path / "there" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "in")
    found = filesystem.absolute(tmp_path / "link" / ".." / "run")
    assert found == str(tmp_path.resolve() / "there" / "run")


def test_a_path_of_a_bucket_stays_as_it_is():
    assert filesystem.absolute("gs://bucket/[2026]/a") == "gs://bucket/[2026]/a"
    with filesystem.literal("gs://bucket/[2026]/a", create=True) as given:
        assert given == "gs://bucket/[2026]/a"


@pytest.mark.parametrize(
    "path, told",
    [
        ("file:///tmp/a", "the unknown scheme file://"),
        ("https://host/a", "the unknown scheme https://"),
        ("a\0b", "contains a null byte"),
        ("a/\udcff", "is not in UTF-8: rename the file"),
        ("a/" + "é" * 128 + "/b", "has 256 bytes; at most 255 are allowed"),
        ("a/" * 1950, "bytes; at most 3,840 are allowed"),
    ],
)
def test_a_path_that_no_file_can_have_is_refused(path, told):
    with pytest.raises(InputError, match=told):
        filesystem.check(path)
    with pytest.raises(InputError, match=told):
        filesystem.absolute(path)


@pytest.mark.parametrize("path", ["", "a", "é" * 127, "/a/../b", "a/" * 1700, "s3://a"])
def test_other_paths_are_taken(path):
    filesystem.check(path)


@pytest.mark.parametrize("kind", [Path, epath.Path])
def test_a_file_is_replaced_as_a_whole(tmp_path, kind, monkeypatch):
    file = kind(tmp_path / ("a" * 250 + ".txt"))
    for content, there in ((b"x", "x"), ("\u00e9\udcff", "\u00e9\udcff")):
        filesystem.replace_file(file, content)
        assert file.read_bytes() == there.encode("utf-8", "surrogateescape")

    def full(path, content):
        Path(path).write_text("half")
        raise OSError(28, "full")

    monkeypatch.setattr(type(file), "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot be written to .*full.* is kept"):
        filesystem.replace_file(file, "new")
    assert os.listdir(tmp_path) == [file.name] and file.stat()
    with pytest.raises(InputError, match="cannot be made"):
        filesystem.make_folder(file / "folder")
    with pytest.raises(InputError, match=r"There is no folder .*/none: make it"):
        filesystem.replace_file(tmp_path / "none" / "a", "x")
