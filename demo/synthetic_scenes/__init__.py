"""Synthetic multi-object images in COCO layout."""
