"""Downloads: only when asked, resumed, checked before they get their name."""

import hashlib
import http.server
import re
import threading

import pytest

from jaxkd import config as configs
from jaxkd import data
from jaxkd.data import download
from jaxkd.data.download import Remote
from jaxkd.errors import CannotWrite, UserError
from tests.data.made import cifar_files, write_tar

BODY = bytes(range(256)) * 1000
SHA = "sha256:" + hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server():
  """A server of `files` that knows ranges, may cut every answer after `cut` bytes, and keeps the requests."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      found.requests.append((self.path, self.headers.get("Range")))
      body = found.files.get(self.path)
      if body is None:
        return self.send_error(404)
      start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1]) if found.ranges else 0
      if start >= len(body):
        return self.send_error(416)
      self.send_response(206 if start else 200)
      self.send_header("Content-Length", str(len(body) - start))
      self.end_headers()
      self.wfile.write(body[start:][: found.cut])
      return None

    def log_message(self, *_):
      pass

  found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  found.files, found.requests, found.cut, found.ranges = {"/a.bin": BODY}, [], None, True
  found.base = f"http://127.0.0.1:{found.server_port}"
  threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
  yield found
  found.shutdown()
  found.server_close()


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, tmp_path):
  target = tmp_path / "new" / "a.bin"
  for _ in range(2):
    download.download(Remote(server.base + "/a.bin", SHA), target)
  assert target.read_bytes() == BODY
  assert [p.name for p in target.parent.iterdir()] == ["a.bin"]
  assert len(server.requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_transfer_is_resumed(server, tmp_path, ranges):
  target, remote = tmp_path / "a.bin", Remote(server.base + "/a.bin", SHA)
  server.cut, server.ranges = 100_000, ranges
  with pytest.raises(UserError, match="cut after 100,000 of 256,000 bytes") as e:
    download.download(remote, target)
  assert "goes on where it stopped" in e.value.hint
  assert not target.exists()
  assert (tmp_path / "a.bin.part").stat().st_size == 100_000
  server.cut = None
  download.download(remote, target)
  assert server.requests[-1] == ("/a.bin", "bytes=100000-")
  assert target.read_bytes() == BODY


def test_processes_that_want_the_same_file_fetch_it_once(server, tmp_path):
  remote, target = Remote(server.base + "/a.bin", SHA), tmp_path / "a.bin"
  threads = [threading.Thread(target=download.download, args=(remote, target)) for _ in range(4)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert target.read_bytes() == BODY
  assert len(server.requests) == 1
  assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_whole_part_only_needs_its_name(server, tmp_path):
  (tmp_path / "a.bin.part").write_bytes(BODY)
  download.download(Remote(server.base + "/a.bin", SHA), tmp_path / "a.bin")
  assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_wrong_digest_leaves_nothing(server, tmp_path):  # fault 10
  wrong = "md5:" + "0" * 32
  found = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
  with pytest.raises(UserError, match=rf"md5 expected 0{{32}}, found {found} \(256,000 bytes\)"):
    download.download(Remote(server.base + "/a.bin", wrong), tmp_path / "a.bin")
  assert list(tmp_path.iterdir()) == []


def test_a_resumed_file_that_changed_meanwhile_is_found_out(server, tmp_path):
  (tmp_path / "a.bin.part").write_bytes(b"\xff" * 1000)
  with pytest.raises(UserError, match="sha256 expected"):
    download.download(Remote(server.base + "/a.bin", SHA), tmp_path / "a.bin")
  assert list(tmp_path.iterdir()) == []


def test_servers_that_fail_are_named(server, tmp_path):
  with pytest.raises(UserError, match=r"cannot download .*/none.bin: .*Not Found"):
    download.download(Remote(server.base + "/none.bin", SHA), tmp_path / "none.bin")
  with pytest.raises(UserError, match="Connection refused"):
    download.download(Remote("http://127.0.0.1:1/a.bin", SHA), tmp_path / "a.bin")
  (tmp_path / "file").write_text("")
  with pytest.raises(CannotWrite, match=r"file/a.bin.part"):
    download.download(Remote(server.base + "/a.bin", SHA), tmp_path / "file" / "a.bin")


def test_load_downloads_only_when_asked(server, tmp_path, monkeypatch):
  write_tar(tmp_path / "made.tar.gz", cifar_files(10, "python"))
  body = (tmp_path / "made.tar.gz").read_bytes()
  server.files["/cifar-10-python.tar.gz"] = body
  remote = Remote(server.base + "/cifar-10-python.tar.gz", "sha256:" + hashlib.sha256(body).hexdigest())
  monkeypatch.setitem(download.TABLE, "cifar10", (remote,))
  root = tmp_path / "root"
  wanted = {"name": "cifar10", "root": str(root), "validation": 0.2}
  with pytest.raises(UserError, match=r"needs cifar-10-python.tar.gz .* does not exist") as e:
    data.load(configs.complete({"data": wanted}).data)
  assert "--config.data.download=true" in e.value.hint
  assert not root.exists()
  assert server.requests == []
  asked = configs.complete({"data": {**wanted, "download": True}}).data
  assert len(data.load(asked).train) == 160
  assert len(data.load_test(asked)) == 20
  assert len(server.requests) == 1


def test_the_table_holds_published_digests_of_the_known_lengths():
  assert set(download.TABLE) == {"mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn"}
  remotes = [r for files in download.TABLE.values() for r in files]
  assert all(re.fullmatch(r"md5:[0-9a-f]{32}", r.digest) for r in remotes)
  assert len({r.digest for r in remotes}) == len(remotes)
  assert download.TABLE["cifar10"][0].digest == "md5:c58f30108f718f92721af3b95e74349a"
