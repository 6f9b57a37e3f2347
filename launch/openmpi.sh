#!/usr/bin/env bash
# One job under Open MPI 4 or 5, restarted when a process is lost (restart.sh has the settings). What comes before -- goes to mpirun.
#
#   launch/openmpi.sh -n 16 --hostfile hosts --map-by ppr:8:node -- train --config=configs/ss_cka.py --workdir=/shared/runs/ss_cka
#
# mpirun only starts the processes and passes signals on; training communicates by NCCL (or gloo on CPU). Where a host gets
# several processes each drives the GPU of its local rank. The coordinator is the host of rank 0, found by a first, empty mpirun with
# the same options, on port JAXKD_PORT (default: a new one for every start). jaxkd's own --distributed=auto is not used, because Open
# MPI 5 no longer sets what JAX's detection looks for. The checkout is at the same path on all hosts.
set -euo pipefail
set -m # Ctrl-C reaches this launcher only, which passes it on once
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=restart.sh
. "$here/restart.sh"

usage="launch/openmpi.sh -n 16 --hostfile hosts -- train --config=configs/ss_cka.py --workdir=/shared/runs/ss_cka"
options=()
while (($# > 0)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
if (($# < 2)); then refuse "launch/openmpi.sh takes mpirun's options, -- and a command" "$usage"; fi
shift
command=("$@")
if ! command -v mpirun >/dev/null; then refuse "mpirun is not in PATH" "load your cluster's Open MPI module"; fi
# mpirun hands over to other hosts only what is named.
exported=()
while read -r name; do
  if [[ $name =~ ^(JAX|XLA|NCCL_|HF_|PATH$|LD_LIBRARY_PATH$|PYTHONPATH$|VIRTUAL_ENV$) ]]; then exported+=(-x "$name"); fi
done < <(compgen -e)

# shellcheck disable=SC2016 # expanded over there
coordinator=$(mpirun "${options[@]}" sh -c 'if [ "$OMPI_COMM_WORLD_RANK" = 0 ]; then hostname; fi' | head -n 1)
if [[ -z $coordinator ]]; then refuse "mpirun ${options[*]} starts no rank 0" "try: mpirun ${options[*]} hostname"; fi

running=""
stop() {
  stopped=$1
  if [[ -n $running ]]; then kill -s "$1" -- "$running" 2>/dev/null || true; fi
}
trap 'stop TERM' TERM
trap 'stop INT' INT

folder=$(mktemp -d "${TMPDIR:-/tmp}/jaxkd.XXXXXX")
trap 'rm -rf "$folder"' EXIT

attempt() {
  local code=0 copier
  export JAXKD_COORDINATOR=$coordinator:${JAXKD_PORT:-$((20000 + RANDOM % 12000))}
  rm -f "$folder/stderr"
  mkfifo "$folder/stderr"
  tee -p "$folder/log" <"$folder/stderr" >&2 &
  copier=$!
  mpirun "${options[@]}" "${exported[@]}" -x JAXKD_COORDINATOR bash "$here/process.sh" "${command[@]}" 2>"$folder/stderr" &
  running=$!
  while kill -0 "$running" 2>/dev/null; do
    code=0
    wait "$running" 2>/dev/null || code=$?
  done
  running=""
  wait "$copier" 2>/dev/null || true
  return "$(logged_cause "$folder/log" "$code")"
}

restart_loop attempt
