"""Labels and annotations: raykube's own, and those of Ray, KubeRay and Kueue that it uses."""

from __future__ import annotations

#: On a RayCluster's manifest: where runs keep checkpoints and results; ``off`` keeps MLflow out of them.
STORAGE = "raykube.io/storage"
TRACKING = "raykube.io/tracking"

#: All of raykube's own names begin with this.
PREFIX = "raykube.io/"

#: On everything that raykube makes, and the selector that finds it.
MANAGED_BY = {"app.kubernetes.io/managed-by": "raykube"}
OURS = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())
#: Labels on what a plan makes: the plan's hash, and the hash of its work, which limits and cluster do not change.
PLAN = "raykube.io/plan"
WORK = "raykube.io/work"
#: On a RayJob on a long-lived cluster: the template of the pod that reads its storage once that cluster is gone.
STORAGE_POD = "raykube.io/storage-pod"
#: On a RayJob: when it was asked to stop, when raykube began to delete it, and which attempt it is.
STOP = "raykube.io/stop"
DELETE = "raykube.io/delete"
ATTEMPT = "raykube.io/attempt"
#: On a RayService that has, or once had, code in its storage.
CODE_IN_STORAGE = "raykube.io/code-in-storage"
#: On a pod of a service: the code that its node is to mount now.
CODE = "raykube.io/code"
#: The annotations above; KubeRay copies those of a run or service to its cluster.
ANNOTATIONS = (STORAGE, TRACKING, STORAGE_POD, STOP, DELETE, ATTEMPT, CODE_IN_STORAGE, CODE)
#: Label on a pod that reads a run's storage: the run.
RUN = "raykube.io/run"

#: Labels on a cluster's pods; the first also names a job's cluster in a clusterSelector.
CLUSTER = "ray.io/cluster"
NODE_TYPE = "ray.io/node-type"
#: On a RayService: how long KubeRay waits for its cluster to become ready.
INITIALIZING_TIMEOUT = "ray.io/initializing-timeout"

#: Labels on what waits in a Kueue queue, and on its Workload; an annotation on jobs that may change their size.
QUEUE = "kueue.x-k8s.io/queue-name"
JOB_UID = "kueue.x-k8s.io/job-uid"
ELASTIC_JOB = "kueue.x-k8s.io/elastic-job"
