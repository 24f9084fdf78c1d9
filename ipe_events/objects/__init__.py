"""Pure tools on Kubernetes objects: paths, keyed diff, quantities, pruning."""
