"""Somebody at the lab's laptop who tries every port of the nodes, and to run a program there: JSON in, JSON out.

python uninvited.py '{"10.99.7.10": [6379, ...], ...}' [TOKEN]
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

from cluster.ports import ask_all

AGENT = 52365


def run_a_program(host: str, token: str | None) -> int:
    """The HTTP status of the agent's answer to a job that leaves a file."""
    body = json.dumps({"entrypoint": "touch /tmp/uninvited"}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"http://{host}:{AGENT}/api/job_agent/jobs/", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def main() -> None:
    asked, token = json.loads(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    answers = {host: ask_all(host, ports, token) for host, ports in asked.items()}
    jobs = {host: run_a_program(host, token) for host, ports in asked.items() if AGENT in ports}
    print(json.dumps({"answers": answers, "jobs": jobs}))


if __name__ == "__main__":
    main()
