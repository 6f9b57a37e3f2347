"""Reading programs: small texts whose counts are known, and a program that is compiled here."""

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxkd.planning import compiled, lowered

PROGRAMS = Path(__file__).parent / "programs"
LOWERED = (PROGRAMS / "lowered.mlir").read_text()

COMPILED = (PROGRAMS / "compiled.hlo").read_text()


def test_lowered_calls_are_counted_as_often_as_their_function_is_called():
  assert lowered.attention_calls(LOWERED) == (2, 2)


def test_float32_products_are_told_with_their_origin_and_flops():
  found = {p.function: p for p in lowered.float32_products(LOWERED)}
  assert set(found) == {"Mlp.__call__", "_gram"}
  assert (found["Mlp.__call__"].count, found["Mlp.__call__"].flops) == (2, 2 * 2 * 4 * 8 * 2)
  assert not found["Mlp.__call__"].reason
  assert not found["Mlp.__call__"].highest
  assert found["_gram"].reason
  assert found["_gram"].highest
  assert found["_gram"].count == 1  # the bfloat16 product beside it is none


def test_compiled_kernels_and_traffic():
  program = compiled.parse(COMPILED)
  assert program.kernels == {
    "fusion: Loop": 1,
    "library: __cublas lt matmul": 1,
    "attention": 1,
    "collective": 3,
  }
  assert program.attention == (1, 0)
  # 40 of the 10,000 bytes picked and written, 16 of indices; 256 read, 128 written; 128 read, 128 written.
  assert program.bytes == (40 + 40 + 16) + (256 + 128) + (128 + 128)


def test_compiled_collectives_with_their_purpose():
  found = {c.kind: c for c in compiled.parse(COMPILED).collectives}
  assert (found["all-reduce"].bytes, found["all-reduce"].group) == (128, 16)
  assert found["all-reduce"].purpose == "gradients"
  assert (found["all-gather"].bytes, found["all-gather"].group) == (512, 2)
  assert found["all-gather"].purpose == "loss, accuracy and the norm of the gradient"
  assert found["reduce-scatter"].group == 2


def test_what_nothing_explains_is_unknown():
  text = COMPILED.replace("jaxkd/step.py", "other/step.py").replace("transpose(jvp())", "")
  assert {c.purpose for c in compiled.parse(text).collectives} == {"unknown"}


def test_a_real_program_parses():
  made = jax.jit(lambda x, w: jnp.tanh(x @ w).sum()).lower(jnp.ones((8, 16)), jnp.ones((16, 4))).compile()
  program = compiled.parse(made.as_text())
  assert program.entry
  assert program.bytes >= 4 * (8 * 16 + 16 * 4)
