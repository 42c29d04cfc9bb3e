"""Files from the network: what a mirror can do wrong, and archives that are not to be trusted."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from mlrc_lightning.data import download as download_module
from mlrc_lightning.data.download import Limits, RemoteFile, download, extract, provide
from mlrc_lightning.errors import ConfigError, DatasetError, DownloadError

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
OTHER = np.random.default_rng(1).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(download_module, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def remote(local_server):
    """A file on the local server, under one or more paths."""

    def make(*paths, **digests):
        return RemoteFile("data.tgz", tuple(local_server.url + path for path in paths or ("/data.tgz",)), **digests)

    local_server.files["/data.tgz"] = CONTENT
    return make


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_is_not_got_again(remote, local_server, tmp_path):
    for _ in range(2):
        assert download(remote(md5=MD5), tmp_path / "new").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["data.tgz"]
    assert local_server.requests == [("/data.tgz", None)]


def test_a_dropped_connection_is_resumed_where_it_ended(remote, local_server, tmp_path):
    local_server.drops["/data.tgz"] = [1_200_000, 700_000]
    assert download(remote(md5=MD5), tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in local_server.requests] == [None, "bytes=1200000-", "bytes=1900000-"]


@pytest.mark.parametrize("now", ['"1"', '"2"'])
def test_a_file_without_a_known_digest_is_resumed_only_as_the_same_version(
    remote, local_server, tmp_path, monkeypatch, now
):
    local_server.etags["/data.tgz"] = '"1"'
    local_server.drops["/data.tgz"] = [1_200_000]
    content = CONTENT if now == '"1"' else OTHER

    def change_meanwhile(seconds):
        local_server.etags["/data.tgz"], local_server.files["/data.tgz"] = now, content

    monkeypatch.setattr(download_module.time, "sleep", change_meanwhile)
    assert download(remote(), tmp_path).read_bytes() == content
    assert local_server.requests[1] == ("/data.tgz", "bytes=1200000-")


def test_a_file_without_digest_and_version_is_got_again_from_the_start(remote, local_server, tmp_path):
    local_server.drops["/data.tgz"] = [1_200_000]
    assert download(remote(), tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in local_server.requests] == [None, None]


def test_a_server_that_knows_no_ranges_sends_the_file_again(remote, local_server, tmp_path):
    local_server.knows_ranges = False
    local_server.drops["/data.tgz"] = [1_200_000]
    assert download(remote(md5=MD5), tmp_path).read_bytes() == CONTENT


def test_an_interrupted_run_is_continued_by_the_next(remote, local_server, tmp_path):
    (tmp_path / "data.tgz.partial").write_bytes(CONTENT[:2_000_000])
    assert download(remote(md5=MD5), tmp_path).read_bytes() == CONTENT
    assert local_server.requests == [("/data.tgz", "bytes=2000000-")]


def test_a_run_interrupted_at_the_last_byte_asks_for_no_more(remote, local_server, tmp_path):
    (tmp_path / "data.tgz.partial").write_bytes(CONTENT)
    assert download(remote(md5=MD5), tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["data.tgz"]


@pytest.mark.parametrize("there", [OTHER[:2_000_000], OTHER + b"more"], ids=["shorter", "longer"])
def test_pieces_of_another_file_are_thrown_away_and_the_file_got_anew(remote, local_server, tmp_path, there):
    (tmp_path / "data.tgz.partial").write_bytes(there)
    assert download(remote(md5=MD5), tmp_path).read_bytes() == CONTENT
    assert local_server.requests[-1] == ("/data.tgz", None)


def test_a_wrong_file_is_got_anew_once_and_not_for_ever(remote, local_server, tmp_path):
    local_server.files["/data.tgz"] = OTHER
    (tmp_path / "data.tgz.partial").write_bytes(CONTENT[:2_000_000])
    with pytest.raises(DownloadError, match="expected md5"):
        download(remote(md5=MD5), tmp_path)
    assert [asked for _, asked in local_server.requests] == ["bytes=2000000-", None]
    assert names(tmp_path) == []


def test_pieces_without_a_known_digest_are_not_continued_by_another_run(remote, local_server, tmp_path):
    (tmp_path / "data.tgz.partial").write_bytes(OTHER[:2_000_000])
    assert download(remote(), tmp_path).read_bytes() == CONTENT
    assert local_server.requests == [("/data.tgz", None)]


def test_a_redirect_is_followed(remote, local_server, tmp_path):
    local_server.redirects["/moved"] = "/data.tgz"
    assert download(remote("/moved", md5=MD5), tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(remote, local_server, tmp_path):
    local_server.statuses["/data.tgz"] = [503, 429]
    assert download(remote(md5=MD5), tmp_path).read_bytes() == CONTENT
    assert len(local_server.requests) == 3


def spoil(server, how):
    """Makes /bad.tgz bad."""
    server.files["/bad.tgz"] = {"wrong": OTHER, "page": b"\n<!DOCTYPE html><html>log in</html>"}.get(how, CONTENT)
    if how == "html":
        server.files["/bad.tgz"] = b"<p>log in</p>"
        server.content_types["/bad.tgz"] = "text/html; charset=utf-8"
    elif how == "404":
        del server.files["/bad.tgz"]
    elif how == "500":
        server.statuses["/bad.tgz"] = [500] * 9
    elif how == "truncated":
        server.drops["/bad.tgz"] = [1_000_000] + [0] * 9


MIRROR_FAILURES = {
    "404": "HTTP 404 Not Found",
    "500": "HTTP 500 Internal Server Error",
    "wrong": "expected md5 .*, found",
    "html": "found a web page instead of the file",
    "page": "found a web page instead of the file",
    "truncated": "the connection ended after 1,000,000 of 3,000,000 bytes",
}


@pytest.mark.parametrize("how", MIRROR_FAILURES)
def test_a_mirror_that_fails_is_named_and_nothing_appears(remote, local_server, tmp_path, how):
    spoil(local_server, how)
    with pytest.raises(DownloadError, match=f"data.tgz: no mirror gives it .*/bad.tgz: {MIRROR_FAILURES[how]}"):
        download(remote("/bad.tgz", md5=MD5), tmp_path)
    assert set(names(tmp_path)) <= {"data.tgz.partial"}


@pytest.mark.parametrize("how", MIRROR_FAILURES)
def test_the_next_mirror_is_tried(remote, local_server, tmp_path, how):
    spoil(local_server, how)
    assert download(remote("/bad.tgz", "/data.tgz", md5=MD5), tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["data.tgz"]


@pytest.mark.parametrize("digests", [{}, {"md5": MD5}], ids=["unknown digest", "known digest"])
def test_a_mirror_that_never_gets_further_is_given_up(remote, local_server, tmp_path, digests):
    local_server.knows_ranges = False
    local_server.drops["/data.tgz"] = [1_000_000] * 50
    with pytest.raises(DownloadError, match="the connection ended after 1,000,000 of 3,000,000 bytes"):
        download(remote(**digests), tmp_path)
    assert len(local_server.requests) == 4


def test_pieces_of_two_mirrors_are_not_put_together_without_a_digest(remote, local_server, tmp_path):
    local_server.files["/other.tgz"] = OTHER
    local_server.etags["/other.tgz"] = '"1"'
    local_server.drops["/other.tgz"] = [1_000_000] + [0] * 9
    assert download(remote("/other.tgz", "/data.tgz"), tmp_path).read_bytes() == CONTENT


def test_a_mirror_that_answers_nothing_is_given_up(tmp_path, local_server):
    closed = "http://127.0.0.1:9/data.tgz"
    with pytest.raises(DownloadError, match=r"127.0.0.1:9/data.tgz: .*refused"):
        download(RemoteFile("data.tgz", (closed,)), tmp_path)


def test_a_wrong_file_under_the_name_is_not_overwritten(remote, local_server, tmp_path):
    (tmp_path / "data.tgz").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="data.tgz: expected md5 .*, found .* remove it"):
        download(remote(md5=MD5), tmp_path)
    assert (tmp_path / "data.tgz").read_bytes() == b"mine"
    assert not local_server.requests


@pytest.mark.parametrize("digits", [8, 64])
def test_the_first_digits_of_a_sha256_suffice(remote, tmp_path, digits):
    digest = hashlib.sha256(CONTENT).hexdigest()
    download(remote(sha256=digest[:digits].upper()), tmp_path / "right")
    with pytest.raises(DownloadError, match="expected sha256"):
        download(remote(sha256="0" * digits), tmp_path / "wrong")


def test_a_full_disk_is_announced_before_it_is_full(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadError, match=r"0.0 GB to download, 0.0 GB free. Free some space"):
        download(remote(md5=MD5), tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc/x"])
def test_a_name_with_a_folder_is_refused(name):
    with pytest.raises(ConfigError, match="expected a file name without a folder"):
        RemoteFile(name, ())


def test_other_schemes_are_refused():
    with pytest.raises(ConfigError, match="expected URLs of https, http, ftp, found file:///etc/passwd"):
        RemoteFile("x", ("file:///etc/passwd",))


def tar_with(*members):
    """A .tgz as bytes; a member is (name, content) or a TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def zip_with(*members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = (("set/a/1.jpg", b"one"), ("set/index.txt", b"two"), ("readme.txt", b"three"))


@pytest.mark.parametrize(("pack", "suffix"), [(tar_with, "tgz"), (zip_with, "zip")])
def test_an_archive_is_extracted_beside_itself(tmp_path, pack, suffix):
    archive = tmp_path / f"x.{suffix}"
    archive.write_bytes(pack(*GOOD))
    extract(archive, tmp_path)
    for name, content in GOOD:
        assert (tmp_path / name).read_bytes() == content
    assert names(tmp_path) == ["readme.txt", "set", archive.name]


def test_a_link_within_the_archive_is_kept(tmp_path):
    (tmp_path / "x.tgz").write_bytes(tar_with(*GOOD, special("set/latest", tarfile.SYMTYPE, "a")))
    extract(tmp_path / "x.tgz", tmp_path)
    assert (tmp_path / "set/latest/1.jpg").read_bytes() == b"one"


def link_in_zip(archive):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc")


OUTSIDE = "refused, it names files outside its folder"
HOSTILE = {
    "absolute": (tar_with(*GOOD, ("/tmp/evil", b"x")), OUTSIDE),
    "upwards": (tar_with(*GOOD, ("set/../../evil", b"x")), OUTSIDE),
    "link out": (tar_with(*GOOD, special("set/l", tarfile.SYMTYPE, "../..")), OUTSIDE),
    "absolute link": (tar_with(*GOOD, special("set/l", tarfile.SYMTYPE, "/etc")), OUTSIDE),
    "hard link out": (tar_with(*GOOD, special("set/l", tarfile.LNKTYPE, "../x.tgz")), OUTSIDE),
    "device": (tar_with(*GOOD, special("set/d", tarfile.CHRTYPE)), "set/d is neither a file nor a folder"),
    "zip upwards": (zip_with(*GOOD, ("../evil", b"x")), OUTSIDE),
    "zip absolute": (zip_with(*GOOD, ("/evil", b"x")), OUTSIDE),
    "zip of Windows": (zip_with(*GOOD, ("C:evil", b"x")), OUTSIDE),
    "truncated": (tar_with(*GOOD, ("big", CONTENT))[:1_000_000], "expected an intact archive"),
    "truncated zip": (zip_with(*GOOD, ("big", CONTENT))[:1_000_000], "expected an intact archive"),
    "damaged zip": (zip_with(*GOOD, ("big", b"abcdefgh" * 9)).replace(b"abcdefgh", b"abcdefgx", 1), "Bad CRC-32"),
    "no archive": (b"<html>", "expected an intact archive"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_or_damaged_archive_leaves_nothing_behind(tmp_path, how):
    content, message = HOSTILE[how]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "x.tgz").write_bytes(content)
    with pytest.raises((DatasetError, DownloadError), match=message):
        extract(folder / "x.tgz", folder)
    assert names(folder) == ["x.tgz"]
    assert names(tmp_path) == ["data"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link_in_zip(archive)
    with pytest.raises(DatasetError, match="refused, set/link is a link"):
        extract(tmp_path / "x.zip", tmp_path)


def test_a_folder_of_the_user_is_not_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    (tmp_path / "x.tgz").write_bytes(tar_with(*GOOD))
    with pytest.raises(DatasetError, match="set: x.tgz holds a folder of this name. Move or rename yours"):
        extract(tmp_path / "x.tgz", tmp_path)
    assert names(tmp_path / "set") == ["mine.txt"]
    assert not (tmp_path / "readme.txt").exists()


def deflated(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("pack", [lambda *entry: tar_with(entry), deflated], ids=["tar", "zip"])
def test_an_archive_of_zeros_is_refused(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(Limits, "FREE_OF_RATIO", 2**20)
    (tmp_path / "x.zip").write_bytes(pack("zeros", bytes(2**24)))
    assert (tmp_path / "x.zip").stat().st_size < 2**24 // 200
    with pytest.raises(DatasetError, match=r"x.zip: refused, it unpacks to more than [\d,]+ bytes, 100 times its own"):
        extract(tmp_path / "x.zip", tmp_path)
    assert names(tmp_path) == ["x.zip"]


def test_an_archive_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Limits, "MOST_ENTRIES", 1)
    (tmp_path / "x.tgz").write_bytes(tar_with(*GOOD))
    with pytest.raises(DatasetError, match="x.tgz: refused, it has more than 1 entries"):
        extract(tmp_path / "x.tgz", tmp_path)


def test_an_archive_that_the_disk_has_no_room_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 3))
    (tmp_path / "x.tgz").write_bytes(tar_with(*GOOD))
    with pytest.raises(DatasetError, match="bytes of free space, found 3. Free some"):
        extract(tmp_path / "x.tgz", tmp_path)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_of_the_user_is_not_replaced(tmp_path, kind):
    (tmp_path / "other").write_text("mine")
    if kind == "link":
        (tmp_path / "readme.txt").symlink_to("other")
    else:
        (tmp_path / "readme.txt").write_text("mine")
    (tmp_path / "x.tgz").write_bytes(tar_with(*GOOD))
    with pytest.raises(DatasetError, match="readme.txt: x.tgz holds a file of this name. Move or rename yours"):
        extract(tmp_path / "x.tgz", tmp_path)
    assert (tmp_path / "readme.txt").read_text() == "mine"
    assert not (tmp_path / "set").exists()


def test_what_a_killed_extraction_left_is_removed(tmp_path):
    (tmp_path / ".x.tgz.extracting" / "set").mkdir(parents=True)
    (tmp_path / "x.tgz").write_bytes(tar_with(*GOOD))
    extract(tmp_path / "x.tgz", tmp_path)
    assert names(tmp_path) == ["readme.txt", "set", "x.tgz"]


@pytest.fixture
def provided(tmp_path, local_server):
    """Provides a dataset that is there once set/index.txt is: from data.tgz, else from mirror.zip and notes.mat."""

    def run(may_download=True, mirrors=None):
        archive = {"name": "data.tgz", "urls": [f"{local_server.url}/data.tgz"]}
        mirror = [{"name": n, "urls": [f"{local_server.url}/{n}"]} for n in ("mirror.zip", "notes.mat")]
        root = tmp_path / "set-root"
        there = lambda: (root / "set/index.txt").is_file()  # noqa: E731
        provide("Set", root, mirrors or [[archive], mirror], may_download, there, "run prepare")
        return root

    return run


def test_the_first_source_that_gives_the_dataset_is_taken(provided, local_server):
    local_server.files["/data.tgz"] = tar_with(*GOOD)
    root = provided()
    provided()
    assert local_server.paths == ["/data.tgz"]
    assert names(root) == [".download.lock", "data.tgz", "readme.txt", "set"]


@pytest.mark.parametrize(
    "first",
    [None, tar_with(("other/index.txt", b"x")), tar_with(*GOOD, ("big", CONTENT))[:1_000_000]],
    ids=["dead", "another layout", "damaged"],
)
def test_the_second_source_is_tried_with_all_its_files(provided, local_server, first):
    if first is not None:
        local_server.files["/data.tgz"] = first
    local_server.files |= {"/mirror.zip": zip_with(*GOOD), "/notes.mat": b"notes"}
    root = provided()
    assert (root / "notes.mat").read_bytes() == b"notes"
    assert (root / "set/index.txt").is_file()


def test_dead_addresses_end_with_the_file_the_place_and_the_command(provided, local_server, tmp_path):
    local_server.files["/mirror.zip"] = zip_with(*GOOD)
    with pytest.raises(DatasetError) as caught:
        provided()
    message = str(caught.value)
    assert message.startswith("Set: expected to get it, found no source that gives it. data.tgz: no mirror gives it (")
    for part in ("/data.tgz: HTTP 404", "/notes.mat: HTTP 404", "put it at " + str(tmp_path / "set-root" / "data.tgz")):
        assert part in message
    assert message.endswith("then run: run prepare")


def test_without_permission_archives_on_disk_are_extracted_and_nothing_is_asked_for(provided, local_server, tmp_path):
    local_server.files["/data.tgz"] = tar_with(*GOOD)
    provided(may_download=False)
    assert not (tmp_path / "set-root").exists()
    (tmp_path / "set-root").mkdir()
    (tmp_path / "set-root" / "mirror.zip").write_bytes(zip_with(*GOOD))
    provided(may_download=False)
    assert not (tmp_path / "set-root" / "set").exists(), "notes.mat is missing"
    (tmp_path / "set-root" / "notes.mat").write_bytes(b"notes")
    root = provided(may_download=False)
    assert (root / "set/index.txt").is_file()
    assert not local_server.requests


def test_a_source_on_disk_is_preferred_to_one_to_download(provided, local_server, tmp_path):
    root = tmp_path / "set-root"
    root.mkdir()
    (root / "mirror.zip").write_bytes(zip_with(*GOOD))
    (root / "notes.mat").write_bytes(b"notes")
    provided()
    assert (root / "set/index.txt").is_file()
    assert not local_server.requests


def test_only_what_is_missing_is_downloaded(provided, local_server, tmp_path):
    local_server.files |= {"/notes.mat": b"notes", "/mirror.zip": zip_with(*GOOD)}
    root = tmp_path / "set-root"
    there = lambda: (root / "notes.mat").is_file() and (root / "set/index.txt").is_file()  # noqa: E731
    root.mkdir()
    (root / "set").mkdir()
    (root / "set" / "index.txt").write_text("extracted by hand")
    mirrors = [[{"name": n, "urls": [f"{local_server.url}/{n}"]} for n in ("notes.mat", "mirror.zip")]]
    provide("Set", root, mirrors, True, there, "")
    assert local_server.paths == ["/notes.mat"]


def test_a_hostile_archive_ends_the_search_for_sources(provided, local_server):
    local_server.files |= {"/data.tgz": HOSTILE["upwards"][0], "/mirror.zip": zip_with(*GOOD), "/notes.mat": b"notes"}
    with pytest.raises(DatasetError, match="refused, it names files outside its folder"):
        provided()
    assert local_server.paths == ["/data.tgz"]


def test_a_misspelt_key_of_a_source_is_named(provided):
    with pytest.raises(ConfigError, match=r"dataset.images.mirrors: expected files with name, urls, .*'md6'"):
        provided(mirrors=[[{"name": "a.zip", "urls": [], "md6": "1"}]])


def test_processes_that_start_together_download_once(local_server, tmp_path):
    local_server.files["/data.tgz"] = tar_with(*GOOD)
    code = f"""
from pathlib import Path
from mlrc_lightning.data.download import provide
root = Path({str(tmp_path)!r}) / "root"
mirrors = [[{{"name": "data.tgz", "urls": ["{local_server.url}/data.tgz"]}}]]
provide("Set", root, mirrors, True, lambda: (root / "set/index.txt").is_file(), "")
assert (root / "set/index.txt").is_file()
"""
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert local_server.paths == ["/data.tgz"]
