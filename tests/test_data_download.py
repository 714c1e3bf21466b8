"""Downloads against an HTTP server of the test's own: resumed, checked, and clear about what went wrong."""

import argparse
import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from minidnn.data import download as module
from minidnn.data.command import add_arguments, main
from minidnn.data.download import download
from minidnn.errors import InputError
from minidnn.random import rng

DATA = rng(0, "download").bytes(1_000_000)
MD5, SHA256 = hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves DATA at /file.zip; `server.behaviour` says how."""

    def do_GET(self):
        behaviour, asked = self.server.behaviour, self.headers.get("Range")
        self.server.asked.append(asked)
        if self.path != "/file.zip":
            return self.send_error(404)
        if behaviour.get("fail_once") and len(self.server.asked) > 1:
            behaviour.pop("fail_once")
            return self.send_error(503)
        start = (
            int(asked.removeprefix("bytes=").rstrip("-")) if asked and behaviour.get("ranges", True) else 0
        )
        if start >= len(DATA):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(DATA)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            shift = behaviour.get("shift", 0)
            self.send_header("Content-Range", f"bytes {start + shift}-{len(DATA) - 1}/{len(DATA)}")
        if behaviour.get("length", True):
            self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        stop = behaviour.get("cut", len(DATA))  # closes the connection after so many bytes
        self.wfile.write(DATA[start : start + stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.behaviour, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}/file.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("checksum", [MD5, MD5.upper(), SHA256, "", None])
def test_whole_file(server, tmp_path, checksum):
    target = download(server.url, tmp_path / "new" / "file.zip", checksum)
    assert target.read_bytes() == DATA and server.asked == [None]
    assert [path.name for path in target.parent.iterdir()] == ["file.zip"]
    assert download(server.url, target, checksum) == target and len(server.asked) == 1  # nothing to do


def test_goes_on_where_an_earlier_run_stopped(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(DATA[:300_000])
    assert download(server.url, tmp_path / "file.zip", MD5).read_bytes() == DATA
    assert server.asked == ["bytes=300000-"]


def test_goes_on_by_itself_when_the_connection_breaks(server, tmp_path):
    server.behaviour["cut"] = 400_000
    assert download(server.url, tmp_path / "file.zip", MD5).read_bytes() == DATA
    assert server.asked == [None, "bytes=400000-", "bytes=800000-"]


def test_gives_up_in_the_end_and_keeps_what_it_has(server, tmp_path):
    server.behaviour["cut"] = 100_000
    with pytest.raises(
        InputError, match=r"broken off after 400,000 bytes .*the same command goes on from there"
    ):
        download(server.url, tmp_path / "file.zip", MD5)
    server.behaviour.clear()
    assert download(server.url, tmp_path / "file.zip", MD5).read_bytes() == DATA
    assert server.asked[-1] == "bytes=400000-"


def test_an_error_of_the_server_half_way_keeps_what_arrived(server, tmp_path):
    server.behaviour.update(cut=400_000, fail_once=True)
    with pytest.raises(InputError, match="broken off after 400,000 bytes .HTTP 503"):
        download(server.url, tmp_path / "file.zip", MD5)
    assert download(server.url, tmp_path / "file.zip", MD5).read_bytes() == DATA


def test_server_without_ranges_starts_anew(server, tmp_path):
    server.behaviour["ranges"] = False
    (tmp_path / "file.zip.part").write_bytes(b"x" * 300_000)
    assert download(server.url, tmp_path / "file.zip", MD5).read_bytes() == DATA


def test_server_that_does_not_tell_the_length(server, tmp_path):
    server.behaviour["length"] = False
    assert download(server.url, tmp_path / "file.zip", MD5).read_bytes() == DATA


@pytest.mark.parametrize("extra", [0, 5])
def test_part_that_is_whole_or_too_long(server, tmp_path, extra):
    (tmp_path / "file.zip.part").write_bytes(DATA + b"x" * extra)
    assert download(server.url, tmp_path / "file.zip", MD5).read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA) + extra}-"] + [None] * bool(extra)


def test_a_mistyped_checksum_costs_no_second_download(server, tmp_path):
    with pytest.raises(InputError, match="its checksum is not 0000.*kept in .*file.zip.part: delete that"):
        download(server.url, tmp_path / "file.zip", "0" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip.part"]
    assert download(server.url, tmp_path / "file.zip", MD5).read_bytes() == DATA
    assert server.asked == [None, f"bytes={len(DATA)}-"]  # which the server answers with: nothing beyond
    (tmp_path / "file.zip").write_bytes(b"something else")
    with pytest.raises(InputError, match="there already, with another checksum"):
        download(server.url, tmp_path / "file.zip", MD5)
    assert (tmp_path / "file.zip").read_bytes() == b"something else"
    with pytest.raises(InputError, match="checksum 12: expected"):
        download(server.url, tmp_path / "other.zip", "12")
    with pytest.raises(InputError, match="checksum zzzz.*: expected"):
        download(server.url, tmp_path / "other.zip", "z" * 32)


def test_without_a_checksum_no_cut_and_no_mixed_file_passes(server, tmp_path):
    part = tmp_path / "file.zip.part"
    part.write_bytes(b"x" * 300_000)  # of another file
    assert download(server.url, tmp_path / "file.zip").read_bytes() == DATA
    assert part.read_bytes() == b"x" * 300_000  # left alone, whosever it is
    server.behaviour["cut"] = 400_000
    with pytest.raises(InputError, match="broken off after 400,000 bytes .*: try again"):
        download(server.url, tmp_path / "b.zip")
    server.behaviour["length"] = False
    with pytest.raises(InputError, match="does not tell the length.*give a checksum"):
        download(server.url, tmp_path / "b.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.zip", "file.zip.part"]


def test_only_files_of_a_server_and_only_into_the_folder(server, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("here")
    for address in (secret.as_uri(), "data:,x", "ftp://127.0.0.1/x", "FILE:///etc/passwd", ""):
        with pytest.raises(InputError, match="not an address"):
            download(address, tmp_path / "a.zip")
    (tmp_path / "file.zip.part").symlink_to(secret)
    with pytest.raises(InputError, match="file.zip.part: a link"):
        download(server.url, tmp_path / "file.zip", MD5)
    assert secret.read_text() == "here"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = tmp_path / "out"
    out.mkdir()
    for end in ("/..", "/.", "/", "/../?x=/.."):
        url = server.url.removesuffix("/file.zip") + end
        with pytest.raises(InputError, match="HTTP 404"):
            main(parser.parse_args(["tiny-imagenet", "--out", str(out), "--url", url]))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file.zip.part", out, secret] and not list(out.iterdir())


def test_answer_that_does_not_fit_the_question(server, tmp_path):
    server.behaviour["shift"] = 10
    (tmp_path / "file.zip.part").write_bytes(DATA[:300_000])
    with pytest.raises(InputError, match="asked for bytes from 300000, the server sent 'bytes 300010-"):
        download(server.url, tmp_path / "file.zip", MD5)


def test_no_such_file_no_server_no_address(server, tmp_path):
    with pytest.raises(InputError, match="other.zip: HTTP 404 .*no such file on the server"):
        download(server.url.replace("file.zip", "other.zip"), tmp_path / "a.zip")
    with socket.socket() as free:  # bound but not listening: refuses connections
        free.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="no connection .*refused"):
            download(f"http://127.0.0.1:{free.getsockname()[1]}/file.zip", tmp_path / "a.zip")
    with pytest.raises(InputError, match="not an address"):
        download("file.zip", tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_disk_errors_are_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        download(server.url, tmp_path / "file" / "file.zip")

    class FullDisk:
        def __init__(self, *args):
            self.file = open(*args)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "open", FullDisk, raising=False)
    with pytest.raises(InputError, match="cannot write .*file.zip.part: No space left on device"):
        download(server.url, tmp_path / "file.zip", MD5)


def test_progress_bar(server, tmp_path, capsys):
    download(server.url, tmp_path / "a.zip", MD5, progress=True)
    assert "a.zip: [##############################] 1/1 MiB\n" in capsys.readouterr().err
    download(server.url, tmp_path / "b.zip", MD5, progress=False)
    assert capsys.readouterr().err == ""


def test_command(server, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["tiny-imagenet", "--out", str(tmp_path), "--url", server.url, "--checksum", MD5]
    assert main(parser.parse_args(options)) == 0
    assert (
        capsys.readouterr().out == f"{tmp_path / 'file.zip'}\n"
        and (tmp_path / "file.zip").read_bytes() == DATA
    )
    default = parser.parse_args(["tiny-imagenet"])
    assert default.url == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert default.checksum == "90528d7ca1a48142e341f4ef8d21d0de"
