#!/usr/bin/env bash
# Install on a node the checkout that `ray up` has put into ~/convsweep, in an environment of its own: install.sh EXTRAS.
# Run again, it installs the checkout again and what is missing.
set -euo pipefail
cd ~/convsweep
chmod 700 ~/.ray ~/.convsweep
chmod 600 ~/.ray/auth_token ~/.convsweep/cluster.env
. cluster/launch/node.sh
reads="[ -r ~/convsweep/cluster/launch/node.sh ] && . ~/convsweep/cluster/launch/node.sh"
grep -qxF "$reads" ~/.bashrc 2>/dev/null || echo "$reads" >>~/.bashrc

python=${CONVSWEEP_PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "convsweep needs Python 3.11 or newer: say which one in ~/.convsweep/cluster.env, CONVSWEEP_PYTHON=/path/to/python3.12" >&2
  exit 1
}
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -m venv .venv || { # Debian and Ubuntu have pip's own installer in a package of its own
    sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
    sudo apt-get -o DPkg::Lock::Timeout=300 install -y -qq python3-venv
    "$python" -m venv --clear .venv
  }
fi
rm -rf build # else files that the checkout has no more would be installed
.venv/bin/python -m pip install --quiet --constraint constraints.txt ".[$1]"
