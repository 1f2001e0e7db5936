"""Folders and manifests -> images with labels, patients and sources."""
