"""Proposals of many images: local processes, Dask clusters and job arrays; interrupted runs resume."""
