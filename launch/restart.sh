# shellcheck shell=bash
# Shared by every launcher (sourced): what an exit code means, which one decides for a group of processes, the loop
# that runs a job again. Needs bash 4.4 or newer.
#
#   JAXKD_RESTARTS        restarts in a row before giving up (10); a run of JAXKD_RESTART_RESET seconds (600) sets the count
#                         back, so that a job of weeks may lose a host now and then but a job that cannot start ends
#   JAXKD_RESTART_DELAY   seconds before a restart (5)
#   JAXKD_PYTHON          the interpreter (default: the active environment's, the checkout's .venv, python3)

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
stopped=""   # the signal by which the launcher itself was asked to stop; then nothing is run again

say() { printf 'launch: %s\n' "$*" >&2; }

# refuse MESSAGE HINT: a user error, in the form of jaxkd's own.
refuse() {
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 2
}

python_path() {
  if [[ -n ${JAXKD_PYTHON:-} ]]; then
    echo "$JAXKD_PYTHON"
  elif [[ -z ${VIRTUAL_ENV:-} && -x $checkout/.venv/bin/python ]]; then
    echo "$checkout/.venv/bin/python"
  else
    command -v python || echo python3
  fi
}

# whole NAME VALUE [LEAST]: refuses a VALUE that is no whole number of at least LEAST (0).
whole() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < ${3:-0})); then
    refuse "$1 is '$2'" "a whole number of at least ${3:-0} is expected"
  fi
}

# meaning CODE: an exit code in words (docs/architecture.md has the table).
meaning() {
  case $1 in
    0) echo "done" ;;
    1) echo "a bug: see the traceback" ;;
    2) echo "user error" ;;
    3) echo "numeric failure" ;;
    4) echo "integrity failure" ;;
    5) echo "out of device memory" ;;
    74) echo "cannot write" ;;
    75) echo "preempted and saved" ;;
    130) echo "interrupted by the user" ;;
    134) echo "aborted: a peer was lost" ;;
    137) echo "killed, by somebody or for want of host memory" ;;
    143) echo "asked to stop before there was anything to save" ;;
    255) echo "the connection to its host was lost" ;;
    *) if (($1 > 128)); then echo "crashed, signal $(($1 - 128))"; else echo "unknown"; fi ;;
  esac
}

# run_again CODE: whether a job that ended so is started again. 134, 137 and 255 are lost peers. Never 130, and no
# failure that would only repeat itself.
run_again() {
  case $1 in 75 | 134 | 137 | 143 | 255) return 0 ;; *) return 1 ;; esac
}

# cause CODE...: the code that decides for processes which ended with these. A lost process takes the others with it, so
# what names a reason wins over what may be a consequence.
cause() {
  local wanted code
  for wanted in 130 2 3 4 5 74 1 other 75 137 255 143 134; do
    for code in "$@"; do
      if [[ $code == "$wanted" ]] || { [[ $wanted == other && $code != 0 ]] && ! run_again "$code"; }; then
        echo "$code"
        return
      fi
    done
  done
  echo 0
}

# logged_cause LOG CODE: the same from what the processes said in LOG (process.sh); CODE where they said nothing.
logged_cause() {
  local codes
  mapfile -t codes < <(sed -n 's/^.*launch: process [0-9]* of [0-9]* on [^ ]* ended with exit code \([0-9]*\).*$/\1/p' "$1")
  if ((${#codes[@]} == 0)); then
    echo "$2"
  elif (($2 != 0)) && [[ $(cause "${codes[@]}") == 0 ]]; then
    echo "$2" # every process that spoke was content: the one that failed had no time to
  else
    cause "${codes[@]}"
  fi
}

# restart_loop COMMAND...: runs it until it is done, fails for good, or was lost too often; its last exit code.
restart_loop() {
  local limit=${JAXKD_RESTARTS:-10} reset=${JAXKD_RESTART_RESET:-600} delay=${JAXKD_RESTART_DELAY:-5}
  local restarts=0 code started
  whole JAXKD_RESTARTS "$limit"
  whole JAXKD_RESTART_RESET "$reset"
  whole JAXKD_RESTART_DELAY "$delay"
  while :; do
    started=$SECONDS code=0
    "$@" || code=$?
    if ((code == 0)); then return 0; fi
    if [[ -n $stopped ]] || ! run_again "$code"; then
      say "ended with exit code $code ($(meaning "$code")); not run again"
      return "$code"
    fi
    if ((SECONDS - started >= reset)); then restarts=0; fi
    if ((++restarts > limit)); then
      say "ended with exit code $code ($(meaning "$code")) after $limit restarts in a row; giving up. The same command continues it"
      return "$code"
    fi
    say "ended with exit code $code ($(meaning "$code")); restart $restarts of at most $limit in a row, in $delay s"
    sleep "$delay"
    if [[ -n $stopped ]]; then return "$code"; fi
  done
}
