# shellcheck shell=bash
# XLA, JAX and NCCL settings for H100, in this one file. process.sh sources it on every host that has GPUs, for all launchers.
# XLA ends a program at its start over a flag that it does not know, so each flag here is checked against the installed jaxlib by
# tests/launch. A value already in the environment wins: in XLA_FLAGS the last mention of a flag counts, and yours come last.
#
#   XLA_FLAGS=--xla_gpu_deterministic_ops=true launch/local.sh 1 -- train --config=configs/vit.py    # bitwise repeats, slower
#
# None of this was measured here: no GPU was at hand. Time your own step (metrics.jsonl, time/step) before you keep a change.
#
# Sources: [xla] openxla.org/xla/flags_guidance and the flags' own help, [jax] docs.jax.dev/en/latest/gpu_performance_tips.html,
# [mem] docs.jax.dev/en/latest/gpu_memory_allocation.html, [nccl] docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html

flags=(
  # Schedules collectives so that they run beside computation (off unless asked for): gradients of the last layers are
  # reduced while those of the first are still computed. [jax] [xla]
  --xla_gpu_enable_latency_hiding_scheduler=true

  # Gradients are reduced in few, large all-reduces: DeiT-Tiny's float32 gradients are 21 MB, ViT-S/14's 88 MB, DeiT-Base's
  # 343 MB. 128 MiB keeps the small models to one all-reduce and leaves the large one several to overlap. The same for what
  # the fsdp axis gathers and scatters. [jax] [xla]
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728

  # A NCCL error ends the process (off by default): a lost peer then shows as exit code 134 and the launcher starts again,
  # instead of a collective that never returns. [xla]
  --xla_gpu_nccl_terminate_on_error=true

  # A device of this process that does not reach a collective ends the process after 10 minutes (default: never). [xla]
  --xla_gpu_nccl_termination_timeout_seconds=600

  # The first collective waits for hosts that still compile, which may take minutes when one of them finds no compiled
  # program in its cache; XLA's own patience is 40 s. [xla]
  --xla_gpu_first_collective_call_warn_stuck_timeout_seconds=60
  --xla_gpu_first_collective_call_terminate_timeout_seconds=600
)
# Left alone on purpose: xla_gpu_enable_triton_gemm, xla_gpu_triton_gemm_any, xla_gpu_autotune_level=4 and
# xla_gpu_enable_pipelined_reduce_scatter are defaults already; xla_gpu_enable_pipelined_all_reduce, _all_gather and
# xla_gpu_enable_while_loop_double_buffering act on loops over layers, and jaxkd's layers are not a loop.
export XLA_FLAGS="${flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
unset flags

# Share of the GPU that JAX takes at the start (its default is 0.75). The rest is for NCCL's and cuDNN's own buffers. [mem]
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

# NCCL prints why a connection failed, and nothing else (INFO prints the topology it found). [nccl]
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# Only you know these; NCCL finds them by itself on most clusters. [nccl]
#   NCCL_SOCKET_IFNAME=eth0         the network interface of its first contact, when a host has several that cannot reach each other
#   NCCL_IB_HCA=mlx5_0,mlx5_1,...   the InfiniBand adapters for GPU traffic, when some are for storage
#   NCCL_IB_DISABLE=1               no InfiniBand: sockets only, to find out whether it is the cause of a hang
