"""Tar files: their members are those that Python's `tarfile` finds, and shards are found by an index."""

import io
import json
import tarfile

import pytest
from published import picture, put
from published import tar as write_tar

from omni.base.errors import UserError
from omni.data import manifest, media, tar

NAMES = ("a.txt", "./b.jpg", "folder/c.txt", "é/ü.txt", "y" * 90 + "/" + "z" * 80, "a.txt",
         "x" * 99 + ".t", "l" * 200 + "/" + "m" * 200, "b.txt")


def archive(form: int) -> bytes:
    buffer = io.BytesIO()
    time = 1.5 if form == tarfile.PAX_FORMAT else 1  # a header of its own for each member
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for i, name in enumerate(NAMES[:6] if form == tarfile.USTAR_FORMAT else NAMES):
            for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE)[:1 + 2 * (i == 2)]:
                info = tarfile.TarInfo(name)
                info.type, info.mtime, info.linkname = kind, time, "k" * 99
                info.size = 300 * i if kind == tarfile.REGTYPE else 0
                file.addfile(info, io.BytesIO(bytes([i]) * 300 * i))
    return buffer.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_members_are_those_of_tarfile(form):
    content = archive(form)
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file if m.isreg()]
    assert [*tar.members(io.BytesIO(content))] == expected and len(expected) >= 6


def test_sizes_above_8_gb_and_sparse_files():
    info = tarfile.TarInfo("large")
    info.size = 2 ** 40
    with pytest.raises(tar.Damaged, match=f"cut short: .* has {2 ** 40} bytes"):
        [*tar.members(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT)))]
    with pytest.raises(tar.Damaged, match=f"cut short: .* has {2 ** 40} bytes"):
        [*tar.members(io.BytesIO(info.tobuf(tarfile.PAX_FORMAT)))]
    info = tarfile.TarInfo("link")  # as cpio writes it: with the size of what it is a link to
    info.type, info.size = tarfile.LNKTYPE, 5
    info = info.tobuf(tarfile.GNU_FORMAT) + tarfile.TarInfo("after").tobuf(tarfile.GNU_FORMAT)
    assert [m.name for m in tar.members(io.BytesIO(info))] == ["after"]
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.major": "1"}
    after = tarfile.TarInfo("after").tobuf(tarfile.PAX_FORMAT)
    assert [m.name for m in tar.members(io.BytesIO(info.tobuf(tarfile.PAX_FORMAT) + after))] == ["after"]


def test_a_damaged_or_cut_file_is_told_and_not_ended_in_silence():
    content = archive(tarfile.GNU_FORMAT)
    found = [*tar.members(io.BytesIO(content))]
    for damaged, words in ((content[:found[5].offset + 9], "cut short"), (b"", "empty"),
                           (b"x" * 600, "not a tar"),
                           (content[:found[5].offset - 9], "cut short within a header"),
                           (content.replace(b"folder/c.txt", b"folder/d.txt"), "damaged at byte")):
        with pytest.raises(tar.Damaged, match=words):
            [*tar.members(io.BytesIO(damaged))]


def test_shards_are_found_by_index_pattern_and_numbers(tmp_path):
    for i in range(3):
        write_tar(tmp_path / f"s-{i:06}.tar", {f"{i}.png": picture(), f"{i}.txt": f"red {i}",
                                                f"{i}x.png": b"1"})
    shards = [{"url": f"s-{i:06}.tar", "nsamples": 1} for i in (2, 0)]
    put(tmp_path, {"index.json": json.dumps({"wids_version": 1, "shardlist": shards}),
                   "web.json": json.dumps({"shardlist": [{"url": "https://x.org/s.tar"}]})})
    for path, answers in ((tmp_path / "index.json", [2, 0]), (tmp_path / "s-{000001..000002}.tar", [1, 2]),
                          (tmp_path / "s-*.tar", [0, 1, 2]), (tmp_path, [0, 1, 2])):
        source = manifest.read(str(path))
        assert [s.answer for s in source.samples] == [f"red {i}" for i in answers]
        assert media.source(source.samples[0].images[0]).read() == picture()
        assert len(source.skipped) == len(answers)
    with pytest.raises(UserError, match="nothing is fetched"):
        manifest.read(str(tmp_path / "web.json"))
