#!/usr/bin/env bash
# N processes on this machine as one job, restarted when one is lost (restart.sh, group.sh have the settings).
#
#   launch/local.sh 2 -- train --config=configs/quickstart.py --workdir=runs/two
#
# CPU: any N. GPU: one process drives all GPUs (N = 1, the usual choice on one machine: nothing to coordinate), or N divides
# their number and each process gets as many neighbouring ones. One process per GPU (N = their number) is what the multi-host
# launchers do: each GPU has its own Python to dispatch and feed it, and losing one process is tried here as it happens there.
set -euo pipefail
set -m # a process group for each process: Ctrl-C reaches this launcher only, which passes it on once
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=restart.sh
. "$here/restart.sh"
# shellcheck source-path=SCRIPTDIR source=group.sh
. "$here/group.sh"

usage="launch/local.sh 2 -- train --config=configs/quickstart.py --workdir=runs/two"
if (($# < 2)); then refuse "launch/local.sh takes the number of processes and a command" "$usage"; fi
count=$1
whole "the number of processes" "$count" 1
shift
if [[ $1 == -- ]]; then shift; fi
if (($# == 0)); then refuse "no command given" "$usage"; fi
command=("$@")

gpus=0
if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
  gpus=0
elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l)
elif command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi -L | grep -c '^GPU ' || true)
fi
if ((gpus % count != 0)); then
  refuse "$count processes cannot share $gpus GPUs evenly" "take a number that divides $gpus, or JAX_PLATFORMS=cpu"
fi

# attempt: the job once, on a port of its own, because an earlier attempt may still hold the last one.
attempt() {
  port=${JAXKD_PORT:-$(free_port)}
  run_group "$count"
}

start() {
  local identity=(JAXKD_CONTROL=stdin)
  if ((count > 1)); then
    identity+=("JAXKD_COORDINATOR=127.0.0.1:$port" "JAXKD_PROCESSES=$count" "JAXKD_PROCESS=$1")
    if ((gpus > 0)); then
      identity+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $((gpus * $1 / count)) $((gpus * ($1 + 1) / count - 1)))")
    fi
  fi
  env "${identity[@]}" bash "$here/process.sh" "${command[@]}"
}

restart_loop attempt
