#!/usr/bin/env bash
# One job over hosts that ssh reaches without a password, restarted when one is lost (restart.sh, group.sh have the settings).
#
#   launch/ssh.sh node1,node2 -- train --config=configs/ss_cka.py --workdir=/shared/runs/ss_cka
#   launch/ssh.sh node1,node1,node2,node2 -- ...    # a host once per process: two on each
#
# The checkout (or JAXKD_REMOTE: its path over there) and the run folder are the same paths on all hosts, on a shared file system.
# The first host coordinates on port JAXKD_PORT (default: a new one for every start) and must be reachable from the others under
# the name given here. A host named once gets one process that drives all its GPUs; a host named as often as it has GPUs gets one
# process per GPU. Variables called JAX*, XLA*, NCCL_* and HF_* go along, others do not (ssh's way).
set -euo pipefail
set -m # a process group for each process: Ctrl-C reaches this launcher only, which passes it on once
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=restart.sh
. "$here/restart.sh"
# shellcheck source-path=SCRIPTDIR source=group.sh
. "$here/group.sh"

usage="launch/ssh.sh node1,node2 -- train --config=configs/ss_cka.py --workdir=/shared/runs/ss_cka"
if (($# < 2)); then refuse "launch/ssh.sh takes hosts, separated by commas, and a command" "$usage"; fi
IFS=, read -r -a hosts <<<"$1"
for host in "${hosts[@]}"; do
  if ! [[ $host =~ ^([A-Za-z0-9_.-]+@)?[A-Za-z0-9][A-Za-z0-9_.:-]*$ ]]; then refuse "'$host' is no host name" "$usage"; fi
done
shift
if [[ $1 == -- ]]; then shift; fi
if (($# == 0)); then refuse "no command given" "$usage"; fi
command=("$@")
remote=${JAXKD_REMOTE:-$checkout}

attempt() {
  port=${JAXKD_PORT:-$((20000 + RANDOM % 12000))} # cannot be looked up over there; another one is tried at the next restart
  run_group "${#hosts[@]}"
}

start() {
  local host=${hosts[$1]} line i before=0 after=0 name
  for i in "${!hosts[@]}"; do
    if [[ ${hosts[i]} == "$host" ]]; then if ((i < $1)); then before=$((before + 1)); else after=$((after + 1)); fi; fi
  done
  line="cd $(printf %q "$PWD") && env"
  while read -r name; do
    if [[ $name =~ ^(JAX|XLA|NCCL_|HF_) ]]; then line+=" $(printf %q "$name=${!name}")"; fi
  done < <(compgen -e)
  line+=" JAXKD_CONTROL=stdin"
  if ((${#hosts[@]} > 1)); then
    line+=" JAXKD_COORDINATOR=${hosts[0]##*@}:$port JAXKD_PROCESSES=${#hosts[@]} JAXKD_PROCESS=$1"
  fi
  if ((before + after > 1)); then line+=" JAX_LOCAL_DEVICE_IDS=$before"; fi
  line+=" bash $(printf %q "$remote/launch/process.sh") $(printf '%q ' "${command[@]}")"
  # A host that vanishes is noticed after 30 s; a question for a password would wait for ever.
  ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 "$host" "$line"
}

restart_loop attempt
