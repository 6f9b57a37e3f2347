"""The roofline against numbers worked out by hand."""

import pytest

from jaxkd.errors import UserError
from jaxkd.planning.chips import CHIPS, Chip, chip, measured
from jaxkd.planning.roofline import Work, step_time, wire_bytes

TEN = Chip("ten", "cuda", 100e12, 50e12, 10e12, 1e12, 80e9, 100e9, 10e9, "test")


def test_the_longer_of_arithmetic_and_memory_counts_then_communication():
  # 4 devices: 400 TFLOP at 100 TFLOP/s each are 1 s, 2 TB at 1 TB/s each 0.5 s, 10 GB by 100 GB/s 0.1 s.
  time = step_time(Work(400e12, 2e12), TEN, dtype="bfloat16", devices=4, sent=10e9)
  assert (time.arithmetic, time.memory, time.communication) == pytest.approx((1000, 500, 100))
  assert time.step == pytest.approx(1100)
  bound = step_time(Work(40e12, 8e12), TEN, dtype="bfloat16", devices=4)
  assert bound.step == bound.memory == pytest.approx(2000)


def test_float32_products_take_the_time_of_their_own_rate():
  # 50 TFLOP at 100, 40 at 10, 10 at 50 TFLOP/s.
  time = step_time(Work(100e12, 0, 40e12, 10e12), TEN, dtype="bfloat16", devices=1)
  assert time.arithmetic == pytest.approx(500 + 4000 + 200)
  assert step_time(Work(100e12, 0), TEN, dtype="float32", devices=1).arithmetic == pytest.approx(2000)


def test_several_hosts_are_limited_by_their_network():
  one, two = (
    step_time(Work(0, 0), TEN, dtype="bfloat16", devices=16, hosts=n, sent=1e9).communication for n in (1, 2)
  )
  assert (one, two) == pytest.approx((10, 100))


def test_ring_traffic():
  assert wire_bytes("all-reduce", 16e6, 16) == pytest.approx(30e6)  # 2 (n - 1) / n
  assert wire_bytes("reduce-scatter", 16e6, 16) == wire_bytes("all-gather", 16e6, 16) == pytest.approx(15e6)
  assert wire_bytes("all-reduce", 16e6, 1) == 0


def test_chips_by_name():
  assert chip("h100") is CHIPS["h100"]
  with pytest.raises(UserError, match="unknown chip 'h10'") as caught:
    chip("h10")
  assert "h100" in caught.value.hint
  here = measured()
  assert here.basis == "measured"
  assert 1e8 < here.float32 < 1e14
  assert 1e8 < here.bandwidth < 1e13
