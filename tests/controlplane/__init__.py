"""The real Kubernetes of the test suite: etcd, kube-apiserver and, on demand, what makes pods run, without nodes.

What a fake cannot do truthfully (RBAC, quota admission, garbage collection, compacted history, audit) is
tested here. `build.py` finds or builds the binaries, `cluster.py` runs one control plane, `keeper.py` lets the
workers of one test run share it, `fixtures.py` is the pytest side, and `python -m tests.controlplane up` is the
same thing for a person.
"""
