"""Write the cluster files: ray_cluster.yaml for AWS, the others beside this file. `make docs` does it."""

from __future__ import annotations

from pathlib import Path

from cluster.launch import facts, kubernetes, ray_up


def main(root: Path = facts.ROOT) -> None:
    """Write all files below `root`."""
    for path, text in files().items():
        (root / path).write_text(text)


def files() -> dict[str, str]:
    """Every file's path in the checkout, with its content."""
    return {
        "ray_cluster.yaml": ray_up.aws(),
        "cluster/launch/on_premises.yaml": ray_up.on_premises(),
        "cluster/launch/gcp.yaml": ray_up.gcp(),
        "cluster/launch/kubernetes.yaml": kubernetes.manifests(),
        "cluster/launch/Dockerfile": kubernetes.dockerfile(),
    }


if __name__ == "__main__":
    main()
