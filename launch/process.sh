#!/usr/bin/env bash
# One process of a job: runs jaxkd, passes signals on to it, says how it ended and, when a peer was lost, which one.
# Every launcher starts its processes through this file; alone it is the command of a Kubernetes container.
#
#   JAXKD_COORDINATOR=node1:29400 JAXKD_PROCESSES=2 JAXKD_PROCESS=0 bash launch/process.sh train --config=configs/vit.py
#
# JAXKD_CONTROL=stdin reads signals from standard input, one name a line (local.sh and ssh.sh use it, because ssh passes no
# signals on); its end means that the launcher is gone, and ends the run as SIGTERM does. The exit code is jaxkd's, except that
# an exception about a broken connection to a peer counts as a lost peer (134).
set -euo pipefail
set -m # jaxkd gets a process group of its own: Ctrl-C on a terminal then reaches it once, not once from us and once more
# shellcheck source-path=SCRIPTDIR source=restart.sh
. "$(dirname "${BASH_SOURCE[0]}")/restart.sh"
# What the libraries under jax say when the other end of a connection is gone.
readonly BROKEN='Gloo [A-Za-z]+ failed|[Cc]oordination service.*(UNAVAILABLE|unavailable)|ncclRemoteError|remote process exited|NCCL.*([Cc]onnection|unhandled system error)'

if (($# == 0)); then refuse "no command given" "launch/process.sh train --config=configs/vit.py --workdir=runs/vit"; fi
process=${JAXKD_PROCESS:-${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:-0}}}
processes=${JAXKD_PROCESSES:-${SLURM_NTASKS:-${OMPI_COMM_WORLD_SIZE:-1}}}
if [[ -n ${OMPI_COMM_WORLD_RANK:-} && -n ${JAXKD_COORDINATOR:-} ]]; then # openmpi.sh knows the coordinator, mpirun the rest
  export JAXKD_PROCESS=$process JAXKD_PROCESSES=$processes
  if ((${OMPI_COMM_WORLD_LOCAL_SIZE:-1} > 1)); then export JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK; fi
fi
if [[ -d $checkout/jaxkd ]]; then export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}; fi
if [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  # shellcheck source-path=SCRIPTDIR source=xla_flags_h100.sh
  . "$checkout/launch/xla_flags_h100.sh"
fi

# lost_peer LOG: the sentence behind an abort, from what jax wrote before it.
lost_peer() {
  local peers
  peers=$({
    grep -oE 'Task [0-9]+ heartbeat timeout' "$1" | grep -oE '[0-9]+'
    grep -A1 'unhealthy (stopped sending heartbeats):' "$1" | grep -oE '^[0-9, ]+$' | tr -s ', ' '\n'
  } | grep . | sort -nu | paste -sd, | sed 's/,/, /g') || true
  if [[ -n $peers ]]; then
    echo "process $peers of $processes was lost: it stopped answering (killed, out of memory, or its host or network is gone)"
  elif grep -q 'RegisterTask' "$1" && ((process == 0)); then
    echo "not all of the $processes processes arrived in time"
  elif grep -q 'RegisterTask' "$1"; then
    echo "the coordinator ${JAXKD_COORDINATOR:-} did not answer in time: process 0 is not running there"
  elif grep -qE "$BROKEN" "$1"; then
    echo "a peer was lost: $(grep -oE "($BROKEN).*" "$1" | head -n 1 | cut -c -160)"
  else
    echo "it aborted; what it wrote above says more"
  fi
}

signalled="" child="" code=0
pass_on() {
  signalled=$1
  if [[ -n $child ]]; then kill -s "$1" -- "$child" 2>/dev/null || true; fi
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

# finish PID: waits for its exit code, however many signals arrive meanwhile.
finish() {
  local found
  while :; do
    signalled="" found=0
    wait "$1" 2>/dev/null || found=$?
    if ((found != 127)); then code=$found; fi # 127: reaped in the round before
    if [[ -z $signalled ]]; then break; fi
  done
}

# obey: passes on the signals that arrive by name on standard input; its end is that of the launcher.
obey() {
  local name
  while read -r name; do kill -s "$name" -- "$child" || return 0; done
  kill -s TERM -- "$child" || return 0
  sleep "${JAXKD_SAVE_TIME:-300}"
  kill -s KILL -- "$child" || true
}

# guard: ends the run if this shell is killed (file descriptor 4 has an end when nobody holds it): it would go on unseen, and keep
# the run folder locked.
guard() {
  read -r _ || true
  kill -s KILL -- "-$child" ${obeying:+"-$obeying"} || true
  rm -rf "$folder"
}

folder=$(mktemp -d "${TMPDIR:-/tmp}/jaxkd.XXXXXX")
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/stdout" "$folder/stderr" "$folder/alive"
# Copied by tee -p, so that the run can still save when whoever read its output is gone.
tee -p /dev/null <"$folder/stdout" &
copiers=($!)
tee -p "$folder/log" <"$folder/stderr" >&2 &
copiers+=($!)
exec 3<&0 4<>"$folder/alive"
"$(python_path)" -u -m jaxkd.main "$@" 3<&- 4<&- </dev/null >"$folder/stdout" 2>"$folder/stderr" &
child=$!
if [[ -n $signalled ]]; then pass_on "$signalled"; fi # it came before there was anybody to pass it on to
helpers=() obeying=""
if [[ ${JAXKD_CONTROL:-} == stdin ]]; then
  obey <&3 3<&- 4<&- 2>/dev/null &
  obeying=$!
  helpers+=("$obeying")
fi
guard 3<&- 4<&- <"$folder/alive" 2>/dev/null &
helpers+=($!)
disown "${helpers[@]}" # or bash would report their end
finish "$child"
kill -s KILL -- "${helpers[@]/#/-}" "-$child" 2>/dev/null || true # and loader workers that outlive a killed parent
for _ in {1..20}; do # the last lines, but no waiting for a grandchild that keeps the pipe open
  if ! kill -0 "${copiers[@]}" 2>/dev/null; then break; fi
  sleep 0.1
done
kill -s KILL "${copiers[@]}" 2>/dev/null || true

if ((code == 1 && processes > 1)) && grep -qE "$BROKEN" "$folder/log"; then code=134; fi
if ((code == 134 && processes > 1)); then say "process $process: $(lost_peer "$folder/log")"; fi
say "process $process of $processes on ${HOSTNAME:-?} ended with exit code $code ($(meaning "$code"))"
exit "$code"
