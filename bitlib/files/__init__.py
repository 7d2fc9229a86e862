"""Bytes: written whole, named, read, fetched."""
