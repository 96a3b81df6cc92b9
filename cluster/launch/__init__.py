"""Bringing clusters up and down: the files for Ray's cluster launcher and for Kubernetes, written from one source."""
