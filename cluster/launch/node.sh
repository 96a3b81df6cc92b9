# The environment of a node of a cluster that `ray up` made: ~/.bashrc reads this file, and with it each of Ray's commands.
export CONVSWEEP_EXPERIMENTS="$HOME/experiments"
export RAY_AUTH_MODE=token
export RAY_JOB_STOP_WAIT_TIME_S=60 # so long a sweep that is stopped may take to end its groups
case ":$PATH:" in
*":$HOME/convsweep/.venv/bin:"*) ;;
*) export PATH="$HOME/convsweep/.venv/bin:$PATH" ;;
esac
# NAME=value lines. Nothing in them is expanded and quotes are part of the value, as where Kubernetes or Docker read such a file.
if [ -r "$HOME/.convsweep/cluster.env" ]; then
  while IFS= read -r convsweep_line || [ -n "$convsweep_line" ]; do
    case $convsweep_line in
    [A-Za-z_]*=*) export "${convsweep_line?}" ;;
    esac
  done <"$HOME/.convsweep/cluster.env"
  unset convsweep_line
fi
