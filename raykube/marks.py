"""Labels and annotations: raykube's own, and those of others that it goes by."""

from __future__ import annotations

#: On a RayCluster's manifest: where runs keep checkpoints and results; ``off`` keeps MLflow out of them.
STORAGE = "raykube.io/storage"
TRACKING = "raykube.io/tracking"

#: What all names of raykube's own begin with.
PREFIX = "raykube.io/"

#: On all that raykube makes, and how that is selected.
MANAGED_BY = {"app.kubernetes.io/managed-by": "raykube"}
OURS = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())
#: Labels on what a plan makes: its hash, and that of its work within any limits.
PLAN = "raykube.io/plan"
WORK = "raykube.io/work"
#: On a RayJob on a cluster that stays: what the pod needs that reads its storage once that cluster is gone.
STORAGE_POD = "raykube.io/storage-pod"
#: On a RayJob: when it was asked to stop, which attempt it is.
STOP = "raykube.io/stop"
ATTEMPT = "raykube.io/attempt"
#: On a RayService that has, or once had, code in its storage.
CODE_IN_STORAGE = "raykube.io/code-in-storage"
#: On a pod that serves: the code that its node is to mount now.
CODE = "raykube.io/code"
#: The annotations above: KubeRay hands those of a run or service on to its cluster.
ANNOTATIONS = (STORAGE, TRACKING, STORAGE_POD, STOP, ATTEMPT, CODE_IN_STORAGE, CODE)
#: Label on a pod that reads a run's storage: the run.
RUN = "raykube.io/run"

#: Labels on a cluster's pods; the first also names a job's cluster in a clusterSelector.
CLUSTER = "ray.io/cluster"
NODE_TYPE = "ray.io/node-type"
#: On a RayService: how long KubeRay lets its cluster become ready.
INITIALIZING_TIMEOUT = "ray.io/initializing-timeout"

#: Labels on what waits in a queue of Kueue's, and on its Workload; an annotation on what may change its size there.
QUEUE = "kueue.x-k8s.io/queue-name"
JOB_UID = "kueue.x-k8s.io/job-uid"
ELASTIC_JOB = "kueue.x-k8s.io/elastic-job"
