"""Kubernetes as others left it: the API, its objects, whose marks stand on a node, and the lease."""
