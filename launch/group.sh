# shellcheck shell=bash
# Shared by local.sh and ssh.sh (sourced after restart.sh): N processes as one job. Each is started by `start INDEX`, which the
# launcher defines and which ends with the process's exit code; its standard input carries the names of signals (process.sh).
#
#   JAXKD_GRACE       seconds that the others have to end by themselves after one failed (30): then SIGTERM, SIGKILL 10 s later
#   JAXKD_SAVE_TIME   the same after a process saved or was asked to (300): the others may still be writing the checkpoint

declare -a channels=() pids=() codes=()

# tell NAME: sends a signal to every process that still runs.
tell() {
  local i
  for i in "${!pids[@]}"; do
    if [[ -z ${codes[i]:-} ]]; then echo "$1" >&"${channels[i]}"; fi
  done
}

# The launcher was asked to stop: so are its processes, which save; nothing is run again.
deadline=""
stop() {
  # shellcheck disable=SC2034 # read by restart_loop
  stopped=$1
  deadline=$((SECONDS + save_time))
  tell "$1"
}

# run_group N: runs processes 0 to N-1 once; the exit code that decides (restart.sh: cause).
run_group() {
  local count=$1 grace=${JAXKD_GRACE:-30} alive=$1 own=() killed=() forced="" failed="" i code
  save_time=${JAXKD_SAVE_TIME:-300}
  whole JAXKD_GRACE "$grace"
  whole JAXKD_SAVE_TIME "$save_time"
  deadline="" channels=() pids=() codes=()
  local folder
  folder=$(mktemp -d "${TMPDIR:-/tmp}/jaxkd.XXXXXX")
  mkfifo "$folder/ended"
  exec {ended}<>"$folder/ended"
  for ((i = 0; i < count; i++)); do
    mkfifo "$folder/$i"
    exec {channel}<>"$folder/$i" # held open: a process reads the end of it only when this launcher is gone
    channels[i]=$channel
  done
  for ((i = 0; i < count; i++)); do
    exec 5<"$folder/$i"
    (
      for channel in "${channels[@]}"; do exec {channel}>&-; done
      code=0
      start "$i" <&5 5<&- || code=$?
      echo "$i $code" >&"$ended"
    ) &
    pids[i]=$!
    exec 5<&-
  done
  rm -rf "$folder" # the pipes live on while they are open
  trap 'stop TERM' TERM
  trap 'stop INT' INT
  while ((alive > 0)); do
    if read -r -t 1 i code <&"$ended"; then
      codes[i]=$code
      alive=$((alive - 1))
      if [[ -z $forced || $code == 130 ]]; then own+=("$code"); else killed[i]=1; fi
      if ((code != 0 && alive > 0)) && [[ -z $failed ]]; then
        failed=$code
        if [[ -z $deadline ]]; then deadline=$((SECONDS + (code == 75 || code == 130 ? save_time : grace))); fi
        say "process $i of $count ended first; the others have $((deadline - SECONDS)) s to end by themselves"
      fi
    elif [[ -n $deadline ]] && ((SECONDS >= deadline)); then
      case $forced in
        "") forced=TERM ;;
        TERM) forced=KILL ;;
        *) # not even its guard answers: a stopped process, or a host behind ssh that is gone
          for i in "${!pids[@]}"; do
            if [[ -z ${codes[i]:-} ]]; then kill -s KILL -- "-${pids[i]}" 2>/dev/null || true; fi
          done
          break
          ;;
      esac
      say "still running after the time to end: SIG$forced"
      tell "$forced"
      deadline=$((SECONDS + 10))
    fi
  done
  wait 2>/dev/null || true
  for channel in "${channels[@]}" "$ended"; do exec {channel}>&-; done
  for i in "${!codes[@]}"; do
    if [[ -z $stopped && ${codes[i]} =~ ^(137|255)$ && -z ${killed[i]:-} ]]; then
      say "process $i of $count was lost ($(meaning "${codes[i]}")); the others ended because of it"
    fi
  done
  if ((${#own[@]} == 0)); then own=(137); fi # all of them had to be killed
  return "$(cause "${own[@]}")"
}

# free_port: a port that nothing on this host listens on. Below the range from which systems take ports for connections.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 6<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
}
