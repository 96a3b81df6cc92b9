"""The manifests for KubeRay, and the image that their pods run."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.launch import facts


def manifests() -> str:
    """For KubeRay: a cluster, and a sweep as a job on it."""
    head = facts.heading("A Ray cluster on Kubernetes, by KubeRay 1.6 or newer, and a sweep on it as a RayJob.")
    version = facts.ray_version()
    requests = 'requests: {cpu: "2", memory: 8Gi}, limits: {memory: 16Gi}'
    growth = "- {name: CONVSWEEP_NODES, value: '[{resources: {CPU: 4, GPU: 1}, count: 8}]'} # EDIT: what the cluster may grow to"
    on_head = _pod(6, f"resources: {{{requests}}}", environment=[growth])
    on_worker = _pod(
        8,
        "resources: # EDIT: what a worker has",
        '  requests: {cpu: "4", memory: 16Gi}',
        '  limits: {cpu: "4", memory: 16Gi, nvidia.com/gpu: 1}',
    )
    return f"""{head}# What is secret is in two Secrets: the token in convsweep-token, the lines of cluster.env in convsweep-environment.
apiVersion: ray.io/v1
kind: RayCluster
metadata:
  name: convsweep
  annotations:
    convsweep/image: &image registry.example.org/convsweep:latest # EDIT: what you built from cluster/launch/Dockerfile
spec:
  rayVersion: "{version}"
  authOptions: {{mode: token, secretName: convsweep-token}}
  enableInTreeAutoscaling: true
  autoscalerOptions: {{version: v2, idleTimeoutSeconds: 300}}
  headGroupSpec:
    serviceType: ClusterIP # reached by `kubectl port-forward` alone
    rayStartParams: {{num-cpus: "0"}}
    template:
{on_head}  workerGroupSpecs:
    - groupName: worker
      replicas: 0
      minReplicas: 0
      maxReplicas: 8 # EDIT: no more than this, which bounds what the cluster can cost
      rayStartParams: {{}}
      template:
{on_worker}---
# Nobody but pods of this namespace, and KubeRay's operator, reaches the cluster's ports.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: convsweep
spec:
  podSelector: {{matchLabels: {{ray.io/cluster: convsweep}}}}
  policyTypes: [Ingress]
  ingress:
    - from:
        - podSelector: {{}}
        - namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: kuberay-operator}}}} # EDIT: where the operator runs
---
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: mnist
spec:
  clusterSelector: {{ray.io/cluster: convsweep}}
  entrypoint: convsweep sweep --data mnist --trials 40 --address auto --name mnist # EDIT: your sweep
"""


def _pod(indent: int, *resources: str, environment: Sequence[str] = ()) -> str:
    """The specification of a pod, that many spaces in: it runs as nobody in particular and has the secret environment."""
    lines = [
        "spec:",
        "  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}",
        "  containers:",
        "    - name: ray",
        "      image: *image",
        "      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}",
        "      env:",
        "        - {name: CONVSWEEP_EXPERIMENTS, value: /home/ray/experiments}",
        '        - {name: RAY_JOB_STOP_WAIT_TIME_S, value: "60"} # so long a sweep that is stopped may take to end its groups',
        *(f"        {line}" for line in environment),
        "      envFrom: [{secretRef: {name: convsweep-environment}}]",
        *(f"      {line}" for line in resources),
    ]
    return "".join(f"{' ' * indent}{line}\n" for line in lines)


def dockerfile() -> str:
    """The image that the pods run."""
    version = facts.ray_version()
    folders = "".join(f"COPY --chown=ray:users {name} {name}\n" for name in facts.FOLDERS)
    plain = " ".join(facts.FILES)
    return (
        "# The image of cluster/launch/kubernetes.yaml: docker build -f cluster/launch/Dockerfile -t NAME . (in the checkout).\n"
        "# Written by `make docs` from cluster/launch/generate.py.\n"
        f"FROM rayproject/ray:{version}-py312\n"
        "ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility\n"
        "WORKDIR /home/ray/convsweep\n"
        f"COPY --chown=ray:users {plain} ./\n"
        f"{folders}"
        'RUN pip install --no-cache-dir --constraint constraints.txt ".[postgresql]"\n'
        "WORKDIR /home/ray\n"
    )
