"""Who is missing, who differs: said by all processes, before jax starts and in time."""

import socket
import threading
import time

import pytest

from jaxkd import distributed
from jaxkd.errors import UserError
from jaxkd.rendezvous import differences, meet

from .launch import CONFIG, free_port, run

FACTS = {"jax": "0.10.2"}


def meeting(numbers, *, processes, timeout=10.0, facts=None, counts=None):
  """What each of the processes, here threads, ends with: None or its UserError; and the seconds it took."""
  address, found, began = f"127.0.0.1:{free_port()}", {}, time.monotonic()

  def one(key, number):
    try:
      count = (counts or {}).get(key, processes)
      meet(address, processes=count, process=number, timeout=timeout, facts=(facts or {}).get(key, FACTS))
      found[key] = None
    except UserError as e:
      found[key] = e

  threads = [threading.Thread(target=one, args=pair) for pair in enumerate(numbers)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  return found, time.monotonic() - began


def test_all_there():
  found, seconds = meeting(range(4), processes=4)
  assert found == dict.fromkeys(range(4))
  assert seconds < 5


def test_the_port_is_free_again_at_once():
  port = free_port()
  meet(f"127.0.0.1:{port}", processes=1, process=0, timeout=5)
  socket.create_server(("127.0.0.1", port)).close()


def test_the_missing_ones_are_named_by_all_that_came():  # fault 39
  found, seconds = meeting((0, 2), processes=4, timeout=2.0)
  assert 2 <= seconds < 4
  for error in found.values():
    assert error.message == "2 of 4 processes did not arrive within 2 s: 1, 3"
    assert error.code == 2


def test_a_coordinator_that_does_not_answer():  # fault 39
  with pytest.raises(
    UserError, match=r"process 1 of 2 cannot reach the coordinator 127.0.0.1:\d+ within 1 s: conn"
  ):
    meet(f"127.0.0.1:{free_port()}", processes=2, process=1, timeout=1)


def test_a_coordinator_whose_name_nobody_knows():
  with pytest.raises(UserError, match=r"cannot reach the coordinator nowhere\.invalid:29500"):
    meet("nowhere.invalid:29500", processes=2, process=1, timeout=1)


def test_something_else_listens_there():
  with socket.create_server(("127.0.0.1", 0)) as server:

    def answer():
      peer, _ = server.accept()
      with peer:
        peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
        peer.recv(100)

    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(UserError, match="what listens there is not process 0"):
      meet(f"127.0.0.1:{server.getsockname()[1]}", processes=2, process=1, timeout=0.5)


def test_a_port_that_is_taken():
  with (
    socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
    pytest.raises(UserError, match="cannot listen at port"),
  ):
    meet(f"127.0.0.1:{server.getsockname()[1]}", processes=2, process=0, timeout=1)


def test_a_stranger_at_the_port_disturbs_nobody():
  address = f"127.0.0.1:{(port := free_port())}"
  first = threading.Thread(target=meet, args=(address,), kwargs={"processes": 2, "process": 0, "timeout": 10})
  first.start()
  time.sleep(0.2)
  with socket.create_connection(("127.0.0.1", port)) as stranger:
    stranger.sendall(b"GET / HTTP/1.1\r\n")
    meet(address, processes=2, process=1, timeout=10)
  first.join(timeout=10)
  assert not first.is_alive()


def test_two_with_the_same_number():
  found, seconds = meeting((0, 1, 1), processes=3)
  assert seconds < 5
  assert all("two processes say they are process 1 of 3" in e.message for e in found.values())


def test_other_counts():
  found, _ = meeting((0, 1), processes=2, counts={1: 3})
  assert all("was started as one of 3, process 0 as one of 2" in e.message for e in found.values())


def test_other_packages_are_named_with_their_processes():  # fault 40
  found, _ = meeting(range(3), processes=3, facts={2: {"jax": "0.11.0"}})
  for error in found.values():
    assert error.message == "the processes differ: jax (0.10.2 in processes 0, 1, 0.11.0 in process 2)"


def test_differences():
  facts = {0: {"a": 1, "b": [1, 2]}, 1: {"a": 1, "b": [1, 3]}, 2: {"a": 1}}
  assert differences(facts) == ["b ([1, 2] in process 0, [1, 3] in process 1, nothing in process 2)"]
  assert differences({i: {"a": 1} for i in range(3)}) == []


def test_the_code_is_part_of_the_software():
  found = distributed.software()
  assert len(found["jaxkd code"]) == 64
  assert {"jax", "flax", "optax", "orbax-checkpoint"} < found.keys()


def test_one_process_alone_needs_nobody():
  assert distributed.from_first(lambda: (1, 2)) == (1, 2)
  assert distributed.agree({"a": 1}) is None
  assert distributed.is_first()


COMMAND = ("train", f"--config={CONFIG}")


def test_a_peer_that_never_comes_ends_the_command_in_time(tmp_path):  # fault 39: 15 s, not jax's 300 s
  folder, address = tmp_path / "run", f"127.0.0.1:{free_port()}"
  command = (*COMMAND, f"--workdir={folder}", f"--coordinator={address}", "--processes=2", "--process=0")
  (code,), _, (errors,), seconds = run(1, *command, "--start-timeout=4")
  assert code == 2, errors
  assert "error: 1 of 2 processes did not arrive within 4 s: 1" in errors
  assert "hint: " in errors
  assert 4 <= seconds < 15
  assert not folder.exists()


def test_other_versions_end_all_before_jax_starts(tmp_path):  # fault 40
  own = {1: {"TEST_VERSION": "optax 9.9.9"}}
  codes, _, errors, _ = run(2, *COMMAND, f"--workdir={tmp_path / 'run'}", own=own)
  assert codes == [2, 2], errors
  assert all("the processes differ: optax (" in e and "9.9.9 in process 1" in e for e in errors), errors


def test_other_configs_and_data_end_all_before_anything_is_compiled(tmp_path):  # fault 40
  folder = tmp_path / "run"
  address = f"127.0.0.1:{free_port()}"
  where = (f"--coordinator={address}", "--processes=2", f"--workdir={folder}")
  own = {
    0: {"JAXKD_PROCESS": 0},
    1: {"JAXKD_PROCESS": 1, "TEST_EXTRA": "--config.optim.lr=0.5 --config.data.examples=160"},
  }
  codes, _, errors, _ = run(2, *COMMAND, *where, own=own, flags=False)
  assert codes == [2, 2], errors
  for text in errors:
    assert "config optim.lr (0.02 in process 0, 0.5 in process 1)" in text
    assert "config data.examples (120 in process 0, 160 in process 1)" in text
    assert "data digest (" in text
  assert not (folder / "config.json").exists()
