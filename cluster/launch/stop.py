"""Stop Ray on every host of an on-premises cluster, on its head: `python -m cluster.launch.stop`.

`ray down` stops it on the head alone, and says that it has stopped all.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` has put the cluster's configuration on the head; in spite of its name it is JSON."""


def main() -> None:
    """Stop the head, whose autoscaler would start the workers again, then the workers; exit status 1 when one was not reached."""
    file = BOOTSTRAP.expanduser()
    if not file.exists():
        raise SystemExit(f"There is no {file}: run this on the head of a cluster that `ray up` made.")
    config = json.loads(file.read_text())
    subprocess.run(["ray", "stop"], check=True)
    workers = config["provider"]["worker_ips"]
    with ThreadPoolExecutor(32) as pool:
        done = list(pool.map(lambda host: subprocess.run(command(config, host), check=False).returncode, workers))
    missed = [host for host, status in zip(workers, done, strict=True) if status]
    if missed:
        raise SystemExit(f"Ray could not be stopped on {', '.join(missed)}: do it there, with `ray stop`.")
    print(f"Ray is stopped on the head and on {len(workers)} worker(s).")


def command(config: Mapping[str, Any], host: str) -> list[str]:
    """What stops Ray on a worker: by the key and the user that the cluster's configuration names."""
    auth = config["auth"]
    key = ["-i", str(Path(auth["ssh_private_key"]).expanduser())] if "ssh_private_key" in auth else []
    options = ["BatchMode=yes", "ConnectTimeout=10", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    flags = [word for option in options for word in ("-o", option)]
    return ["ssh", *key, *flags, f"{auth['ssh_user']}@{host}", ". ~/convsweep/cluster/launch/node.sh; ray stop"]


if __name__ == "__main__":
    main()
