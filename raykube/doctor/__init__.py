"""What ``raykube doctor`` looks at: whether this machine, and a Kubernetes, can do what raykube will ask of them."""

from raykube.doctor.check import Check
from raykube.doctor.kubernetes import checks as kubernetes_checks
from raykube.doctor.machine import TESTED_RAY, checks

__all__ = ["TESTED_RAY", "Check", "checks", "kubernetes_checks"]
